"""Checks that are replayed from elsewhere, and what it takes to know them for as long as a path lives."""

from __future__ import annotations

import sys

from ntcpsock._address import Endpoint
from ntcpsock._traversal.checks.message import new_transaction_id
from ntcpsock._traversal.checks.replays import REMEMBERED, Replays

WAY = (0, Endpoint("192.0.2.1", 1000))
ELSEWHERE = (0, Endpoint("192.0.2.1", 1001))


def test_a_transaction_belongs_to_the_way_that_it_came_by_first() -> None:
    replays = Replays()
    first, second = new_transaction_id(), new_transaction_id()
    assert not replays.is_replayed(first, WAY)
    assert not replays.is_replayed(first, (0, Endpoint("192.0.2.1", 1000))), "said again"
    assert replays.is_replayed(first, ELSEWHERE)
    assert replays.is_replayed(first, (1, WAY[1])), "at another socket of ours"
    assert not replays.is_replayed(first, WAY)
    assert not replays.is_replayed(second, ELSEWHERE)
    assert replays.is_replayed(second, WAY)


def test_the_newest_are_remembered_in_little_memory() -> None:
    replays = Replays()
    seen = [new_transaction_id() for _ in range(20 * REMEMBERED)]
    for transaction_id in seen:
        replays.is_replayed(transaction_id, WAY)
    assert all(replays.is_replayed(transaction_id, ELSEWHERE) for transaction_id in seen[-REMEMBERED:])
    assert not replays.is_replayed(seen[0], ELSEWHERE), "forgotten"
    assert sys.getsizeof(replays._transactions) + sys.getsizeof(replays._ways) < 6000
