"""One client transaction (RFC 8489 section 6.2), without sockets and without a clock.

Five verbs, as aioquic and quinn have them: `handle_message` and `handle_timeout` go in with `now`,
`datagrams_to_send`, `next_timeout` and `next_event` come out. Extra calls do nothing. A driver is then a
page: send all, wait for a datagram or for the timer, feed, look for the event.
"""

from __future__ import annotations

from dataclasses import dataclass

from ntcpsock._errors import BadMessage
from ntcpsock._traversal.stun.attributes import ErrorCodeAttribute, MappedAddress, XorMappedAddress
from ntcpsock._traversal.stun.constants import MessageClass, Method
from ntcpsock._traversal.stun.message import Message, decode_message, encode_message

#: RFC 8489 section 6.2.1, seconds: the first retransmission time-out of a client that knows no RTT yet.
INITIAL_RTO = 0.5
#: RFC 8489 section 6.2.1: requests sent in all.
RC = 7
#: RFC 8489 section 6.2.1: RTOs to wait after the last request.
RM = 16
#: RFC 8489 section 6.2.2, seconds: how long to wait over TCP, which repeats by itself.
TI = 39.5


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The server's success response. `rtt` counts from the first request sent, so after a loss it is too
    long rather than too short: all requests look alike, and so do the responses to them."""

    response: Message
    rtt: float


@dataclass(frozen=True, slots=True)
class Failed:
    """The server's error response, or a success response that cannot be used (`code` is None then)."""

    response: Message
    code: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class TimedOut:
    """No response within the schedule."""


Event = Succeeded | Failed | TimedOut


class ClientTransaction:
    """A request and its repetitions, until a response or the end of the schedule.

    Over UDP it goes out at 0, 1, 3, 7, 15, 31 and 63 times `rto` and gives up 16 `rto` after the last; with
    `reliable` (TCP) it goes out once, and the wait is `TI`. All times are seconds on the caller's clock.
    data: the request's octets where they have more than `request` does, as its integrity.
    """

    def __init__(
        self,
        request: Message,
        *,
        now: float,
        reliable: bool = False,
        rto: float = INITIAL_RTO,
        data: bytes | None = None,
    ) -> None:
        self.request = request
        self._data = encode_message(request) if data is None else data
        self._rto = rto
        self._waits = [TI] if reliable else [rto * 2**n for n in range(RC - 1)] + [rto * RM]
        self._started = now
        self._next_timeout: float | None = now
        self._outgoing: list[bytes] = []
        self._event: Event | None = None
        self.handle_timeout(now)

    def handle_message(self, data: bytes, now: float) -> bool:
        """Take what arrived. Returns whether it was the response to this transaction; anything else, also
        what is no STUN, changes nothing (a stranger who guesses cannot end the transaction)."""
        try:
            message = decode_message(data)
        except BadMessage:
            return False
        return self.handle_response(message, now)

    def handle_response(self, message: Message, now: float) -> bool:
        """As `handle_message`, for a message that the caller has decoded, and checked as it wants it."""
        if (
            self._next_timeout is None
            or message.method != self.request.method
            or message.transaction_id != self.request.transaction_id
            or message.message_class not in (MessageClass.SUCCESS_RESPONSE, MessageClass.ERROR_RESPONSE)
        ):
            return False
        self._finish(self._judge(message, now))
        return True

    def handle_timeout(self, now: float) -> None:
        """Do what is due at `now`: repeat the request, or give up."""
        if self._next_timeout is None or now < self._next_timeout:
            return
        if not self._waits:
            self._finish(TimedOut())
            return
        self._outgoing.append(self._data)
        # From the time that was due, not from `now`: a late call must not stretch the schedule.
        self._next_timeout += self._waits.pop(0)

    def datagrams_to_send(self) -> list[bytes]:
        """What to send now; each is handed out once."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def next_timeout(self) -> float | None:
        """When `handle_timeout` has something to do, absolute; None when the transaction is over."""
        return self._next_timeout

    def next_event(self) -> Event | None:
        """The outcome, once; None before it is known and after it was taken."""
        event, self._event = self._event, None
        return event

    def _finish(self, event: Event) -> None:
        self._event = event
        self._next_timeout = None
        self._outgoing.clear()

    def _judge(self, message: Message, now: float) -> Event:
        """RFC 8489 sections 6.3.3 and 6.3.4."""
        if message.unknown_required:
            types = ", ".join(f"0x{kind:04x}" for kind in message.unknown_required)
            return Failed(message, None, f"the response needs attributes that are not known: {types}")
        if message.message_class == MessageClass.SUCCESS_RESPONSE:
            if message.method == Method.BINDING and not (
                message.get(XorMappedAddress) or message.get(MappedAddress)
            ):
                return Failed(message, None, "the response has no mapped address")
            return Succeeded(message, now - self._started)
        error = message.get(ErrorCodeAttribute)
        if error is None:
            return Failed(message, None, "an error response without ERROR-CODE")
        return Failed(message, error.code, error.reason)
