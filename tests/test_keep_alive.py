"""The lifetime of a mapping: measured on a ladder, remembered by network, and what it makes of keep-alives."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import trio
from broker_support import SimulatedNetwork, registration
from stun_support import serving
from world import open_world

from ntcpsock import trio as ntcp
from ntcpsock._lifetimes import (
    LONGEST_INTERVAL,
    SHORTEST_INTERVAL,
    USUAL_INTERVAL,
    Lifetimes,
    keep_alive_interval,
)
from ntcpsock._servers.stun import IDLE_TIMEOUT
from ntcpsock._traversal.broker.fields import MAX_TTL
from ntcpsock._traversal.broker.message import Found, Registered
from ntcpsock._traversal.discovery import lifetime_driver
from ntcpsock._traversal.discovery.lifetime import STEPS, Ladder
from ntcpsock._traversal.discovery.lifetime_driver import measure_lifetime
from ntcpsock._traversal.gather import TCP_REFRESH_INTERVAL
from ntcpsock._traversal.gather_udp import UDP_REFRESH_INTERVAL
from ntcpsock._traversal.stun.usages import Padding

# --- the ladder -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lifetime", "value", "longest", "shortest"),
    [
        (37.0, "30 to 45 s", 30.0, 45.0),
        (2.0, "0 to 2 s", 0.0, 2.0),
        (1e9, "at least 300 s", 300.0, None),
        (-1.0, "unknown", None, None),
    ],
)
def test_the_ladder(lifetime: float, value: str, longest: float | None, shortest: float | None) -> None:
    ladder = Ladder()
    taken = []
    while (step := ladder.next_step()) is not None:
        taken.append(step)
        ladder.handle(step < lifetime)
    found = ladder.finding()
    assert (found.value, found.longest_alive, found.shortest_dead) == (value, longest, shortest)
    assert tuple(taken) == STEPS[: len(taken)]
    ladder.handle(True)  # too late
    assert ladder.finding() == found
    assert found.is_known or "RESPONSE-PORT" in found.why


def test_a_ladder_that_was_left_half_way() -> None:
    ladder = Ladder()
    for _ in range(3):
        ladder.handle(True)
    assert ladder.finding().longest_alive == STEPS[2]
    assert not ladder.finding().is_known


async def test_measured_over_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """No NAT, nothing dies: every step is seen, in order."""
    steps = (0.0, 0.05, 0.1)
    monkeypatch.setattr(lifetime_driver, "Ladder", lambda: Ladder(steps))
    seen: list[tuple[float, bool]] = []
    async with serving() as addresses:
        found = await measure_lifetime(addresses.primary, lambda *step: seen.append(step))
    assert seen == [(step, True) for step in steps]
    assert found.longest_alive == 0.1


async def test_a_server_that_refuses_response_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifetime_driver, "_FILLING", Padding(b"x"))
    monkeypatch.setattr(lifetime_driver, "_PAUSE", 0.01)
    async with serving() as addresses:
        # RFC 5780 section 7.6 forbids both in one request.
        found = await measure_lifetime(addresses.primary)
    assert not found.is_known
    assert "RESPONSE-PORT" in found.why


# --- the memory -----------------------------------------------------------------------------------


def test_remembered_by_network(tmp_path: Path) -> None:
    memory = Lifetimes(tmp_path / "state")
    assert memory.get("203.0.113.1") is None
    memory.put("203.0.113.1", 30.0)
    memory.put("203.0.113.2", 120.0)
    memory.put("203.0.113.1", 25.0)
    again = Lifetimes(tmp_path / "state")
    assert (again.get("203.0.113.1"), again.get("203.0.113.2")) == (25.0, 120.0)
    for number in range(100):
        again.put(f"198.51.100.{number}", 1.0)
    assert again.get("203.0.113.1") is None
    assert again.get("198.51.100.99") == 1.0
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["lifetimes.json"]


@pytest.mark.parametrize(
    "content",
    ["", "nonsense", "[]", "7", '{"203.0.113.1": "30"}', '{"203.0.113.1": -1}', '{"203.0.113.1": true}'],
)
def test_a_broken_memory_is_no_memory(tmp_path: Path, content: str) -> None:
    (tmp_path / "lifetimes.json").write_text(content)
    memory = Lifetimes(tmp_path)
    assert memory.get("203.0.113.1") is None
    memory.put("203.0.113.1", 30.0)
    assert memory.get("203.0.113.1") == 30.0


def test_the_interval() -> None:
    assert keep_alive_interval(30.0) == 18.0
    assert keep_alive_interval(0.5) == SHORTEST_INTERVAL
    assert keep_alive_interval(3600.0) == LONGEST_INTERVAL
    assert USUAL_INTERVAL == UDP_REFRESH_INTERVAL
    # Our own STUN server closes a warm port's connection that is silent for longer.
    assert LONGEST_INTERVAL / USUAL_INTERVAL * TCP_REFRESH_INTERVAL < IDLE_TIMEOUT - 10


# --- what nodes make of it ------------------------------------------------------------------------


def sent_within(network: SimulatedNetwork, seconds: float) -> int:
    before = len(network.log)
    network.run(seconds=seconds)
    return len(network.log) - before


def test_another_interval_in_a_session() -> None:
    network = SimulatedNetwork()
    node = network.add(1, keep_alive_interval=20.0)
    node.machine.keep_alive_every(5.0, 60, network.now)
    assert sent_within(network, 46.0) == 20  # ten keep-alives with their answers, a tenth before their time
    node.machine.keep_alive_every(40.0, 120, network.now)
    assert sent_within(network, 81.0) == 4


def test_a_lazy_session_is_silent_and_works_when_it_is_needed() -> None:
    network = SimulatedNetwork()
    listener, lazy = network.add(1), network.add(2, keep_alive_interval=math.inf)
    assert listener.ask(registration("alice")) == Registered()
    listener.machine.keep_alive_every(math.inf, MAX_TTL, network.now)
    network.run(seconds=1)
    assert sent_within(network, 10_000.0) == 0
    assert listener.ask(registration("alice")) == Registered()  # the broker had forgotten both
    assert lazy.lookup("alice") == Found(listener.identity.public_key)


@pytest.mark.parametrize(
    ("setting", "measured", "pace"),
    [
        ("auto", None, 1.0),
        ("auto", 30.0, 0.9),
        ("auto", 1.0, SHORTEST_INTERVAL / USUAL_INTERVAL),
        ("fixed", 30.0, 1.0),
        ("lazy", 30.0, math.inf),
    ],
)
async def test_a_node_takes_it_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, measured: float | None, pace: float
) -> None:
    paces: list[float] = []

    class Node(ntcp.Node):
        def __init__(self, *arguments: object) -> None:
            paces.append(arguments[-1])  # type: ignore[arg-type]
            super().__init__(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ntcp, "Node", Node)
    async with open_world(tmp_path) as world:
        if measured is not None:
            Lifetimes(tmp_path / "client").put("127.0.0.1", measured)
        async with (
            world.node("alice") as alice,
            await alice.open_listener(8000) as listener,
            world.node(keep_alive=setting) as node,
        ):
            with trio.fail_after(60):
                async with await node.open_stream("alice", 8000), await listener.accept():
                    pass
    assert paces == [1.0, pytest.approx(pace)]
