"""Timers of port mapping by table, with no clock at all."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Literal

import pytest

from ntcpsock._errors import BadMessage
from ntcpsock._traversal.portmap.machine import (
    CHECK_INTERVAL,
    EpochWatch,
    Lease,
    Transaction,
    natpmp_waits,
    pcp_waits,
)

START = 1000.0


def decode(data: bytes) -> bytes | None:
    if data.startswith(b"bad"):
        raise BadMessage("noise")
    return data if data.startswith(b"ours") else None


def transaction(waits: Iterator[float], seconds: float) -> Transaction[bytes]:
    return Transaction(b"?", decode, waits, now=START, deadline=START + seconds)


def run_unanswered(machine: Transaction[bytes]) -> tuple[list[float], float]:
    """When it sent, and when it gave up, both counted from the start."""
    sent = [0.0] * len(machine.datagrams_to_send())
    now = START
    while (due := machine.next_timeout()) is not None:
        now = due
        machine.handle_timeout(now)
        sent += [now - START] * len(machine.datagrams_to_send())
    assert machine.finished
    assert machine.response is None
    return sent, now - START


def test_natpmp_schedule() -> None:
    """RFC 6886 section 3.1: nine requests from 250 ms on, each wait twice the one before, 64 s after the last."""
    sent, gave_up = run_unanswered(transaction(natpmp_waits(), 1000))
    assert sent == [0, 0.25, 0.75, 1.75, 3.75, 7.75, 15.75, 31.75, 63.75]
    assert gave_up == 127.75


def test_a_deadline_cuts_the_schedule() -> None:
    assert run_unanswered(transaction(natpmp_waits(), 1.0)) == ([0, 0.25, 0.75], 1.0)
    assert run_unanswered(transaction(pcp_waits(random.Random(1)), 1.0)) == ([0], 1.0)


@pytest.mark.parametrize("seed", range(20))
def test_pcp_schedule(seed: int) -> None:
    """RFC 6887 section 8.1.1: IRT 3 s, doubled up to MRT 1024 s, each by at most a tenth shorter or longer."""
    waits = list(islice(pcp_waits(random.Random(seed)), 16))
    assert 2.7 <= waits[0] <= 3.3
    for before, after in pairwise(waits):
        base = min(2 * before, 1024)
        assert 0.9 * base <= after <= 1.1 * base
    assert max(waits) <= 1.1 * 1024
    assert waits[-1] >= 0.9 * 1024


def test_the_first_response_ends_it() -> None:
    machine = transaction(natpmp_waits(), 10)
    for noise in (b"bad", b"theirs", b""):
        machine.handle_datagram(noise)
    assert not machine.finished
    assert machine.dropped == 3
    machine.handle_datagram(b"ours 1")
    machine.handle_datagram(b"ours 2")
    assert machine.response == b"ours 1"
    assert machine.next_timeout() is None
    assert machine.datagrams_to_send() == []


@pytest.mark.parametrize(
    ("rule", "elapsed", "epoch", "lost"),
    [
        # RFC 6886 section 3.6: 7/8 of the time that has passed, less 2 s.
        ("nat-pmp", 100.0, 600, False),
        ("nat-pmp", 100.0, 586, False),
        ("nat-pmp", 100.0, 585, True),
        ("nat-pmp", 100.0, 3, True),
        ("nat-pmp", 100.0, 900, False),
        # RFC 6887 section 8.5: back by more than one, or a sixteenth and 2 s apart either way.
        ("pcp", 100.0, 600, False),
        ("pcp", 0.5, 499, False),
        ("pcp", 0.5, 498, True),
        ("pcp", 100.0, 592, False),
        ("pcp", 100.0, 591, True),
        ("pcp", 100.0, 608, False),
        ("pcp", 100.0, 609, True),
        ("pcp", 100.0, 3, True),
    ],
)
def test_epochs(rule: Literal["pcp", "nat-pmp"], elapsed: float, epoch: int, lost: bool) -> None:
    watch = EpochWatch(rule)
    watch.handle_epoch(500, START)
    assert watch.losses == 0
    watch.handle_epoch(epoch, START + elapsed)
    assert watch.losses == lost
    watch.handle_epoch(epoch + 10, START + elapsed + 10)
    assert watch.losses == lost


def actions(lease: Lease, until: float, *, renews: bool, intact: bool = True) -> list[tuple[float, str]]:
    """What a lease wants and when, counted from the start."""
    seen: list[tuple[float, str]] = []
    while (now := lease.next_timeout()) < START + until:
        what = lease.due(now)
        seen.append((now - START, what))
        if what == "check":
            lease.checked(intact=intact, now=now)
        elif what == "renew" and renews:
            lease.granted(40, now)
        elif what == "renew":
            lease.renewal_failed(now)
        elif what == "ended":
            break
    return seen


def test_a_lease_is_renewed_at_half_of_its_life() -> None:
    assert actions(Lease(40, START), 90, renews=True) == [
        (20, "renew"),
        (40, "renew"),
        (60, "renew"),
        (80, "renew"),
    ]


def test_a_lease_that_cannot_be_renewed_ends_in_time() -> None:
    """RFC 6887 section 11.2.1: after half of what is left each time, and not more often than every 4 s."""
    assert actions(Lease(40, START), 90, renews=False) == [
        (20, "renew"),
        (30, "renew"),
        (35, "renew"),
        (39, "renew"),
        (40, "ended"),
    ]


def test_the_router_is_asked_between_renewals() -> None:
    assert actions(Lease(400, START), 201, renews=True) == [
        (60, "check"),
        (120, "check"),
        (180, "check"),
        (200, "renew"),
    ]


def test_what_a_router_has_lost_is_renewed_at_once() -> None:
    assert actions(Lease(4000, START), 61, renews=True, intact=False) == [(60, "check"), (60, "renew")]


def test_a_lease_without_end_is_only_looked_at() -> None:
    lease = Lease(0, START)
    assert actions(lease, 130, renews=True) == [(60, "check"), (120, "check")]
    lease.checked(intact=False, now=START + 130)
    assert lease.due(START + 130) == "renew"
    lease.renewal_failed(START + 130)
    assert lease.due(START + 131) == "nothing"
    assert lease.next_timeout() == START + 130 + CHECK_INTERVAL
