"""The checks without sockets: what is sent and when, who has which role, and when a path is believed to live."""

from __future__ import annotations

import itertools

import pytest
from checks_support import STRANGER, A, B, Side, Wire, filtering_nats, machine, nominated, pair, request

from ntcpsock._address import Endpoint
from ntcpsock._traversal.checks.machine import CONSENT_INTERVAL, CONSENT_TIMEOUT, MAX_TRIES, TA, ChecksMachine
from ntcpsock._traversal.checks.pairs import Heard, Lost, Nominated, Outgoing, Valid
from ntcpsock._traversal.stun.attributes import ErrorCodeAttribute
from ntcpsock._traversal.stun.constants import MessageClass
from ntcpsock._traversal.stun.message import decode_message

# --- the way of the checks ------------------------------------------------------------------------


def test_both_sides_at_once_through_nats_that_filter() -> None:
    """The first checks cross: heard after one way, valid after both, nominated one round trip later."""
    wire = pair()
    filtering_nats(wire)
    wire.run(until=1.0)
    assert wire.a.saw(Heard) == wire.b.saw(Heard) == [0.05]
    assert wire.a.saw(Valid) == wire.b.saw(Valid) == [0.1]
    assert wire.a.saw(Nominated) == [pytest.approx(0.2)]
    assert wire.b.saw(Nominated) == [pytest.approx(0.15)]
    assert wire.a.machine.selected == (0, B)
    assert wire.b.machine.selected == (0, A)
    (valid,) = [event for _, event in wire.a.events if isinstance(event, Valid)]
    assert valid.mapped == A
    assert valid.rtt == pytest.approx(0.1)


@pytest.mark.parametrize("late", [A, B])
@pytest.mark.parametrize("skew", [0.06, 0.3, 1.7])
def test_a_late_side_costs_no_repetition(late: Endpoint, skew: float) -> None:
    """The early side's checks are lost at the other's NAT; the late side's first one triggers another at once."""
    wire = pair()
    filtering_nats(wire, {late: skew})
    wire.run(until=4.0)
    assert wire.a.saw(Valid)
    assert wire.b.saw(Valid)
    assert max(wire.a.saw(Valid) + wire.b.saw(Valid)) <= skew + 0.15 + 0.001


def test_low_ttl_first() -> None:
    """Until the other side is expected to have started, checks open our NAT and do not come to the other one."""
    wire = pair()
    wire.a.machine = machine("dialer", low_ttl=3)
    wire.a.machine.add_pair(0, B, now=0.0, low_for=0.2)
    filtering_nats(wire, {B: 0.21})
    wire.run(until=1.0)
    requests = [(when, out.ttl) for when, out in wire.a.sent if out.data[0] == 0]
    assert requests[0] == (0.0, 3)
    assert (0.2, None) in requests
    assert all((ttl is None) == (when >= 0.2) for when, ttl in requests)
    assert max(wire.a.saw(Valid) + wire.b.saw(Valid)) <= 0.4


def test_pairs_start_one_after_the_other() -> None:
    side = machine("dialer")
    for number in range(4):
        side.add_pair(0, Endpoint("192.0.2.9", 100 + number), now=0.0)
    starts: list[float] = []
    now = 0.0
    while len(starts) < 4:
        side.handle_timeout(now)
        starts += [now for _ in side.datagrams_to_send()]
        due = side.next_timeout()
        assert due is not None
        now = due
    assert starts == pytest.approx([0.0, TA, 2 * TA, 3 * TA])


def test_unanswered_checks_are_repeated_ever_more_seldom_and_end() -> None:
    lone = Wire(Side(machine("dialer"), A), Side(machine("listener"), B), passes=lambda *_: False)
    lone.a.machine.add_pair(0, B, now=0.0)
    lone.run(until=60.0)
    times = [when for when, _ in lone.a.sent]
    gaps = [round(after - before, 6) for before, after in itertools.pairwise(times)]
    assert len(times) == MAX_TRIES
    assert gaps == sorted(gaps)
    assert gaps[0] == pytest.approx(0.25)
    assert lone.a.machine.is_exhausted
    assert lone.a.machine.next_timeout() is None


def test_an_unproven_address_gets_one_check() -> None:
    lone = Wire(Side(machine("dialer"), A), Side(machine("listener"), B), passes=lambda *_: False)
    lone.a.machine.add_pair(0, B, now=0.0, tries=1)
    lone.run(until=30.0)
    assert len(lone.a.sent) == 1


def test_a_lost_answer_is_asked_for_again() -> None:
    wire = pair()
    dropped = []

    def passes(now: float, side: Side, out: Outgoing) -> bool:
        if now < 0.2:
            dropped.append(out)
            return False
        return True

    wire.passes = passes
    wire.run(until=2.0)
    assert dropped
    assert wire.a.saw(Nominated)
    assert wire.b.saw(Nominated)


def test_a_source_that_was_not_announced_is_checked_too() -> None:
    """Peer-reflexive (RFC 8445 section 7.3.1.3): the other side's NAT gives it another port for us."""
    wire = pair()
    elsewhere = Endpoint(A.host, 4321)
    wire.a.address = elsewhere
    wire.run(until=1.0)
    assert wire.b.machine.selected == (0, elsewhere)
    assert wire.a.machine.selected == (0, B)


