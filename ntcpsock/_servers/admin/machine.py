"""Lines out of bytes, of bounded length."""

from __future__ import annotations

from ntcpsock._errors import BadMessage


class Lines:
    """What arrives on one connection; `limit`: bytes of a line with its end."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def receive(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, without their ends. Raises BadMessage for one that is too long."""
        # Only what has come now can have an end in it.
        begin = len(self._buffer)
        self._buffer += data
        lines: list[bytes] = []
        while (end := self._buffer.find(b"\n", begin)) >= 0:
            if end >= self._limit:
                break
            lines.append(bytes(self._buffer[:end]))
            del self._buffer[: end + 1]
            begin = 0
        if len(self._buffer) >= self._limit:
            raise BadMessage("too long a line")
        return lines
