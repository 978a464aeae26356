"""The checks without sockets: who is believed, what is sent and when, and what hostile datagrams achieve."""

from __future__ import annotations

import itertools
from contextlib import suppress

import pytest
from checks_support import STRANGER, TOKEN, A, B, Side, Wire, filtering_nats, machine, pair
from fuzz_support import check_decoder, mutations
from hypothesis import given
from hypothesis import strategies as st

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._traversal.checks.machine import (
    CONSENT_INTERVAL,
    CONSENT_TIMEOUT,
    MAX_REFLEXIVE,
    MAX_TRIES,
    REFLEXIVE_TRIES,
    TA,
    ChecksMachine,
)
from ntcpsock._traversal.checks.message import (
    candidate_priority,
    decode_request_untrusted,
    decode_response_untrusted,
    derive_credentials,
    encode_error,
    encode_request,
    encode_success,
    fragment_untrusted,
    new_transaction_id,
    pair_priority,
)
from ntcpsock._traversal.checks.pairs import Heard, Lost, Nominated, Outgoing, Valid
from ntcpsock._traversal.stun.attributes import ErrorCodeAttribute, UnknownAttribute, Username
from ntcpsock._traversal.stun.constants import ErrorCode, MessageClass
from ntcpsock._traversal.stun.message import Message, binding_request, decode_message, encode_message
from ntcpsock._traversal.stun.usages import IceControlling, Priority

DIALER = derive_credentials(TOKEN, 1, "dialer")
LISTENER = derive_credentials(TOKEN, 1, "listener")


def request(
    transaction_id: bytes | None = None, *, controlling: bool = True, nominate: bool = False
) -> bytes:
    """A check of the dialer's."""
    return encode_request(
        DIALER,
        transaction_id or new_transaction_id(),
        priority=1,
        controlling=controlling,
        tie_breaker=5,
        nominate=nominate,
    )


# --- messages -------------------------------------------------------------------------------------


def test_both_sides_derive_matching_credentials() -> None:
    assert (DIALER.local_fragment, DIALER.local_password) == (
        LISTENER.remote_fragment,
        LISTENER.remote_password,
    )
    assert (DIALER.remote_fragment, DIALER.remote_password) == (
        LISTENER.local_fragment,
        LISTENER.local_password,
    )
    # RFC 8445 section 5.3: at least 24 and 128 bits.
    assert (len(DIALER.local_fragment), len(DIALER.local_password)) == (16, 32)
    others = [derive_credentials(TOKEN, 2, "dialer"), derive_credentials(bytes(32), 1, "dialer")]
    texts = [text for each in (DIALER, *others) for text in (each.local_password, each.remote_password)]
    assert len(set(texts)) == 6


def test_a_check_and_its_answer() -> None:
    data = request(b"t" * 12, nominate=True)
    assert fragment_untrusted(data) == LISTENER.local_fragment
    check = decode_request_untrusted(data, LISTENER)
    assert (check.priority, check.controlling, check.tie_breaker, check.nominates) == (1, True, 5, True)
    answer = encode_success(LISTENER, check.message, A)
    # No amplification: the smallest check is larger than its answer, over IPv6 too.
    assert len(answer) < len(request())
    assert len(encode_success(LISTENER, check.message, Endpoint("2001:db8::1", 1))) < len(request())
    response = decode_response_untrusted(answer, DIALER)
    assert (response.transaction_id, response.code, response.mapped) == (b"t" * 12, None, A)
    with pytest.raises(BadMessage):
        decode_response_untrusted(answer, LISTENER)


@pytest.mark.parametrize("side", [DIALER, derive_credentials(TOKEN, 2, "listener")])
def test_a_check_for_others_is_none(side: object) -> None:
    with pytest.raises(BadMessage, match="somebody else"):
        decode_request_untrusted(request(), side)  # type: ignore[arg-type]


def test_a_forged_check_is_none() -> None:
    username = Username(f"{LISTENER.local_fragment}:{DIALER.local_fragment}")
    message = binding_request(new_transaction_id(), username, Priority(1), IceControlling(1))
    with pytest.raises(BadMessage, match="integrity"):
        decode_request_untrusted(encode_message(message, integrity_key=b"guess"), LISTENER)
    with pytest.raises(BadMessage, match="integrity"):
        decode_request_untrusted(encode_message(message), LISTENER)
    incomplete = binding_request(new_transaction_id(), username)
    with pytest.raises(BadMessage, match="role"):
        decode_request_untrusted(encode_message(incomplete, integrity_key=LISTENER.local_key), LISTENER)


@given(st.binary(max_size=120), st.integers(0, 200), st.integers(0, 255))
def test_only_bad_message_leaves_the_decoders(noise: bytes, at: int, value: int) -> None:
    right = request()
    changed = bytearray(right)
    changed[at % len(changed)] = value
    for data in (noise, bytes(changed), right[:at]):
        for decode in (decode_request_untrusted, decode_response_untrusted):
            try:
                decode(data, LISTENER)
            except BadMessage:
                continue
            # What stands behind the integrity anybody may have added.
            assert data[:104] == right[:104]
        with suppress(BadMessage):
            fragment_untrusted(data)


def test_priorities_are_those_of_the_rfc() -> None:
    assert candidate_priority("host", 65535) == 2130706431
    assert candidate_priority("srflx", 65535) < candidate_priority("prflx", 65535)
    assert pair_priority(5, 3) == (3 << 32) + 2 * 5 + 1
    assert pair_priority(3, 5) == (3 << 32) + 2 * 5


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


