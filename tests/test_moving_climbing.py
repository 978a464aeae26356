"""When a stream on a relay looks for a direct path: how soon it is found, what that costs, and what begins it anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio
from world import open_world

from benchmarks import climb
from ntcpsock._traversal.moving.climbing import (
    BUDGET,
    BYTES,
    EAGER,
    FULL_PAUSES,
    LIGHT_PAUSE,
    LOOK,
    MAX_SEEKERS,
    SHORTEST,
    Climbing,
    Seekers,
)
from ntcpsock._traversal.moving.listener import AcceptedStream
from ntcpsock._traversal.punch.message import Signal

Try = tuple[str, float, float]


def tries(seconds: float, rate: float = 0.0, *, has_light: bool = True) -> list[Try]:
    """All tries of that time, each failing when its budget is over: kind, begin, end. rate: bytes a second."""
    now = 0.0
    found: list[Try] = []
    climbing = Climbing(now, 0, has_light=has_light)
    while now < seconds:
        step = climbing.next(now, int(rate * now))
        assert step.seconds > 0
        began, now = now, now + step.seconds
        if step.kind != "wait":
            found.append((step.kind, began, now))
            climbing.tried(step.kind, now, int(rate * now))
    return found


def test_while_a_nat_has_few_ports_left_there_are_no_light_ones() -> None:
    climbing = Climbing(0.0, 0)
    assert climbing.next(0.0, 0, short=True).kind == "full"
    climbing.tried("full", 0.0, 0)
    climbing.tried("full", 40.0, 0)
    climbing.tried("full", 41.0, 0)
    climbing.tried("full", 42.0, 0)
    assert climbing.next(43.0, 0).kind == "light"
    assert climbing.next(43.0, 0, short=True).kind == "wait"


def longest_gap(found: list[Try], until: float) -> float:
    ends = [0.0] + [end for _, _, end in found]
    return max(begin - end for end, (_, begin, _) in zip(ends, found, strict=False) if end < until)


def test_at_first_there_is_always_a_try_under_way() -> None:
    found = tries(EAGER)
    # What is too short for a light one is waited for.
    assert longest_gap(found, EAGER) <= max(LIGHT_PAUSE, SHORTEST)
    assert all(end - begin <= BUDGET for _, begin, end in found)
    fulls = [begin for kind, begin, _ in found if kind == "full"]
    assert fulls[0] == 0.0
    assert len([begin for begin in fulls if begin < 30.0]) == 4


def test_an_idle_stream_keeps_silent_after_that() -> None:
    assert max(begin for _, begin, _ in tries(3600.0)) < EAGER
    # So does one that says little.
    few = [begin for _, begin, _ in tries(3600.0, 100.0) if begin > EAGER]
    assert len(few) <= 3600.0 * 100.0 / BYTES


def test_one_that_carries_much_looks_on() -> None:
    found = tries(3600.0, BYTES / SHORTEST)
    assert longest_gap(found, 3590.0) <= LOOK + LIGHT_PAUSE
    fulls = [begin for kind, begin, _ in found if kind == "full"]
    # What was foreseen in vain fills NATs for minutes.
    assert len(fulls) <= len(FULL_PAUSES) + 3600.0 / FULL_PAUSES[-1]


def test_where_only_foreseen_ports_can_help() -> None:
    found = tries(3600.0, 1e6, has_light=False)
    assert {kind for kind, _, _ in found} == {"full"}
    assert len(found) <= len(FULL_PAUSES) + 3600.0 / FULL_PAUSES[-1]


def test_one_looks_for_all_streams_to_a_node() -> None:
    seekers: Seekers[object] = Seekers()
    one, other = object(), object()
    assert seekers.enter(b"alice", one)
    assert seekers.enter(b"alice", one)
    assert not seekers.enter(b"alice", other)
    seekers.leave(b"alice", other)
    assert not seekers.enter(b"alice", other)
    seekers.leave(b"alice", one)
    assert seekers.enter(b"alice", other)
    for number in range(MAX_SEEKERS - 1):
        assert seekers.enter(b"%d" % number, one)
    assert not seekers.enter(b"one more", one)


@pytest.mark.parametrize("way", ["stream", "broker"])
async def test_the_listener_says_that_its_network_has_changed(tmp_path: Path, way: str) -> None:
    """By the stream, where that has a carrier, and else by the broker; nobody else's word counts."""
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob") as bob:
        async with await alice.open_listener(8000) as listener:
            dialled = await bob.open_stream(alice.node_id, 8000)
            accepted = await listener.accept()
        async with dialled, accepted:
            kept, theirs = next(iter(bob.moving.dialled_streams)), next(iter(alice.moving.accepted_streams))
            assert isinstance(theirs, AcceptedStream)
            if way == "broker":
                accepted.driver.suspend()
            async with trio.open_nursery() as nursery:
                told = trio.Event()

                async def wait() -> None:
                    await kept._wait_changed()
                    told.set()

                nursery.start_soon(wait)
                nursery.start_soon(dialled.receive_some)  # who reads hears what is said beside
                await trio.testing.wait_all_tasks_blocked(0.01)
                stranger = Signal(theirs.resumable.session_id, 1, "changed", b"")
                delivery = theirs._dialler
                assert not bob.moving.dialled_streams.heard(delivery, stranger)
                await theirs.tell_changed()
                with trio.fail_after(10):
                    await told.wait()
                nursery.cancel_scope.cancel()
            if way == "broker":
                accepted.go_on()
            assert not dialled.report.moves


def test_the_benchmark_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ("default", "symmetric") in climb.cells(["default", "symmetric", "mobile"])
    assert ("mobile", "mobile") not in climb.cells(["default", "symmetric", "mobile"])
    file = tmp_path / "deeper" / "climb.json"
    assert climb.read(file) == []
    good = climb.Climb("default", "default", "STABLE", 2.0, 0.4, "tcp-open", packets=100.0)
    late = climb.Climb("default", "cgn", "REACHABLE", 2.0, climb.LONGEST_CLIMB + 0.1, "tcp-open")
    failed = climb.Climb("cgn", "cgn", "REACHABLE", 2.0, None, message="it stays on the relay")
    climb.write(file, [good, late, failed])
    assert climb.read(file) == [good, late, failed]
    assert climb.show([good])
    assert not climb.show([good, late])
    assert not climb.show([good, failed])
    assert "it stays on the relay" in capsys.readouterr().out


def test_the_benchmark_judges_throughput_by_streams_of_one_transport(
    capsys: pytest.CaptureFixture[str],
) -> None:
    moved = climb.Climb("cgn", "cgn", "REACHABLE", 2.0, 0.4, "tcp-open", relayed=10.0, beside="tcp-open")
    assert climb.show([replace(moved, moved=30.0, direct=30.0)])
    assert "ratio 1.00" in capsys.readouterr().out
    assert not climb.show([replace(moved, moved=10.0, direct=30.0)])
    # UDP beside TCP says nothing of the move.
    assert climb.show([replace(moved, moved=10.0, direct=30.0, technique="udp-punch")])
    assert climb.show([moved])
