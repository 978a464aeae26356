"""The frames of datagrams, and fragments put together again."""

from __future__ import annotations

import random

import pytest
from fuzz_support import check_decoder, mutations
from hypothesis import given
from hypothesis import strategies as st

from ntcpsock._errors import BadMessage
from ntcpsock._session.datagram_frames import (
    DATAGRAM_KIND,
    HEADER_LENGTH,
    MAX_PAYLOAD,
    REFUSED_KIND,
    Close,
    Datagram,
    Fragment,
    Refused,
    decode_frame_untrusted,
    decode_open_untrusted,
    encode_close,
    encode_datagram,
    encode_open,
    encode_opened,
    encode_refused,
)
from ntcpsock._session.reassembly import MAX_BYTES, MAX_INCOMPLETE, PATIENCE, Reassembly

ports = st.integers(1, 65535)


def fragments_of(payload: bytes, number: int = 1, limit: int = 1200) -> list[Fragment]:
    frames = [decode_frame_untrusted(data) for data in encode_datagram(1, 2, payload, limit, number)]
    assert all(isinstance(frame, Fragment) for frame in frames)
    return frames  # type: ignore[return-value]


@given(ports, ports, st.binary(max_size=1195))
def test_what_fits_is_one_frame(source: int, destination: int, payload: bytes) -> None:
    (data,) = encode_datagram(source, destination, payload, 1200, 0)
    assert len(data) == HEADER_LENGTH + len(payload)
    assert decode_frame_untrusted(data) == Datagram(source, destination, payload)


@given(st.integers(0, MAX_PAYLOAD), st.integers(512, 65535), st.integers(0, 1000))
def test_every_size_comes_together_in_any_order(size: int, limit: int, seed: int) -> None:
    chance = random.Random(seed)
    payload = chance.randbytes(size)
    frames = [decode_frame_untrusted(data) for data in encode_datagram(7, 9, payload, limit, 2**32 + 5)]
    if size + HEADER_LENGTH <= limit:
        assert frames == [Datagram(7, 9, payload)]
        return
    chance.shuffle(frames)
    reassembly = Reassembly()
    *first, last = (frame for frame in frames if isinstance(frame, Fragment))
    assert [reassembly.add_untrusted(frame, 0.0) for frame in first] == [None] * len(first)
    assert reassembly.add_untrusted(first[0], 0.0) is None  # delivered twice
    assert reassembly.add_untrusted(last, 0.0) == Datagram(7, 9, payload)
    assert (reassembly.waiting, reassembly.lost) == (0, 0)


def test_each_frame_keeps_to_the_limit() -> None:
    for limit in (512, 1199, 1200, 9000):
        assert max(len(data) for data in encode_datagram(1, 2, bytes(MAX_PAYLOAD), limit, 1)) <= limit


def test_what_udp_cannot_carry_is_not_encoded() -> None:
    with pytest.raises(ValueError, match="65508"):
        encode_datagram(1, 2, bytes(MAX_PAYLOAD + 1), 1200, 1)
    with pytest.raises(ValueError, match="a road of 100"):
        encode_datagram(1, 2, bytes(600), 100, 1)


def test_the_other_frames() -> None:
    assert decode_frame_untrusted(encode_refused(Refused(5, 53))) == Refused(5, 53)
    assert decode_frame_untrusted(encode_close()) == Close()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes([DATAGRAM_KIND, 0, 1, 0]),
        bytes([DATAGRAM_KIND, 0, 0, 0, 1]),
        bytes([DATAGRAM_KIND, 0, 1, 0, 0]),
        bytes([REFUSED_KIND, 0, 1, 0, 1, 0]),
        bytes([0x7F, 0, 1, 0, 1, 5]),
        encode_close() + b"\0",
        bytes([DATAGRAM_KIND, 0, 1, 0, 1]) + bytes(MAX_PAYLOAD + 1),
        bytes.fromhex("71 0001 0001 00000001 00 01") + b"one of one",
        bytes.fromhex("71 0001 0001 00000001 02 02") + b"third of two",
        bytes.fromhex("71 0001 0001 00000001 00 02"),
        bytes.fromhex("71 0001 0001 00000001 00"),
    ],
)
def test_bad_frames(data: bytes) -> None:
    with pytest.raises(BadMessage):
        decode_frame_untrusted(data)


