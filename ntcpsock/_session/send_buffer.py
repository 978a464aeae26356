"""What a stream has sent and the peer has not confirmed: kept until then, so that it can be sent again. Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

#: Pieces below this many bytes share one: a million small messages are no million objects.
SMALL: Final = 16 * 1024


class SendBuffer:
    """Bytes by their absolute offset in the stream. start: of the first one kept; end: behind the last one."""

    __slots__ = ("_pieces", "end", "start")

    def __init__(self) -> None:
        self.start = 0
        self.end = 0
        self._pieces: deque[bytes | bytearray] = deque()

    def append(self, data: bytes | memoryview) -> None:
        """Keep the next bytes of the stream; copied."""
        pieces, length = self._pieces, len(data)
        if length >= SMALL:
            pieces.append(bytes(data))
        elif pieces and type(pieces[-1]) is bytearray and len(pieces[-1]) < SMALL:
            pieces[-1] += data
        else:
            pieces.append(bytearray(data))
        self.end += length

    def release(self, offset: int) -> None:
        """Forget what lies before `offset`, by whole pieces."""
        pieces = self._pieces
        while pieces and self.start + len(pieces[0]) <= offset:
            self.start += len(pieces.popleft())

    def read(self, offset: int, limit: int) -> bytes:
        """1 to `limit` bytes from `offset` on, a copy; b"" at the end. ValueError for what is not kept any more."""
        if offset < self.start:
            raise ValueError(f"offset {offset} lies before what is kept, {self.start}")
        position = self.start
        for piece in self._pieces:
            if offset < position + len(piece):
                begin = offset - position
                return bytes(memoryview(piece)[begin : begin + limit])
            position += len(piece)
        return b""
