"""STUN over a stream (RFC 8489 section 6.2.2): the messages follow one another, and carry their lengths."""

from __future__ import annotations

from ntcpsock._errors import BadMessage
from ntcpsock._traversal.stun.constants import HEADER_LENGTH, MAGIC_COOKIE

#: Longer than any message of the Binding method has a reason to be, credentials included.
DEFAULT_LONGEST_MESSAGE = 4096


class MessageSplitter:
    """Cuts a byte stream into whole STUN messages. Pure and incremental.

    It keeps less than one message (`longest_message` octets) between calls. What cannot be the start of a
    STUN message is refused as soon as it is seen, without waiting for the length that it claims.
    """

    def __init__(self, longest_message: int = DEFAULT_LONGEST_MESSAGE) -> None:
        self._longest_message = longest_message
        self._buffer = bytearray()

    @property
    def is_empty(self) -> bool:
        """Whether no message is half received."""
        return not self._buffer

    def receive_data(self, data: bytes) -> list[bytes]:
        """The messages that `data` completes, in order.

        Raises BadMessage when the stream is not STUN or a message too long; the stream is lost then.
        """
        self._buffer += data
        messages: list[bytes] = []
        at = 0
        while (length := self._length_untrusted(at)) and at + length <= len(self._buffer):
            messages.append(bytes(self._buffer[at : at + length]))
            at += length
        del self._buffer[:at]
        return messages

    def _length_untrusted(self, at: int) -> int:
        """The length of the message that starts at `at`, or 0 while its length is not there yet."""
        start = self._buffer[at : at + 8]
        if start and start[0] >= 0x40:
            raise BadMessage("the stream is not STUN")
        if len(start) < 4:
            return 0
        length = HEADER_LENGTH + int.from_bytes(start[2:4])
        if length % 4 or length > self._longest_message:
            raise BadMessage(f"a message of {length} octets: at most {self._longest_message}")
        # RFC 3489 had no messages over bare TCP, so the cookie is always there.
        if not MAGIC_COOKIE.startswith(start[4:]):
            raise BadMessage("no magic cookie in the stream")
        return length
