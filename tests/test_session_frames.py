"""The frame codec: round trips, any split of the bytes, the limits, and damaged input."""

from __future__ import annotations

import pytest
from fuzz_support import check_decoder
from hypothesis import given
from hypothesis import strategies as st

from ntcpsock._errors import BadMessage
from ntcpsock._session.frames import (
    BIND_LENGTH,
    HEADER_LENGTH,
    LARGEST_OFFSET,
    LARGEST_PAYLOAD,
    LARGEST_RESET_CODE,
    Ack,
    Bind,
    Data,
    Decoder,
    Fin,
    Frame,
    Payload,
    Ping,
    Pong,
    Reset,
    decode_bind,
    encode_data_header,
    encode_frame,
)

offsets = st.integers(0, LARGEST_OFFSET)
nonces = st.integers(0, 2**64 - 1)
control = st.one_of(
    offsets.map(Ack),
    offsets.map(Fin),
    st.integers(0, LARGEST_RESET_CODE).map(Reset),
    nonces.map(Ping),
    nonces.map(Pong),
)
data_frames = st.tuples(st.integers(0, LARGEST_OFFSET - 300), st.binary(min_size=1, max_size=300))
anything = st.lists(st.one_of(control, data_frames), max_size=12)


def encode(frames: list[Ack | Fin | Reset | Ping | Pong | tuple[int, bytes]]) -> bytes:
    parts = []
    for frame in frames:
        if isinstance(frame, tuple):
            parts += [encode_data_header(frame[0], len(frame[1])), frame[1]]
        else:
            parts.append(encode_frame(frame))
    return b"".join(parts)


def joined(frames: list[Frame]) -> list[object]:
    """The frames with each DATA frame's pieces put together again, as `encode` takes them."""
    result: list[object] = []
    offset, payload = 0, b""
    for frame in frames:
        if isinstance(frame, Data):
            offset, payload = frame.offset, b""
            result.append((offset, payload))
        elif isinstance(frame, Payload):
            payload += frame.data
            result[-1] = (offset, payload)
        else:
            result.append(frame)
    return result


@given(anything, st.data())
def test_round_trip_at_any_split(
    frames: list[Ack | Fin | Reset | Ping | Pong | tuple[int, bytes]], data: st.DataObject
) -> None:
    wire = encode(frames)
    decoder, decoded = Decoder(), list[Frame]()
    while wire:
        cut = data.draw(st.integers(1, len(wire)))
        decoded += decoder.receive_data(wire[:cut])
        wire = wire[cut:]
    assert joined(decoded) == frames
    assert decoder.payload_remaining == 0
    assert decoder.header_missing == HEADER_LENGTH


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32))
def test_bind_round_trip(dial_id: bytes, token: bytes) -> None:
    bind = Bind(dial_id, token)
    assert decode_bind(encode_frame(bind)) == bind


def test_the_wire_format_is_what_the_documentation_says() -> None:
    assert encode_data_header(0x0102, 3) == bytes.fromhex("01 0000000000000102 00000003")
    assert encode_frame(Ack(1)) == bytes.fromhex("02 0000000000000001 00000000")
    assert encode_frame(Fin(2)) == bytes.fromhex("03 0000000000000002 00000000")
    assert encode_frame(Reset(3)) == bytes.fromhex("04 0000000000000003 00000000")
    assert encode_frame(Ping(4)) == bytes.fromhex("05 0000000000000004 00000000")
    assert encode_frame(Pong(5)) == bytes.fromhex("06 0000000000000005 00000000")
    bind = encode_frame(Bind(b"d" * 16, b"t" * 32))
    assert bind == bytes.fromhex("10 0000000000000001 00000030") + b"d" * 16 + b"t" * 32