def test_a_closed_machine_is_silent() -> None:
    wire = nominated()
    a: ChecksMachine = wire.a.machine
    a.close()
    assert not a.handle_datagram(0, request(), A, 1.0)
    assert a.next_timeout() is None
    assert not a.add_pair(0, STRANGER, now=1.0)


def test_a_late_caller_makes_up_for_a_moment_and_no_more() -> None:
    """As a busy machine is late: the rate holds, and after a long pause it is no burst."""
    side = machine("dialer", pace=0.002)
    for number in range(1000):
        side.add_pair(0, Endpoint("192.0.2.9", 1000 + number), now=0.0, tries=1, delay=number * 0.004)
    sent = []
    for tick in range(1, 101):
        side.handle_timeout(tick * 0.02)
        sent.append(len(side.datagrams_to_send()))
    assert sum(sent) == pytest.approx(2.0 / 0.004, rel=0.02)
    assert max(sent) <= 10
    side.handle_timeout(4.0)
    assert len(side.datagrams_to_send()) <= 0.05 / 0.002 + 2


def test_a_path_longer_than_the_repetitions_is_nominated_too() -> None:
    """The answer to any of the nominating checks counts, not only to the last one."""
    wire = pair(rtt=0.05)
    wire.delay = 0.6
    wire.run(until=6.0)
    assert wire.a.saw(Nominated)
    assert wire.b.saw(Nominated)


# --- roles ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "theirs"), [(9, 5), (5, 9)])
@pytest.mark.parametrize("controlling", [True, False])
def test_a_role_conflict_is_settled_by_the_tie_breakers(ours: int, theirs: int, controlling: bool) -> None:
    a = Side(machine("dialer", controlling=controlling, tie_breaker=ours), A)
    b = Side(machine("listener", controlling=controlling, tie_breaker=theirs), B)
    a.machine.add_pair(0, B, now=0.0)
    b.machine.add_pair(0, A, now=0.0)
    wire = Wire(a, b)
    wire.run(until=2.0)
    assert a.machine.controlling is not b.machine.controlling
    assert a.machine.controlling is (ours > theirs)
    assert a.machine.selected == (0, B)
    assert b.machine.selected == (0, A)


def test_a_conflict_is_refused_with_487() -> None:
    side = machine("listener", tie_breaker=9)
    side.controlling = True
    assert side.handle_datagram(0, request(), A, 0.0)
    (answer,) = side.datagrams_to_send()
    message = decode_message(answer.data)
    error = message.get(ErrorCodeAttribute)
    assert error is not None
    assert (message.message_class, error.code) == (MessageClass.ERROR_RESPONSE, 487)
    assert len(answer.data) <= len(request())


# --- consent --------------------------------------------------------------------------------------


def test_an_idle_path_is_asked_for_consent() -> None:
    wire = nominated()
    for side in (wire.a, wire.b):
        side.sent.clear()
    wire.run(until=101.0)
    for side in (wire.a, wire.b):
        requests = [when for when, out in side.sent if out.data[0] == 0]
        assert 100 / (1.2 * CONSENT_INTERVAL) - 1 <= len(requests) <= 100 / (0.8 * CONSENT_INTERVAL) + 1
        assert not side.saw(Lost)


def test_without_an_answer_a_path_ends() -> None:
    wire = nominated()
    wire.passes = lambda *_: False
    wire.run(until=60.0)
    for side in (wire.a, wire.b):
        (lost,) = side.saw(Lost)
        assert (
            CONSENT_TIMEOUT - 1.2 * CONSENT_INTERVAL <= lost - 1.0 <= CONSENT_TIMEOUT + 1.2 * CONSENT_INTERVAL
        )
        assert side.machine.next_timeout() is None


@pytest.mark.parametrize("mover", ["a", "b"])
def test_a_nat_that_gives_another_port_is_followed(mover: str) -> None:
    """The next check comes from the new port, is answered, and makes the pair that is used from then on."""
    wire = nominated()
    moved = Endpoint(getattr(wire, mover).address.host, 5555)
    other = wire.b if mover == "a" else wire.a
    getattr(wire, mover).address = moved
    wire.run(until=1.0 + 2.5 * CONSENT_INTERVAL)
    assert other.machine.selected == (0, moved)
    assert not other.saw(Lost)
    wire.run(until=60.0)
    assert not other.saw(Lost)
    assert not getattr(wire, mover).saw(Lost)


def test_a_pair_is_in_doubt_when_two_checks_could_have_come() -> None:
    wire = nominated()
    assert not wire.a.machine.is_doubtful(1.0)
    wire.passes = lambda *_: False
    wire.run(until=5.0)
    assert not wire.a.machine.is_doubtful(5.0)
    wire.run(until=9.0)
    assert wire.a.machine.is_doubtful(9.0)


def test_doubts_are_asked_at_once_and_not_too_often() -> None:
    wire = nominated()
    wire.a.sent.clear()
    for tick in range(100):
        wire.a.machine.probe(1.0 + tick / 100)
        wire.run(until=1.0 + tick / 100)
    assert 1 <= len([out for _, out in wire.a.sent if out.data[0] == 0]) <= 4
