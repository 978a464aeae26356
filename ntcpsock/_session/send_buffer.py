"""What a stream has sent and the peer has not confirmed: kept until then, so that it can be sent again. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

#: Pieces below this many bytes share one: a million small messages are no million objects.
SMALL: Final = 16 * 1024

#: Takes a buffer that is not needed any more.
Recycle = Callable[[bytearray], None]


class SendBuffer:
    """Bytes by their absolute offset in the stream. start: of the first one kept; end: behind the last one."""

    __slots__ = ("_pieces", "_recycle", "end", "start")

    def __init__(self) -> None:
        self.start = 0
        self.end = 0
        #: None while empty, as nearly always: an empty deque takes 600 bytes.
        self._pieces: deque[bytes | bytearray | memoryview] | None = None
        self._recycle: Recycle | None = None

    def append(self, data: bytes | memoryview) -> None:
        """Keep the next bytes of the stream; copied, where they might change."""
        length = len(data)
        pieces = self._pieces
        if pieces is None:
            pieces = self._pieces = deque()
        if length >= SMALL:
            # A small part would keep all of what it is taken from.
            is_most = (
                isinstance(data, memoryview) and isinstance(data.obj, bytes) and 2 * length >= len(data.obj)
            )
            pieces.append(data if is_most else bytes(data))
        elif pieces and type(pieces[-1]) is bytearray and len(pieces[-1]) < SMALL:
            pieces[-1] += data
        else:
            pieces.append(bytearray(data))
        self.end += length

    def adopt(self, data: memoryview, recycle: Recycle) -> None:
        """Keep the next bytes where they are, which saves a copy: in a bytearray that is this buffer's from here on.
        `recycle`, the same one each time, gets it back."""
        if self._pieces is None:
            self._pieces = deque()
        self._pieces.append(data)
        self._recycle = recycle
        self.end += len(data)

    def release(self, offset: int) -> None:
        """Forget what lies before `offset`, by whole pieces."""
        pieces = self._pieces
        while pieces and self.start + len(pieces[0]) <= offset:
            piece = pieces.popleft()
            self.start += len(piece)
            if (
                isinstance(piece, memoryview)
                and isinstance(piece.obj, bytearray)
                and self._recycle is not None
            ):
                self._recycle(piece.obj)
        if not pieces:
            self._pieces = None

    def read(self, offset: int, limit: int) -> bytes:
        """1 to `limit` bytes from `offset` on, a copy; b"" at the end. ValueError for what is not kept any more."""
        if offset < self.start:
            raise ValueError(f"offset {offset} lies before what is kept, {self.start}")
        position = self.start
        for piece in self._pieces or ():
            if offset < position + len(piece):
                begin = offset - position
                return bytes(memoryview(piece)[begin : begin + limit])
            position += len(piece)
        return b""
