"""Joint attempts take turns: one at a time between two nodes, whoever leads, and a bounded number in all."""

from __future__ import annotations

import pytest
import trio

from ntcpsock._traversal.pairs import FOLLOWS_IN_A_ROW, FOLLOWS_PER_SECOND, HANDOVER, MAX_AT_ONCE, Pairs

LOW, MIDDLE, HIGH = b"a", b"m", b"z"
DIAL, NEXT_DIAL = b"1", b"2"


async def lead(
    pairs: Pairs, key: bytes, seconds: float, log: list[tuple[float, str]], name: str = "lead"
) -> None:
    finished = False
    async with pairs.lead(key):
        log.append((trio.current_time(), f"{name} starts"))
        await trio.sleep(seconds)
        finished = True
    log.append((trio.current_time(), f"{name} {'ends' if finished else 'gives way'}"))


async def follow(
    pairs: Pairs, key: bytes, seconds: float, log: list[tuple[float, str]], dial: bytes = DIAL
) -> None:
    async with pairs.follow(key, dial) as scope:
        if scope is None:
            log.append((trio.current_time(), "follow refused"))
            return
        log.append((trio.current_time(), "follow starts"))
        await trio.sleep(seconds)
        log.append((trio.current_time(), "follow ends"))


def since(begin: float, log: list[tuple[float, str]]) -> list[tuple[float, str]]:
    return [(round(when - begin, 6), what) for when, what in log]


async def test_dials_of_one_pair_take_turns(autojump_clock: trio.testing.MockClock) -> None:
    pairs, log, begin = Pairs(MIDDLE), list[tuple[float, str]](), trio.current_time()
    async with trio.open_nursery() as nursery:
        for name in ("first", "second", "third"):
            nursery.start_soon(lead, pairs, LOW, 1.0, log, name)
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(lead, pairs, HIGH, 2.0, log, "another pair")
    assert sorted(since(begin, log)) == [
        (0.0, "another pair starts"),
        (0.0, "first starts"),
        (1.0, "first ends"),
        (1.0, "second starts"),
        (2.0, "another pair ends"),
        (2.0, "second ends"),
        (2.0, "third starts"),
        (3.0, "third ends"),
    ]
    assert not pairs._pairs


async def test_who_is_cancelled_in_the_queue_holds_nobody_up(autojump_clock: trio.testing.MockClock) -> None:
    pairs, log, begin = Pairs(MIDDLE), list[tuple[float, str]](), trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lead, pairs, LOW, 3.0, log, "first")
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1.0):
            await lead(pairs, LOW, 1.0, log, "impatient")
        nursery.start_soon(lead, pairs, LOW, 1.0, log, "last")
    assert since(begin, log) == [
        (0.0, "first starts"),
        (3.0, "first ends"),
        (3.0, "last starts"),
        (4.0, "last ends"),
    ]


async def test_two_nodes_that_dial_each_other_do_not_wait_for_each_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The one with the lower key goes first: the other one gives way, and refuses nothing."""
    low, high = Pairs(LOW), Pairs(HIGH)
    begin = trio.current_time()
    of_low, of_high = list[tuple[float, str]](), list[tuple[float, str]]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lead, low, HIGH, 2.0, of_low)
        nursery.start_soon(lead, high, LOW, 2.0, of_high)
        await trio.sleep(0.1)  # the offers cross
        nursery.start_soon(follow, low, HIGH, 1.9, of_low)
        nursery.start_soon(follow, high, LOW, 1.9, of_high)
        await trio.sleep(0.1)
        nursery.start_soon(lead, high, LOW, 1.0, of_high)
    assert since(begin, of_low) == [(0.0, "lead starts"), (0.1, "follow refused"), (2.0, "lead ends")]
    assert sorted(since(begin, of_high)) == [
        (0.0, "lead starts"),
        (0.1, "follow starts"),
        (0.1, "lead gives way"),
        (2.0, "follow ends"),
        (2.0, "lead starts"),
        (3.0, "lead ends"),
    ]


async def test_a_newer_round_of_the_same_leader_ends_the_one_before(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pairs, log, begin = Pairs(MIDDLE), list[tuple[float, str]](), trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow, pairs, LOW, 5.0, log)
        await trio.sleep(1)
        nursery.start_soon(follow, pairs, LOW, 5.0, log)
    assert since(begin, log) == [(0.0, "follow starts"), (1.0, "follow starts"), (6.0, "follow ends")]
    assert pairs._following == 0


async def test_a_round_of_another_dial_waits_for_the_last_word_of_the_one_before(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The leader has chosen a connection, and the other dial's offer overtakes its word; or it never comes."""
    for lasts, starts in ((0.3, 0.3), (5.0, 0.1 + HANDOVER)):
        pairs, log, begin = Pairs(MIDDLE), list[tuple[float, str]](), trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, pairs, LOW, lasts, log)
            await trio.sleep(0.1)
            nursery.start_soon(follow, pairs, LOW, 1.0, log, NEXT_DIAL)
        whole = [(lasts, "follow ends")] if lasts < HANDOVER else []
        assert since(begin, log) == [
            (0.0, "follow starts"),
            *whole,
            (starts, "follow starts"),
            (starts + 1.0, "follow ends"),
        ]


async def test_a_node_that_dials_itself_leads_and_follows(autojump_clock: trio.testing.MockClock) -> None:
    pairs, log = Pairs(MIDDLE), list[tuple[float, str]]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lead, pairs, MIDDLE, 1.0, log)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(follow, pairs, MIDDLE, 0.5, log)
    assert [what for _, what in log] == ["lead starts", "follow starts", "follow ends", "lead ends"]


async def test_many_nodes_cannot_make_us_follow_without_bound(autojump_clock: trio.testing.MockClock) -> None:
    pairs, log = Pairs(MIDDLE), list[tuple[float, str]]()
    async with trio.open_nursery() as nursery:
        for number in range(MAX_AT_ONCE + 3):
            nursery.start_soon(follow, pairs, b"%d" % number, 1.0, log)
    assert [what for _, what in log].count("follow refused") == 3
    async with pairs.follow(LOW, DIAL) as scope:
        assert scope is not None


async def test_one_leader_cannot_begin_without_end(autojump_clock: trio.testing.MockClock) -> None:
    """A new round every hundredth of a second, for ten seconds."""
    pairs, begun = Pairs(MIDDLE), 0
    for _ in range(1000):
        async with pairs.follow(LOW, DIAL) as scope:
            begun += scope is not None
            await trio.sleep(0.01)
    assert begun <= FOLLOWS_IN_A_ROW + 10 * FOLLOWS_PER_SECOND + 1
    assert begun > 10 * FOLLOWS_PER_SECOND


async def test_an_attempt_that_fails_frees_its_place(autojump_clock: trio.testing.MockClock) -> None:
    pairs = Pairs(MIDDLE)
    with pytest.raises(OSError, match="failed"):
        async with pairs.lead(LOW):
            raise OSError("failed")
    with pytest.raises(OSError, match="failed"):
        async with pairs.follow(LOW, DIAL):
            raise OSError("failed")
    log: list[tuple[float, str]] = []
    await lead(pairs, LOW, 0.1, log)
    assert [what for _, what in log] == ["lead starts", "lead ends"]
    assert not pairs._pairs
