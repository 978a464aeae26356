"""The requests to one TURN server that are under way: repeated, signed, challenged, judged. Pure.

A transaction (`stun/machine.py`) ends with one response; what is here goes on where that response is a challenge, and
lets none count that is not signed as it must be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ntcpsock._address import Endpoint
from ntcpsock._traversal.stun.attributes import Attribute
from ntcpsock._traversal.stun.constants import ErrorCode, MessageClass
from ntcpsock._traversal.stun.machine import INITIAL_RTO, ClientTransaction, Failed, Succeeded
from ntcpsock._traversal.stun.message import Message
from ntcpsock._traversal.turn.authentication import Authentication, CannotAuthenticate
from ntcpsock._traversal.turn.credentials import TurnCredentials
from ntcpsock._traversal.turn.events import Refusal
from ntcpsock._traversal.turn.message import TurnMethod

#: Challenges (401, 438) that one request answers.
MAX_CHALLENGES: Final = 3

#: Seconds: the shortest first retransmission time-out, once the round trip is known (RFC 8489 section 6.2.1 begins
#: with half a second for those who know none).
SHORTEST_RTO: Final = 0.1

#: What a request is about: a permission's host, a channel's peer, or the allocation.
Subject = str | Endpoint | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a request. refusal: None where it succeeded; response: the server's last, None where it gave none;
    rtt: seconds of a success."""

    method: int
    subject: Subject
    refusal: Refusal | None
    response: Message | None = None
    rtt: float = 0.0


@dataclass
class _Request:
    """signed: whether it bears credentials; challenges: how many it has answered."""

    transaction: ClientTransaction
    subject: Subject
    signed: bool
    challenges: int

    @property
    def method(self) -> int:
        return self.transaction.request.method


class Requests:
    """Those of one allocation. dropped: counts the responses that were not taken, by reason."""

    def __init__(
        self,
        credentials: TurnCredentials,
        *,
        reliable: bool,
        new_id: Callable[[], bytes],
        dropped: Counter[str],
    ) -> None:
        self._reliable = reliable
        self._new_id = new_id
        self._dropped = dropped
        self._authentication = Authentication(credentials)
        self._rto = INITIAL_RTO
        self._under_way: dict[bytes, _Request] = {}

    def ask(
        self,
        method: TurnMethod,
        attributes: tuple[Attribute, ...],
        subject: Subject,
        now: float,
        challenges: int = 0,
    ) -> None:
        """Begin a request; `datagrams_to_send` has it."""
        message = Message(method, MessageClass.REQUEST, self._new_id(), attributes)
        transaction = ClientTransaction(
            message,
            now=now,
            reliable=self._reliable,
            rto=self._rto,
            data=self._authentication.encode(message),
        )
        self._under_way[message.transaction_id] = _Request(
            transaction, subject, self._authentication.is_challenged, challenges
        )

    def is_asking(self, method: TurnMethod) -> bool:
        return any(request.method == method for request in self._under_way.values())

    def is_asking_signed(self, method: TurnMethod) -> bool:
        """Whether the server may already have done what is asked."""
        return any(request.method == method and request.signed for request in self._under_way.values())

    def clear(self) -> None:
        """Give all of them up."""
        self._under_way.clear()

    def datagrams_to_send(self) -> list[bytes]:
        return [
            data for request in self._under_way.values() for data in request.transaction.datagrams_to_send()
        ]

    def next_timeout(self) -> float | None:
        moments = (request.transaction.next_timeout() for request in self._under_way.values())
        return min((moment for moment in moments if moment is not None), default=None)

    def handle_timeout(self, now: float) -> list[Outcome]:
        """Repeat what is due; those that will not be answered any more."""
        outcomes = []
        for key, request in list(self._under_way.items()):
            request.transaction.handle_timeout(now)
            if request.transaction.next_timeout() is None:
                del self._under_way[key]
                outcomes.append(_refused(request, Refusal(None, "the server does not answer")))
        return outcomes

    def handle_response_untrusted(self, data: bytes, message: Message, now: float) -> Outcome | None:
        """Take `message`, decoded from `data`; the outcome of its request where it decides that. Raises BadMessage."""
        request = self._under_way.get(message.transaction_id)
        if request is None or request.method != message.method:
            self._dropped["nobody waits for it"] += 1
            return None
        if not self._authentication.is_trusted_untrusted(data, message, signed=request.signed):
            self._dropped["wrong integrity"] += 1
            if not self._reliable:
                return None  # the right one may be behind it
            # RFC 8489 section 9.2.5: on a stream there will be no other.
            del self._under_way[message.transaction_id]
            return _refused(request, Refusal(None, "the server's answer is not signed as it must be"))
        if not request.transaction.handle_response(message, now):
            self._dropped["nobody waits for it"] += 1
            return None
        del self._under_way[message.transaction_id]
        event = request.transaction.next_event()
        if isinstance(event, Succeeded):
            if not self._reliable:
                self._rto = min(INITIAL_RTO, max(SHORTEST_RTO, 2 * event.rtt))
            return Outcome(request.method, request.subject, None, event.response, event.rtt)
        assert isinstance(event, Failed), "a response does not time out"
        if event.code in (ErrorCode.UNAUTHENTICATED, ErrorCode.STALE_NONCE):
            return self._handle_challenge(request, event, now)
        code = ErrorCode.BAD_REQUEST if event.code is None else event.code
        return _refused(request, Refusal(code, event.reason), event.response)

    def _handle_challenge(self, request: _Request, event: Failed, now: float) -> Outcome | None:
        try:
            self._authentication.handle_challenge_untrusted(event.response)
        except CannotAuthenticate as error:
            return _refused(request, Refusal(ErrorCode.UNAUTHENTICATED, str(error)))
        if request.challenges >= MAX_CHALLENGES:
            return _refused(request, Refusal(event.code, event.reason))
        # They came from us, so all are of classes that we know.
        attributes = tuple(a for a in request.transaction.request.attributes if isinstance(a, Attribute))
        self.ask(TurnMethod(request.method), attributes, request.subject, now, request.challenges + 1)
        return None


def _refused(request: _Request, refusal: Refusal, response: Message | None = None) -> Outcome:
    return Outcome(request.method, request.subject, refusal, response)
