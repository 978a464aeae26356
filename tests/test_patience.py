"""How long a connection waits for a better one: what is under way decides, and a bounded grace."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from ntcpsock._config import Prefer
from ntcpsock._traversal.patience import LONGEST_GRACE, SHORTEST_GRACE, Group, Patience, group_of

GRACE = 0.05  # at a round trip of 100 ms


async def waited(patience: Patience, group: Group) -> float:
    begin = trio.current_time()
    await patience.wait_for_better(group)
    return trio.current_time() - begin


@pytest.mark.parametrize(
    ("prefer", "group", "running", "seconds"),
    [
        ("tcp", "tcp", ["udp"], 0.0),
        ("tcp", "udp", ["tcp"], GRACE),
        ("tcp", "udp", ["incoming"], GRACE),
        ("tcp", "udp", ["udp"], 0.0),
        ("udp", "udp", ["tcp"], 0.0),
        ("udp", "tcp", ["udp"], GRACE),
        ("udp", "incoming", ["udp"], GRACE),
        ("udp", "tcp", ["tcp", "relay"], 0.0),
        ("tcp", "relay", ["udp"], 2.0),
        ("udp", "relay", ["incoming"], 2.0),
        ("tcp", "relay", [], 0.0),
    ],
)
async def test_who_waits_for_whom(
    autojump_clock: trio.testing.MockClock, prefer: Prefer, group: Group, running: list[Group], seconds: float
) -> None:
    patience = Patience(prefer, 0.1)
    patience.use_relay = trio.current_time() + 2.0
    patience.begin(group)
    for other in running:
        patience.begin(other)
    assert await waited(patience, group) == pytest.approx(seconds)


async def test_the_wait_ends_when_nothing_better_is_left(autojump_clock: trio.testing.MockClock) -> None:
    patience = Patience("tcp", 0.1)
    for group in ("tcp", "tcp", "udp"):
        patience.begin(group)

    async def end_one_after(seconds: float) -> None:
        await trio.sleep(seconds)
        patience.end("tcp")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_one_after, 0.01)
        nursery.start_soon(end_one_after, 0.03)
        assert await waited(patience, "udp") == pytest.approx(0.03)


def test_the_grace_follows_the_path() -> None:
    graces = [Patience("tcp", rtt).grace for rtt in (0.0, 0.1, 0.3, 30.0)]
    assert graces == pytest.approx([SHORTEST_GRACE, GRACE, 0.15, LONGEST_GRACE])


def test_a_strangers_connection_keeps_no_race_from_failing() -> None:
    patience = Patience("tcp", 0.1)
    idle = [patience.is_idle]
    for step, group in ((patience.begin, "incoming"), (patience.begin, "udp"), (patience.end, "udp")):
        step(group)  # type: ignore[arg-type]
        idle.append(patience.is_idle)
    assert idle == [True, True, False, True]


def test_groups() -> None:
    assert [group_of(name) for name in ("lan", "tcp-predict", "udp-birthday", "relay")] == [
        "tcp",
        "tcp",
        "udp",
        "relay",
    ]
