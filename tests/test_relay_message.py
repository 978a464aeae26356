"""Tickets: who gets in with which, and that nothing but BadMessage leaves the decoder."""

from __future__ import annotations

import pytest
from fuzz_support import check_decoder
from relay_support import DIALER, LISTENER, SECRET

from ntcpsock._errors import BadMessage
from ntcpsock._traversal.relay.message import (
    LIFETIME,
    SESSION_LENGTH,
    Seat,
    from_header_untrusted,
    issue_pair,
    to_header,
    verify_untrusted,
)

NOW = 1_800_000_000.0
SESSION = b"s" * SESSION_LENGTH
PAIR = issue_pair(SECRET, SESSION, DIALER, LISTENER, NOW)


def test_both_sides_get_a_seat_each_in_one_session() -> None:
    dialer, listener = (verify_untrusted(SECRET, ticket, NOW) for ticket in PAIR)
    assert (dialer.session, dialer.seat) == (SESSION, Seat.DIALER)
    assert (listener.session, listener.seat) == (SESSION, Seat.LISTENER)
    assert dialer.node != listener.node


def test_a_header_brings_it_whole() -> None:
    assert from_header_untrusted(to_header(PAIR[0])) == PAIR[0]
    for value in (b"\xff", b"a", b"====", b"a b c d"):
        with pytest.raises(BadMessage):
            verify_untrusted(SECRET, from_header_untrusted(value), NOW)


def test_what_the_broker_did_not_issue_does_not_open() -> None:
    with pytest.raises(BadMessage, match="another issuer"):
        verify_untrusted(bytes(32), PAIR[0], NOW)
    with pytest.raises(BadMessage, match="not a ticket"):
        verify_untrusted(SECRET, PAIR[0][:-1], NOW)
    for number in range(len(PAIR[0])):
        changed = bytearray(PAIR[0])
        changed[number] ^= 1
        with pytest.raises(BadMessage, match="another issuer"):
            verify_untrusted(SECRET, bytes(changed), NOW)


def test_its_time_ends() -> None:
    verify_untrusted(SECRET, PAIR[0], NOW + LIFETIME)
    with pytest.raises(BadMessage, match="too old"):
        verify_untrusted(SECRET, PAIR[0], NOW + LIFETIME + 1)


def test_only_bad_message_leaves() -> None:
    def decode(value: bytes) -> None:
        assert verify_untrusted(SECRET, from_header_untrusted(value), NOW).session == SESSION

    check_decoder(decode, [to_header(ticket) for ticket in PAIR], 20_000, 1)
