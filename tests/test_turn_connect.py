"""connect() by way of a TURN server from end to end on loopback: whoever has one, and only where it is wanted."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from test_stun_interop import needs
from turn_support import Coturn, coturn
from world import open_world

from ntcpsock._errors import TraversalFailed
from ntcpsock._node import Node
from ntcpsock._session.stream import NTCPStream

pytestmark = needs("turnserver")


@pytest.fixture(autouse=True)
def leaks_show_where_they_are_made() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Coturn]:
    with coturn(tmp_path) as running:
        await running.ready()
        yield running


def at(server: Coturn, transport: str = "udp") -> dict[str, Any]:
    uri = f"turn:{server.host}:{server.port}?transport={transport}"
    return {"turn": (uri,), "turn_user": "u", "turn_password": "p"}


async def connected(alice: Node, bob: Node, name: str = "alice") -> tuple[NTCPStream, NTCPStream]:
    async with await alice.open_listener(8000) as listener:
        dialled = await bob.open_stream(name, 8000)
        with trio.fail_after(5):
            return dialled, await listener.accept()


async def talk(dialled: NTCPStream, accepted: NTCPStream) -> None:
    with trio.fail_after(20):
        await dialled.send_all(b"there")
        assert await accepted.receive_some() == b"there"
        await accepted.send_all(b"and back" * 50_000)
        received = b""
        while len(received) < 400_000:
            received += await dialled.receive_some()
        assert received == b"and back" * 50_000


ONLY_TURN = {"techniques": ("turn",)}


@pytest.mark.parametrize(
    ("alice_has", "bob_has"),
    [(None, "udp"), ("udp", None), ("udp", "tcp"), ("tcp", "tcp")],
    ids=["the dialer has one", "the listener has one", "both, one over TCP", "both over TCP"],
)
async def test_a_stream_over_turn(
    tmp_path: Path, server: Coturn, alice_has: str | None, bob_has: str | None
) -> None:
    alice_settings = at(server, alice_has) if alice_has else {}
    bob_settings = at(server, bob_has) if bob_has else {}
    async with (
        open_world(tmp_path) as world,
        world.node("alice", **alice_settings) as alice,
        world.node("bob", **ONLY_TURN, **bob_settings) as bob,
    ):
        dialled, accepted = await connected(alice, bob)
        async with dialled, accepted:
            await talk(dialled, accepted)
            for stream in (dialled, accepted):
                assert (stream.path.kind, stream.path.technique) == ("relay", "turn")
            (attempt,) = dialled.report.attempts
            assert attempt.outcome == "ok"
            if bob_has:
                assert str(server.port) in attempt.notes["TURN server"]
                assert attempt.notes["relayed"].startswith("127.0.0.1:")
            assert "'p'" not in str(dialled.report.to_dict())


async def test_relay_only_shows_nobody_an_address(tmp_path: Path, server: Coturn) -> None:
    async with (
        open_world(tmp_path) as world,
        world.node("alice", relay="only", **at(server)) as alice,
        world.node("bob", relay="only", **at(server)) as bob,
    ):
        dialled, accepted = await connected(alice, bob)
        async with dialled, accepted:
            await talk(dialled, accepted)
            assert dialled.path.technique == "turn"
            assert dialled.path.remote == accepted.path.local
            assert dialled.path.local == accepted.path.remote


async def test_a_direct_path_wins(tmp_path: Path, server: Coturn) -> None:
    async with (
        open_world(tmp_path) as world,
        world.node("alice", **at(server)) as alice,
        world.node("bob", **at(server)) as bob,
    ):
        dialled, accepted = await connected(alice, bob)
        async with dialled, accepted:
            assert dialled.path.kind == "lan"


async def test_without_a_server_it_fails_at_once(tmp_path: Path) -> None:
    async with (
        open_world(tmp_path) as world,
        world.node("alice") as alice,
        world.node("bob", **ONLY_TURN) as bob,
        await alice.open_listener(8000),
    ):
        with pytest.raises(TraversalFailed):
            await bob.open_stream("alice", 8000)


async def test_a_server_that_refuses_is_in_the_report(tmp_path: Path, server: Coturn) -> None:
    settings = {**at(server), "turn_password": "secret-that-is-wrong"}
    async with (
        open_world(tmp_path) as world,
        world.node("alice") as alice,
        world.node("bob", **ONLY_TURN, **settings) as bob,
        await alice.open_listener(8000),
    ):
        with pytest.raises(TraversalFailed) as caught:
            await bob.open_stream("alice", 8000)
        report = str(caught.value.report.to_dict() if caught.value.report else "")
        assert "does not take these credentials" in report
        assert "secret-that-is-wrong" not in report


@pytest.mark.parametrize("transport", ["tcp", pytest.param("udp", marks=pytest.mark.slow)])
async def test_a_server_that_is_restarted_ends_the_stream_with_a_reason(
    tmp_path: Path, server: Coturn, transport: str
) -> None:
    async with (
        open_world(tmp_path) as world,
        world.node("alice") as alice,
        world.node("bob", **ONLY_TURN, **at(server, transport)) as bob,
    ):
        dialled, accepted = await connected(alice, bob)
        async with dialled, accepted:
            await talk(dialled, accepted)
            server.stop()
            server.start()
            with trio.fail_after(30), pytest.raises(trio.BrokenResourceError) as caught:
                await dialled.receive_some()
            assert "TURN server" in str(caught.value.__cause__)


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_a_stream_goes_on_while_nonces_and_lifetimes_end(tmp_path: Path, transport: str) -> None:
    """Several of each, under way and idle."""
    with coturn(tmp_path, "--stale-nonce=1", "--max-allocate-lifetime=2") as server:
        await server.ready()
        async with (
            open_world(tmp_path) as world,
            world.node("alice") as alice,
            world.node("bob", **ONLY_TURN, **at(server, transport)) as bob,
        ):
            dialled, accepted = await connected(alice, bob)
            async with dialled, accepted:
                for pause in (0.5, 3.0, 0.5, 4.0):
                    await talk(dialled, accepted)
                    await trio.sleep(pause)
                await talk(dialled, accepted)
