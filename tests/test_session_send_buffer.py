"""What is kept until the peer has it: exact bytes by their offset, bounded, and nothing in the end."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntcpsock._session.send_buffer import SMALL, SendBuffer

SIZES = st.sampled_from([1, 7, 100, SMALL - 1, SMALL, SMALL + 1, 3 * SMALL])


def read_all(buffer: SendBuffer, offset: int, limit: int) -> bytes:
    parts = []
    while part := buffer.read(offset, limit):
        assert len(part) <= limit
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


@settings(deadline=None)
@given(
    st.lists(st.tuples(SIZES, st.integers(0, 100)), max_size=12),
    st.sampled_from([500, SMALL, 10**6]),
    st.booleans(),
)
def test_keeps_what_was_not_released(steps: list[tuple[int, int]], limit: int, as_view: bool) -> None:
    stream = random.Random(1).randbytes(sum(size for size, _ in steps))
    buffer = SendBuffer()
    released = 0
    for size, percent in steps:
        data = stream[buffer.end : buffer.end + size]
        buffer.append(memoryview(data) if as_view else data)
        released = max(released, buffer.end * percent // 100)
        buffer.release(released)
        assert buffer.start <= released
        assert released - buffer.start < 3 * SMALL + 1
        assert read_all(buffer, released, limit) == stream[released : buffer.end]
        assert read_all(buffer, buffer.start, limit) == stream[buffer.start : buffer.end]
    buffer.release(buffer.end)
    assert buffer.start == buffer.end == len(stream)
    assert not buffer._pieces
    assert buffer.read(buffer.end, 10) == b""


def test_what_is_not_kept_any_more_is_an_error() -> None:
    buffer = SendBuffer()
    buffer.append(bytes(SMALL))
    buffer.append(b"more")
    buffer.release(SMALL)
    with pytest.raises(ValueError, match="lies before"):
        buffer.read(SMALL - 1, 10)
    assert buffer.read(SMALL, 10) == b"more"


def test_a_copy_is_kept() -> None:
    buffer = SendBuffer()
    for size in (10, SMALL):
        data = bytearray(size)
        buffer.append(memoryview(data))
        data[:] = b"x" * size
    assert read_all(buffer, 0, 100) == bytes(10 + SMALL)


def test_small_messages_share_pieces() -> None:
    buffer = SendBuffer()
    for _ in range(100_000):
        buffer.append(b"ten bytes.")
    assert buffer._pieces is not None
    assert len(buffer._pieces) <= 1_000_000 // SMALL + 1


def test_what_was_read_stays_when_more_is_appended() -> None:
    """A reader's view must not pin the piece that grows."""
    buffer = SendBuffer()
    buffer.append(b"one")
    read = buffer.read(0, 3)
    buffer.append(b"two")
    assert (read, buffer.read(0, 6)) == (b"one", b"onetwo")


def test_an_adopted_buffer_is_not_copied_and_comes_back_once() -> None:
    buffer, back = SendBuffer(), list[bytearray]()
    lent = [bytearray(b"head" + bytes([number]) * SMALL) for number in range(3)]
    buffer.append(b"before")
    for each in lent:
        buffer.adopt(memoryview(each)[4:], back.append)
        buffer.append(b"between")
    assert back == []
    lent[1][4:6] = b"ab"
    assert buffer.read(6 + SMALL + 7, 3) == b"ab\1"
    buffer.release(6 + SMALL - 1)
    assert back == []
    buffer.release(6 + SMALL)
    assert [each is lent[0] for each in back] == [True]
    buffer.release(buffer.end)
    assert [each is other for each, other in zip(back, lent, strict=True)] == [True] * 3


def test_what_cannot_change_is_not_copied() -> None:
    buffer = SendBuffer()
    data = bytes(2 * SMALL)
    for part in (memoryview(data)[1:], memoryview(data)[: SMALL - 1], memoryview(bytes(3 * SMALL))[:SMALL]):
        buffer.append(part)
    assert buffer._pieces is not None
    pinned = [isinstance(piece, memoryview) for piece in buffer._pieces]
    assert pinned == [True, False, False]
    assert read_all(buffer, 0, 1000) == bytes(buffer.end)