def nominated() -> Wire:
    wire = pair()
    wire.run(until=1.0)
    assert wire.a.machine.selected
    assert wire.b.machine.selected
    return wire


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


# --- hostile --------------------------------------------------------------------------------------


def test_forged_checks_get_nothing() -> None:
    side = machine("listener")
    username = Username(f"{LISTENER.local_fragment}:{DIALER.local_fragment}")
    message = binding_request(new_transaction_id(), username, Priority(1), IceControlling(1))
    for _ in range(1000):
        assert not side.handle_datagram(0, encode_message(message, integrity_key=b"x"), STRANGER, 0.0)
    assert side.datagrams_to_send() == []
    assert side.next_event() is None
    assert side.refused == {"wrong integrity": 1000}


def test_a_check_that_is_replayed_from_elsewhere_gets_nothing() -> None:
    side = machine("listener")
    overheard = request()
    assert side.handle_datagram(0, overheard, A, 0.0)
    side.datagrams_to_send()
    for _ in range(100):
        assert not side.handle_datagram(0, overheard, STRANGER, 0.1)
    assert side.datagrams_to_send() == []
    assert side.refused == {"a replayed check": 100}
    # From where it came first it is a repetition, as the network makes them.
    assert side.handle_datagram(0, overheard, A, 0.2)


def test_a_check_that_is_stolen_aims_at_a_victim_no_more_than_it_cost() -> None:
    """On the way somebody takes a check away and sends it with a victim's address: a few small datagrams, and no
    path."""
    side = machine("listener", trusted=(A.host,))
    stolen = request()
    assert side.handle_datagram(0, stolen, STRANGER, 0.0)
    sent = list(side.datagrams_to_send())
    now = 0.0
    while (due := side.next_timeout()) is not None and now < 60:
        now = due
        side.handle_timeout(now)
        sent += side.datagrams_to_send()
    assert {out.remote for out in sent} == {STRANGER}
    assert len(sent) <= 1 + REFLEXIVE_TRIES
    assert side.selected is None


def test_sources_of_one_dial_are_few() -> None:
    side = machine("listener")
    for number in range(100):
        side.handle_datagram(0, request(), Endpoint("203.0.113.7", 1000 + number), 0.0)
    remotes = {out.remote for out in side.datagrams_to_send()}
    assert len(remotes) == MAX_REFLEXIVE
    assert side.refused == {"too many sources of one dial": 100 - MAX_REFLEXIVE}


def test_answers_of_others_change_nothing() -> None:
    wire = pair()
    wire.a.machine.handle_timeout(0.0)
    (check,) = wire.a.machine.datagrams_to_send()
    asked = decode_message(check.data)
    right = encode_success(LISTENER, asked, A)
    wrong = encode_success(DIALER, asked, A)
    other = encode_success(LISTENER, Message(1, MessageClass.REQUEST, b"x" * 12), A)
    a = wire.a.machine
    assert not a.handle_datagram(0, wrong, B, 0.1)
    assert not a.handle_datagram(0, other, B, 0.1)
    assert not a.handle_datagram(0, right, STRANGER, 0.1)
    assert not a.handle_datagram(1, right, B, 0.1)
    assert a.next_event() is None
    assert sum(a.refused.values()) == 4
    assert a.handle_datagram(0, right, B, 0.1)
    assert isinstance(a.next_event(), Valid)
    assert not a.handle_datagram(0, right, B, 0.1)


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_noise_is_refused(noise: list[bytes]) -> None:
    side = machine("listener")
    for data in noise:
        assert not side.handle_datagram(0, data, STRANGER, 0.0)
    assert side.datagrams_to_send() == []


def fuzz_machine(random_seed: int, count: int) -> None:
    """Whatever comes in only BadMessage leaves the decoders, and nothing the machine; a changed check gets no answer
    unless the change stands behind its integrity."""
    checks = [request(), request(nominate=True)]
    asked = decode_message(checks[0])
    answers = [encode_success(LISTENER, asked, A), encode_error(LISTENER, asked, ErrorCode.ROLE_CONFLICT)]
    check_decoder(fragment_untrusted, checks, count, random_seed)
    check_decoder(lambda data: decode_request_untrusted(data, LISTENER), checks, count, random_seed)
    check_decoder(lambda data: decode_response_untrusted(data, DIALER), answers, count, random_seed)
    side = machine("listener")
    for data in mutations([*checks, *answers], count, random_seed):
        if side.handle_datagram(0, data, STRANGER, 0.0):
            assert any(data[:100] == check[:100] for check in checks)
    assert len(side.datagrams_to_send()) <= 1 + count


def test_mutated_checks() -> None:
    fuzz_machine(1, 5_000)


@pytest.mark.slow
def test_many_mutated_checks() -> None:
    fuzz_machine(2, 300_000)


def test_an_attribute_that_must_be_understood_is_refused_with_420() -> None:
    side = machine("listener")
    username = Username(f"{LISTENER.local_fragment}:{DIALER.local_fragment}")
    message = Message(
        1,
        MessageClass.REQUEST,
        new_transaction_id(),
        (username, Priority(1), IceControlling(1), UnknownAttribute(0x7777, b"")),
    )
    side.handle_datagram(0, encode_message(message, integrity_key=LISTENER.local_key), A, 0.0)
    (answer,) = side.datagrams_to_send()
    error = decode_message(answer.data).get(ErrorCodeAttribute)
    assert error is not None
    assert error.code == 420


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