def test_the_kinds_are_taken_for_quic_on_a_shared_socket() -> None:
    # RFC 7983 section 7 and RFC 9443: STUN 0-3, DTLS 20-63, TURN channels 64-79, QUIC with its fixed bit 64-127.
    opening = encode_open(bytes(16), bytes(32)), encode_opened(bytes(32))
    for data in (
        encode_close(),
        encode_refused(Refused(1, 1)),
        *opening,
        *encode_datagram(1, 1, bytes(9), 1200, 1),
        *encode_datagram(1, 1, bytes(2000), 1200, 1),
    ):
        assert 79 < data[0] < 128
    assert decode_open_untrusted(opening[0]) == (bytes(16), bytes(32))
    assert decode_open_untrusted(opening[1]) is None
    for word in opening:
        with pytest.raises(BadMessage):
            decode_frame_untrusted(word)


def test_a_lost_fragment_loses_its_datagram_alone() -> None:
    reassembly = Reassembly()
    one, two = fragments_of(bytes(3000), 1), fragments_of(bytes(3000), 2)
    for fragment in one[1:]:
        reassembly.add_untrusted(fragment, 0.0)
    assert [reassembly.add_untrusted(fragment, 1.0) for fragment in two][-1] is not None
    assert reassembly.waiting > 0
    assert reassembly.add_untrusted(fragments_of(bytes(3000), 3)[0], PATIENCE) is None
    assert reassembly.lost == 1
    # What came too late begins anew, and does not come together with what is gone.
    assert reassembly.add_untrusted(one[0], PATIENCE) is None


def test_a_contradiction_ends_the_datagram() -> None:
    reassembly = Reassembly()
    reassembly.add_untrusted(Fragment(1, 2, 3, 0, 3, b"a"), 0.0)
    assert reassembly.add_untrusted(Fragment(1, 2, 3, 1, 2, b"b"), 0.0) is None
    assert (reassembly.waiting, reassembly.lost) == (0, 1)
    for index in range(3):
        reassembly.add_untrusted(Fragment(1, 2, 4, index, 255, bytes(30000)), 0.0)
    assert (reassembly.waiting, reassembly.lost) == (0, 2)


def test_strangers_fill_no_memory() -> None:
    reassembly = Reassembly()
    for number in range(500):
        reassembly.add_untrusted(Fragment(1, 2, number, 0, 255, bytes(60_000)), 0.0)
        assert reassembly.waiting <= MAX_BYTES
    for number in range(10_000):
        reassembly.add_untrusted(Fragment(1, 2, number, 1, 255, b"x"), 0.0)
    assert len(reassembly._parts) <= MAX_INCOMPLETE


SEEDS = [
    *encode_datagram(5353, 53, b"question", 1200, 1),
    *encode_datagram(1, 65535, bytes(4000), 1200, 0xFFFFFFFF),
    encode_refused(Refused(5353, 53)),
    encode_close(),
]


def test_fuzz() -> None:
    check_decoder(decode_frame_untrusted, SEEDS, 20_000, 11)


@pytest.mark.slow
def test_fuzz_long() -> None:
    check_decoder(decode_frame_untrusted, SEEDS, 1_000_000, 12)


def test_fuzzed_fragments_come_to_nothing_or_to_datagrams_of_their_size() -> None:
    reassembly = Reassembly()
    for number, data in enumerate(mutations(SEEDS[1:-2], 20_000, 13)):
        try:
            frame = decode_frame_untrusted(data)
        except BadMessage:
            continue
        if isinstance(frame, Fragment):
            whole = reassembly.add_untrusted(frame, number / 100)
            assert whole is None or len(whole.payload) <= MAX_PAYLOAD
        assert 0 <= reassembly.waiting <= MAX_BYTES