def test_payload_is_handed_out_as_it_arrives() -> None:
    """A frame of 256 KiB never waits in memory for its end."""
    decoder = Decoder()
    assert decoder.receive_data(encode_data_header(7, LARGEST_PAYLOAD)) == [Data(7, LARGEST_PAYLOAD)]
    for _ in range(LARGEST_PAYLOAD // 1024):
        piece = bytes(1024)
        assert decoder.receive_data(piece) == [Payload(piece)]
    assert decoder.payload_remaining == 0


def test_a_reader_may_take_payload_past_the_decoder() -> None:
    decoder = Decoder()
    decoder.receive_data(encode_data_header(0, 10))
    decoder.skip_payload(4)
    assert decoder.payload_remaining == 6
    with pytest.raises(ValueError, match="6 left"):
        decoder.skip_payload(7)
    decoder.skip_payload(6)
    assert decoder.receive_data(encode_frame(Ping(1))) == [Ping(1)]


@pytest.mark.parametrize(
    ("wire", "text"),
    [
        ("01 0000000000000000 00000000", "DATA of 0 bytes"),
        ("01 0000000000000000 00040001", "DATA of 262145 bytes"),
        ("01 7fffffffffffffff 00000001", "out of range"),
        ("01 ffffffffffffffff 00000001", "out of range"),
        ("02 8000000000000000 00000000", "out of range"),
        ("03 8000000000000000 00000000", "out of range"),
        ("02 0000000000000000 00000001", "with a payload"),
        ("04 0000000100000000 00000000", "RESET code"),
        ("05 0000000000000000 ffffffff", "with a payload"),
        ("00 0000000000000000 00000000", "unknown frame type 0x0"),
        ("08 0000000000000000 00000000", "unknown frame type 0x8"),
        ("10 0000000000000001 00000030", "with a payload"),
        ("10 0000000000000001 00000000", "unknown frame type 0x10"),
    ],
)
def test_refused(wire: str, text: str) -> None:
    decoder = Decoder()
    with pytest.raises(BadMessage, match=text):
        decoder.receive_data(bytes.fromhex(wire))
    with pytest.raises(BadMessage, match=text):  # and dead from then on
        decoder.receive_data(encode_frame(Ping(1)))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda bind: bind[:-1], "61 bytes"),
        (lambda bind: bind + b"x", "61 bytes"),
        (lambda bind: b"\x01" + bind[1:], "not BIND"),
        (lambda bind: bind[:8] + b"\x02" + bind[9:], "version 2"),
        (lambda bind: bind[:12] + b"\x31" + bind[13:], "not BIND"),
        (lambda bind: b"GET / HTTP/1.1\r\n" * 4, "61 bytes"),
        (lambda bind: b"", "61 bytes"),
    ],
)
def test_bind_refused(change: object, text: str) -> None:
    assert callable(change)
    with pytest.raises(BadMessage, match=text):
        decode_bind(change(encode_frame(Bind(bytes(16), bytes(32)))))


def test_encoding_checks_its_arguments() -> None:
    for length in (0, -1, LARGEST_PAYLOAD + 1):
        with pytest.raises(ValueError, match="DATA frame"):
            encode_data_header(0, length)
    for offset in (-1, LARGEST_OFFSET):
        with pytest.raises(ValueError, match="out of range"):
            encode_data_header(offset, 1)
    for frame in (Ack(-1), Fin(LARGEST_OFFSET + 1), Reset(2**32), Ping(2**64), Pong(-1)):
        with pytest.raises(ValueError, match="out of range"):
            encode_frame(frame)
    with pytest.raises(ValueError, match="16 bytes"):
        encode_frame(Bind(bytes(15), bytes(32)))


FRAME_SEEDS = [
    encode([(0, b"hello"), Ack(0), Ping(1)]),
    encode([Ping(3), (5, bytes(40)), (45, b"x"), Fin(46)]),
    encode([Reset(1)]),
    encode([Pong(9), Ack(2**40), Fin(0)]),
]


def decode_all(data: bytes) -> None:
    """Decode in one piece and byte by byte: both must tell the same."""
    outcomes = []
    for step in (max(1, len(data)), 1):
        decoder, frames = Decoder(), list[Frame]()
        failure: BadMessage | None = None
        try:
            for start in range(0, len(data), step):
                frames += decoder.receive_data(data[start : start + step])
        except BadMessage as error:
            failure = error
        outcomes.append((str(failure), None if failure else joined(frames)))
    assert outcomes[0] == outcomes[1]
    if failure is not None:
        raise failure


def fuzz(count: int, random_seed: int) -> None:
    check_decoder(decode_all, FRAME_SEEDS, count, random_seed)
    bind = encode_frame(Bind(bytes(range(16)), bytes(range(32))))
    check_decoder(lambda data: encode_frame(decode_bind(data)), [bind], count, random_seed)


def test_damaged_frames() -> None:
    fuzz(20_000, 1)


@pytest.mark.slow
def test_damaged_frames_a_million() -> None:
    fuzz(1_000_000, 2)


def test_sizes() -> None:
    assert (HEADER_LENGTH, BIND_LENGTH) == (13, 48)
