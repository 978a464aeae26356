"""`ntcpsock.trio.diagnose` in a program of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio
from stun_support import serving
from world import open_world

from ntcpsock import _diagnose
from ntcpsock._address import Endpoint
from ntcpsock._config import Config
from ntcpsock._diagnosis import Diagnosis
from ntcpsock._errors import BrokerUnreachable, ConfigurationError, IdentityMismatch
from ntcpsock._identity import Identity
from ntcpsock._lifetimes import Lifetimes
from ntcpsock._traversal.discovery import lifetime_driver
from ntcpsock._traversal.discovery.lifetime import Ladder
from ntcpsock.trio import diagnose


async def test_by_the_servers_of_the_broker(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        found = await diagnose(world.config())
        assert found.works
        assert found.discovery.servers == (world.stun,)
        assert found.broker.reached
        assert found.broker.rtt is not None
        assert not found.servers_guessed
        again = json.loads(json.dumps(found.to_dict()))
        assert again["summary"] == found.summary
        assert again["tcp"]["mapping"]["possible"] == list(found.discovery.tcp.mapping.possible)
        assert again["unknown"][0].keys() == {"what", "why"}


async def test_settings_by_keyword(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        found = await diagnose(Config(state_dir=tmp_path), stun=(str(world.stun),))
    assert found.works
    assert found.broker.address is None


async def test_errors_are_not_in_groups(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nobody to ask"):
        await diagnose(Config(state_dir=tmp_path))
    with pytest.raises(BrokerUnreachable, match=r"stun\.invalid"):
        await diagnose(Config(state_dir=tmp_path, stun=("stun.invalid",)))
    async with open_world(tmp_path) as world:
        wrong = f"ntcp://127.0.0.1:{world.server.address.port}?key={Identity.generate().node_id}"
        with pytest.raises(IdentityMismatch):
            await diagnose(Config(broker=wrong, state_dir=tmp_path, stun=(str(world.stun),)))


async def test_a_broker_that_is_silent_does_not_stop_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world(tmp_path) as world:
        monkeypatch.setattr(_diagnose, "_USUAL_STUN_PORTS", (world.stun.port,))
        monkeypatch.setattr(_diagnose, "_PATIENCE_BEFORE_GUESSING", 0.05)
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as silent:
            await silent.bind(("127.0.0.1", 0))
            broker = f"ntcp://{Endpoint(*silent.getsockname())}"
            found = await diagnose(world.config(broker=broker, broker_timeout=0.5))
    assert found.servers_guessed
    assert found.discovery.tcp.reachable.truth is True
    assert not found.broker.reached
    assert "no answer" in found.broker.why
    assert not found.works


async def test_a_broker_that_cannot_be_found(tmp_path: Path) -> None:
    found = await diagnose(Config(broker="ntcp://broker.invalid", state_dir=tmp_path))
    assert "broker.invalid" in found.broker.why
    assert not found.works
    assert not found.discovery.tcp.reachable.is_known


async def test_the_lifetime_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifetime_driver, "Ladder", lambda: Ladder((0.0, 0.05)))
    early: list[Diagnosis] = []
    steps: list[tuple[float, bool]] = []
    async with open_world(tmp_path) as world:
        config = world.config()
        found = await diagnose(
            config, lifetime=True, found=early.append, progress=lambda *step: steps.append(step)
        )
    (before,) = early
    assert before.summary == found.summary
    assert not before.discovery.udp.lifetime.is_known
    assert steps == [(0.0, True), (0.05, True)]
    assert found.discovery.udp.lifetime.longest_alive == 0.05
    assert Lifetimes(config.state_dir).get("127.0.0.1") == 0.05


async def test_where_nothing_is_forgotten_nothing_is_measured(tmp_path: Path) -> None:
    async with serving(other_address="127.0.0.2") as addresses:
        config = Config(state_dir=tmp_path, stun=(str(addresses.primary),))
        found = await diagnose(config, lifetime=True)
    assert found.discovery.udp.lifetime.value == "none"
    assert not (tmp_path / "lifetimes.json").exists()


async def test_cancelled_at_any_moment(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        for moment in (0.0, 0.001, 0.01, 0.05, 0.2):
            with trio.move_on_after(moment):
                await diagnose(world.config())
        assert (await diagnose(world.config())).works
