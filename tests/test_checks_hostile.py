"""What forged, stolen, replayed and mutated checks achieve: nothing, or no more than they cost."""

from __future__ import annotations

import pytest
from checks_support import DIALER, LISTENER, STRANGER, A, B, machine, pair, request
from fuzz_support import check_decoder, mutations
from hypothesis import given
from hypothesis import strategies as st

from ntcpsock._address import Endpoint
from ntcpsock._traversal.checks.machine import MAX_REFLEXIVE, REFLEXIVE_TRIES
from ntcpsock._traversal.checks.message import (
    decode_request_untrusted,
    decode_response_untrusted,
    encode_error,
    encode_success,
    fragment_untrusted,
    new_transaction_id,
)
from ntcpsock._traversal.checks.pairs import Valid
from ntcpsock._traversal.stun.attributes import ErrorCodeAttribute, UnknownAttribute, Username
from ntcpsock._traversal.stun.constants import ErrorCode, MessageClass
from ntcpsock._traversal.stun.message import Message, binding_request, decode_message, encode_message
from ntcpsock._traversal.stun.usages import IceControlling, Priority


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
