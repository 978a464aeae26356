"""The schedule of connect() calls, without a clock."""

import errno
import random

import pytest

from ntcpsock._traversal.punch.machine import SHORTEST_RETRY_SPAN, UNREACHABLE_PAUSE, PunchMachine


def started(rtt: float = 0.1, max_tries: int = 64) -> PunchMachine:
    machine = PunchMachine(rtt, max_tries, random.Random(0))
    machine.start(10.0)
    assert machine.next_timeout() == 10.0
    machine.connecting()
    assert machine.next_timeout() is None
    return machine


def test_refusals_are_retried_after_random_pauses_within_the_rtt() -> None:
    machine = started(max_tries=1000)
    pauses = []
    now = 10.0
    for _ in range(200):
        machine.failed(errno.ECONNREFUSED, now)
        when = machine.next_timeout()
        assert when is not None
        pauses.append(when - now)
        now = when
        machine.connecting()
    assert 0 <= min(pauses) < 0.01
    assert 0.09 < max(pauses) <= 0.1
    assert len(set(pauses)) == 200
    assert machine.tries == 201


def test_a_tiny_rtt_is_no_busy_loop() -> None:
    machine = started(rtt=0.0)
    waits = []
    for _ in range(20):
        machine.failed(errno.ECONNREFUSED, 0.0)
        waits.append(machine.next_timeout() or 0.0)
        machine.connecting()
    assert max(waits) <= SHORTEST_RETRY_SPAN
    assert sum(waits) > SHORTEST_RETRY_SPAN


@pytest.mark.parametrize("code", [errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT])
def test_unreachable_is_retried_later(code: int) -> None:
    machine = started()
    machine.failed(code, 20.0)
    when = machine.next_timeout()
    assert when is not None
    assert 20.0 + UNREACHABLE_PAUSE <= when <= 20.0 + UNREACHABLE_PAUSE + 0.1


@pytest.mark.parametrize("code", [errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EISCONN, errno.EPERM])
def test_these_end_it(code: int) -> None:
    machine = started()
    machine.failed(code, 20.0)
    assert machine.finished
    assert machine.next_timeout() is None


def test_tries_are_bounded() -> None:
    machine = started(max_tries=3)
    for _ in range(2):
        machine.failed(errno.ECONNREFUSED, 0.0)
        machine.connecting()
    machine.failed(errno.ECONNREFUSED, 0.0)
    assert machine.finished == "3 attempts, last ECONNREFUSED"
    assert machine.next_timeout() is None
