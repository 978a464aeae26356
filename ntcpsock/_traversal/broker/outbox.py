"""The client's way out: counters, request numbers, sealing."""

from __future__ import annotations

from collections.abc import Callable

from ntcpsock._errors import BadMessage
from ntcpsock._traversal.broker.fields import MAX_COUNTER, MAX_DATAGRAM, NO_SESSION
from ntcpsock._traversal.broker.frame import OVERHEAD, Sealer, encode_key_request
from ntcpsock._traversal.broker.message import FromNode, Hello, decode_from_node, encode_from_node
from ntcpsock._traversal.broker.short_keep_alive import ShortKeepAlive, encode_short_keep_alive

_MAX_NUMBER = 2**32 - 1


class Outbox:
    """Frames that wait to be sent to the broker."""

    def __init__(self, sealer: Sealer, random_bytes: Callable[[int], bytes]) -> None:
        self._sealer = sealer
        self._frames: list[bytes] = []
        #: The one that the broker has opened; a Hello belongs to none.
        self.session = NO_SESSION
        # Never goes back, whatever happens to the session: that alone makes every old frame a replay.
        self._counter = 0
        self._number = int.from_bytes(random_bytes(4), "big")

    def new_number(self) -> int:
        """A request number; 0 means "answers nothing"."""
        self._number = self._number % _MAX_NUMBER + 1
        return self._number

    def seal(self, broker_key: bytes, number: int, body: FromNode) -> None:
        """Put a message in. Raises BadMessage for a `broker_key` that is none."""
        self._frames.append(self.sealed(broker_key, number, body))

    def sealed(self, broker_key: bytes, number: int, body: FromNode) -> bytes:
        """A message's frame, for whoever sends it another way. Raises BadMessage as `seal`."""
        self._counter += 1
        session = NO_SESSION if isinstance(body, Hello) else self.session
        payload = encode_from_node(session, self._counter, number, body)
        return self._sealer.seal(broker_key, payload)

    def keep_alive(self, broker_key: bytes, number: int, relays: int) -> bytes:
        """Put a short keep-alive in; the answer that fits it. Raises BadMessage as `seal`."""
        self._counter += 1
        request = ShortKeepAlive(self.session, self._counter, number, relays)
        frame, answer = encode_short_keep_alive(request, self._sealer.shared_key(broker_key))
        self._frames.append(frame)
        return answer

    def ask_key(self, nonce: bytes) -> None:
        """Put a KeyRequest in."""
        self._frames.append(encode_key_request(nonce))

    def take(self) -> list[bytes]:
        """All frames, once."""
        frames, self._frames = self._frames, []
        return frames


def check_message(body: FromNode) -> None:
    """Raises BadMessage where the broker would: a field out of bounds, or too much for one datagram."""
    payload = encode_from_node(NO_SESSION, MAX_COUNTER, _MAX_NUMBER, body)
    decode_from_node(payload)
    if len(payload) + OVERHEAD > MAX_DATAGRAM:
        raise BadMessage("too much for one datagram", f"{len(payload) + OVERHEAD} bytes")
