"""TURN over a stream (RFC 8656 sections 12.5 and 12.6): STUN messages and ChannelData follow one another."""

from __future__ import annotations

from ntcpsock._errors import BadMessage
from ntcpsock._traversal.stun.constants import HEADER_LENGTH, MAGIC_COOKIE
from ntcpsock._traversal.turn.message import CHANNEL_HEADER

#: The longest of both kinds: a Data indication with 65,507 octets of UDP payload, and what is around them.
LONGEST_UNIT = HEADER_LENGTH + 0xFFFC


class TurnSplitter:
    """Cuts a byte stream into whole STUN messages and ChannelData messages, the latter with their padding. Pure and
    incremental.

    It keeps less than one of them (`LONGEST_UNIT` octets) between calls. What can be neither is refused as soon as it
    is seen.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def receive_data(self, data: bytes) -> list[bytes]:
        """The messages that `data` completes, in order. Raises BadMessage when the stream is something else; it is
        lost then."""
        self._buffer += data
        units: list[bytes] = []
        at = 0
        while (length := self._length_untrusted(at)) and at + length <= len(self._buffer):
            units.append(bytes(self._buffer[at : at + length]))
            at += length
        del self._buffer[:at]
        return units

    def _length_untrusted(self, at: int) -> int:
        """The length of what starts at `at`, or 0 while it is not known yet."""
        start = self._buffer[at : at + 8]
        if not start:
            return 0
        if start[0] >= 0x50:
            raise BadMessage("the stream is not TURN")
        if len(start) < 4:
            return 0
        length = int.from_bytes(start[2:4])
        if start[0] >= 0x40:
            return CHANNEL_HEADER.size + length + -length % 4
        if length % 4 or not MAGIC_COOKIE.startswith(start[4:]):
            raise BadMessage("the stream is not STUN")
        return HEADER_LENGTH + length
