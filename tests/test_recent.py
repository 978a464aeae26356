"""Ports of a NAT and of ours that were used lately: how long they count, and that looks at a NAT are not misled."""

from __future__ import annotations

import random
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from world import open_world

from ntcpsock._address import Endpoint
from ntcpsock._report import Attempt
from ntcpsock._traversal import observe
from ntcpsock._traversal.checks.port import UdpPort
from ntcpsock._traversal.observe import FIRST_SAMPLES, hold_ports
from ntcpsock._traversal.observe_udp import hold_datagram_ports
from ntcpsock._traversal.plan import PlannedAttempt
from ntcpsock._traversal.prediction import BAND_SAMPLES, Observation, Prediction, encode_prediction
from ntcpsock._traversal.punch.fresh import AVOIDED, PORT_RANGE, FreshPorts
from ntcpsock._traversal.punch.message import Transport
from ntcpsock._traversal.recent import KEPT_FOR, MOST, RecentMappings
from ntcpsock._traversal.strategies import STRATEGIES
from ntcpsock._traversal.strategies.base import AttemptContext


def test_they_count_as_long_as_a_nat_may_keep_them() -> None:
    recent = RecentMappings()
    recent.note("udp", [5000, 5001], 10.0)
    recent.note("udp", [5001], 20.0)
    assert recent.ports("udp", 11.0) == [5000, 5001]
    assert recent.ports("udp", 15.0 + KEPT_FOR) == [5001]
    assert recent.ports("udp", 20.0 + KEPT_FOR) == []
    assert recent.ports("tcp", 11.0) == []


def test_the_newest_are_remembered() -> None:
    recent = RecentMappings()
    recent.note("tcp", range(1024, 1024 + MOST), 0.0)
    recent.note("tcp", [9], 1.0)
    assert len(recent.ports("tcp", 2.0)) == MOST
    assert 9 in recent.ports("tcp", 2.0)
    assert 1024 not in recent.ports("tcp", 2.0)


def test_another_network_has_other_ones() -> None:
    recent = RecentMappings()
    recent.note("tcp", [5000], 0.0)
    recent.forget()
    assert recent.ports("tcp", 1.0) == []


def test_no_local_port_comes_again_soon() -> None:
    """Of a hundred and fifty that a minute of dials has used one look in twenty would meet one."""
    fresh = FreshPorts(random.Random(5))
    drawn = [fresh.draw() for _ in range(5 * AVOIDED)]
    assert {PORT_RANGE[0] <= port <= PORT_RANGE[1] for port in drawn} == {True}
    for start in range(0, len(drawn) - AVOIDED, 100):
        assert len(set(drawn[start : start + AVOIDED])) == AVOIDED
    # They are not used up.
    assert len(set(drawn)) < len(drawn)


BLOCK = range(5120, 5376)
SERVERS = (Endpoint("198.51.100.1", 3478), Endpoint("198.51.100.2", 3478))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What a NAT has drawn from its block, one port for each question to a STUN server."""
    ports = random.Random(3).sample(BLOCK, len(BLOCK))
    drawn: list[int] = []

    def draw() -> Endpoint:
        drawn.append(ports.pop())
        return Endpoint("192.0.2.1", drawn[-1])

    async def ask_over_tcp(sock: trio.socket.SocketType, server: Endpoint) -> Observation:
        return Observation(sock.getsockname()[1], server, draw())

    async def ask_over_udp(port: UdpPort, server: Endpoint, *, rto: float, base: int) -> Endpoint:
        return draw()

    monkeypatch.setattr(observe, "_ask", ask_over_tcp)
    monkeypatch.setattr(UdpPort, "ask", ask_over_udp)
    return drawn


@pytest.mark.parametrize("transport", ["tcp", "udp"])
async def test_a_block_that_is_known_is_not_used_up_by_looking(drawn: list[int], transport: str) -> None:
    """It has 256 ports, and keeps each for a minute or longer."""
    async with trio.open_nursery() as nursery:

        async def look(taken: Collection[int]) -> None:
            if transport == "tcp":
                async with hold_ports(SERVERS, taken):
                    pass
            else:
                async with hold_datagram_ports(SERVERS, nursery, taken):
                    pass

        await look(())
        assert len(drawn) == FIRST_SAMPLES + 1 + BAND_SAMPLES
        before = tuple(drawn)
        await look(before)
        assert len(drawn) == len(before) + FIRST_SAMPLES + 1
        nursery.cancel_scope.cancel()


async def test_a_node_remembers_until_its_network_is_another_one(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice:
        alice.note_mapped("udp", [5121])
        assert 5121 in alice.mapped_ports("udp")
        assert 5121 not in alice.mapped_ports("tcp")
        alice._ports.renew()
        assert 5121 not in alice.mapped_ports("udp")


ANYWHERE = encode_prediction(Prediction("band", "192.0.2.2", 1024, 65535))


@pytest.mark.parametrize("technique", ["tcp-predict", "udp-predict", "tcp-stunt2"])
async def test_each_look_is_remembered(drawn: list[int], technique: str) -> None:
    """So that a later one, and whoever aims, knows of the ports."""
    noted: list[tuple[Transport, list[int]]] = []

    async def hear(word: str) -> bytes:
        return ANYWHERE

    async with trio.open_nursery() as nursery:
        access: Any = SimpleNamespace(nursery=nursery, agreed=lambda ours, theirs: None)
        talk: Any = SimpleNamespace(say=lambda word, body: None, hear=hear)
        remote = Endpoint("192.0.2.2", 0)
        context = AttemptContext(
            PlannedAttempt(technique, remote, 0.0, 6.0),
            20000,
            0.1,
            cast(Any, None),
            Attempt(technique, None, remote, 0.0),
            servers=SERVERS,
            talk=talk,
            datagram=access,
            note_mapped=lambda transport, ports: noted.append((transport, sorted(ports))),
        )
        with pytest.raises(OSError, match=r"any port|too many ports"):
            await STRATEGIES[technique](context)
        nursery.cancel_scope.cancel()
    assert noted == [("udp" if technique == "udp-predict" else "tcp", sorted(drawn))]
