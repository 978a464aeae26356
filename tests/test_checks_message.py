"""Checks and their answers as bytes: both sides' credentials, what others' are, and priorities."""

from __future__ import annotations

from contextlib import suppress

import pytest
from checks_support import DIALER, LISTENER, TOKEN, A, request
from hypothesis import given
from hypothesis import strategies as st

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._traversal.checks.message import (
    candidate_priority,
    decode_request_untrusted,
    decode_response_untrusted,
    derive_credentials,
    encode_success,
    fragment_untrusted,
    new_transaction_id,
    pair_priority,
)
from ntcpsock._traversal.stun.attributes import Username
from ntcpsock._traversal.stun.message import binding_request, encode_message
from ntcpsock._traversal.stun.usages import IceControlling, Priority


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
