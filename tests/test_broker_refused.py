"""A broker whose operator decides who may, as a node's user meets it: what works, and what the errors say."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from broker_support import make_identity
from relay_support import PATIENCE
from world import World, open_world

from ntcpsock._address import BrokerAddress
from ntcpsock._config import Config
from ntcpsock._errors import BrokerRefused, ConfigurationError
from ntcpsock._identity import Identity
from ntcpsock._servers.policy import Policy
from ntcpsock._servers.quotas import Quotas
from ntcpsock._state import Pins, load_identity
from ntcpsock._traversal.broker.driver import open_broker_session
from ntcpsock._traversal.broker.message import Reason
from ntcpsock._traversal.broker.refusal import registration_refused, session_refused

TOKEN = "a token of the tests"


def decide(world: World, policy: Policy) -> None:
    world.server.core.gate.configure(policy, Quotas())


async def test_a_private_broker_lets_in_by_token_and_by_key(tmp_path: Path) -> None:
    alice_key = load_identity(tmp_path / "alice" / "node.key").public_key
    async with open_world(tmp_path, tcp=True) as world:
        decide(world, Policy(private=True, admitted=frozenset({alice_key}), tokens=(TOKEN,)))
        async with world.node("alice") as alice, world.node(broker_token=TOKEN) as bob:
            async with await alice.open_listener(8000):
                (await bob.open_stream("alice", 8000)).reset()
        for settings, words in (
            ({}, "takes known nodes only.*NTCP_BROKER_TOKEN"),
            ({"broker_token": "guessed"}, "does not know the token"),
        ):
            with pytest.raises(BrokerRefused, match=words) as caught:
                async with world.node(**settings):
                    raise AssertionError("it was let in")
            assert caught.value.errno == errno.EACCES
            assert isinstance(caught.value, PermissionError)


async def test_over_tcp_as_well(tmp_path: Path) -> None:
    async with open_world(tmp_path, tcp=True) as world:
        decide(world, Policy(private=True, tokens=(TOKEN,)))
        world.server.core.gate.refuses(bytes(32), b"", world.server.key)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ntcpsock._traversal.broker.transport.UdpTransport.send", lambda self, data: None)
            with pytest.raises(BrokerRefused, match="takes known nodes only"):
                async with world.node():
                    raise AssertionError("it was let in")
            async with world.node(broker_token=TOKEN):
                pass


async def test_a_session_that_is_refused_later_says_why_and_comes_back(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        broker = BrokerAddress(*world.server.address, world.server.key)
        identity = Identity.generate()
        async with open_broker_session(broker, identity, pins=Pins(None)) as session:
            decide(world, Policy(private=True, tokens=(TOKEN,)))
            for node in list(world.server.core.registry):
                world.server.core.registry.remove(node)
            with pytest.raises(BrokerRefused, match=identity.node_id):
                await session.lookup("anybody")
            with pytest.raises(BrokerRefused):
                await session.set_registration((), (80,), None, None)
            decide(world, Policy())
            session._machine.greet_again(trio.current_time())
            session._link.flush()
            with trio.fail_after(PATIENCE):
                await session.set_registration((), (80,), None, None)


async def test_names_by_token(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        decide(world, Policy(names="token", tokens=(TOKEN,)))
        async with world.node() as nameless:
            async with await nameless.open_listener(8000):
                pass
        with pytest.raises(BrokerRefused, match=r"bob\.ntcp: .* gives names to holders of a token"):
            async with world.node("bob"):
                raise AssertionError("it has a name")
        async with world.node("bob", broker_token=TOKEN):
            pass
        decide(world, Policy(names="list", reserved={"bob": make_identity(3).public_key}))
        with pytest.raises(BrokerRefused, match="has not given this name"):
            async with world.node("bob", broker_token=TOKEN):
                raise AssertionError("it has the name")


@pytest.mark.parametrize("reason", list(Reason))
def test_each_refusal_says_what_to_do(reason: Reason) -> None:
    for error in (
        session_refused("broker:6060", reason, "id"),
        registration_refused("broker:6060", reason, "alice", "id"),
    ):
        assert len(str(error)) > 20
        assert error.errno


def test_settings_of_the_client() -> None:
    config = Config.load({"NTCP_BROKER_TOKEN": TOKEN, "NTCP_OUTCOMES": "off"})
    assert (config.broker_token, config.outcomes) == (TOKEN, "off")
    assert TOKEN not in repr(config)
    with pytest.raises(ConfigurationError, match='"tell" or "off"'):
        Config(outcomes="perhaps")  # type: ignore[arg-type]


async def test_the_command_explains_it(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        decide(world, Policy(private=True, tokens=(TOKEN,)))

        def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "ntcpsock", *command],
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                env={
                    **os.environ,
                    "NTCP_BROKER": world.uri,
                    "NTCP_STATE": str(tmp_path / "x"),
                    **environment,
                },
            )

        done = await trio.to_thread.run_sync(run, "connect", "nobody:80")
        assert done.returncode == 1
        assert "set broker_token (NTCP_BROKER_TOKEN)" in done.stderr
        done = await trio.to_thread.run_sync(lambda: run("connect", "nobody:80", NTCP_BROKER_TOKEN=TOKEN))
        assert "nobody has the name" in done.stderr
