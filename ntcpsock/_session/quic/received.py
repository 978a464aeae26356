"""Bytes of the stream that have come out of the core and were not read yet."""

from __future__ import annotations

from collections import deque


class ReceivedBytes:
    """held: how many there are."""

    __slots__ = ("_chunks", "held")

    def __init__(self) -> None:
        self.held = 0
        # None while empty, as nearly always: an empty deque takes 600 bytes.
        self._chunks: deque[memoryview] | None = None

    def append(self, data: bytes) -> None:
        if self._chunks is None:
            self._chunks = deque()
        self._chunks.append(memoryview(data))
        self.held += len(data)

    def read_into(self, buffer: memoryview) -> int:
        """Fill the front of `buffer`: how many bytes."""
        filled, room = 0, len(buffer)
        chunks = self._chunks
        while chunks and filled < room:
            chunk = chunks[0]
            count = min(len(chunk), room - filled)
            buffer[filled : filled + count] = chunk[:count]
            filled += count
            if count == len(chunk):
                chunks.popleft()
            else:
                chunks[0] = chunk[count:]
        if not chunks:
            self._chunks = None
        self.held -= filled
        return filled
