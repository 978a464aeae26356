"""Requests that wait for an answer: when each is sent again, and when it has failed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ntcpsock._traversal.broker.message import (
    AskTurn,
    Found,
    FromBroker,
    FromNode,
    Introduce,
    Introduced,
    KeepAlive,
    KeepAliveAck,
    Lookup,
    Refused,
    Register,
    Registered,
    Spoof,
    Spoofed,
    TurnPlaces,
    Unreachable,
)
from ntcpsock._traversal.broker.operation import OfferRelay, RelayTaken, WithdrawRelay

MAX_PENDING = 1024
# Somebody waits for the answer: one frame a second is no burden, and a long pause costs him a second.
_MAX_PAUSE = 1.0
# Of frames that get no answer; a Challenge may answer them all the same.
_REMEMBERED_SENDS = 64

_ANSWERS: dict[type[FromNode], tuple[type[FromBroker], ...]] = {
    Register: (Registered, Refused),
    Lookup: (Found, Unreachable),
    Introduce: (Introduced, Unreachable),
    KeepAlive: (KeepAliveAck,),
    Spoof: (Spoofed,),
    OfferRelay: (RelayTaken, Refused),
    WithdrawRelay: (RelayTaken,),
    AskTurn: (TurnPlaces,),
}


def is_answer(body: FromBroker, asked: FromNode) -> bool:
    """Whether `body` is of a kind that answers `asked`."""
    return isinstance(body, _ANSWERS[type(asked)])


@dataclass(slots=True)
class Request:
    """One of them. Times are those of the machine's clock."""

    body: FromNode
    deadline: float
    #: Before the next transmission; doubles with each, up to one second.
    pause: float
    #: When that is due; None while there is no session to send in.
    due: float | None = None
    first_sent: float = 0.0
    transmissions: int = 0
    #: Whether a Challenge has answered it: a second one would be a replay, or late.
    challenged: bool = False
    #: A keep-alive whose first transmission is a short one; and the answer that fits that.
    short: bool = False
    short_ack: bytes = b""


class PendingRequests:
    """The table, by request number."""

    def __init__(self) -> None:
        self._requests: dict[int, Request] = {}
        self._unanswered: deque[int] = deque(maxlen=_REMEMBERED_SENDS)

    def __contains__(self, number: int) -> bool:
        return number in self._requests

    @property
    def full(self) -> bool:
        return len(self._requests) >= MAX_PENDING

    def add(self, number: int, request: Request) -> None:
        self._requests[number] = request

    def get(self, number: int) -> Request | None:
        return self._requests.get(number)

    def remove(self, number: int) -> None:
        """Forget it; harmless where it is gone."""
        self._requests.pop(number, None)

    def clear(self) -> None:
        self._requests.clear()

    def sent_unanswered(self, number: int) -> None:
        """A frame that gets no answer is out."""
        self._unanswered.append(number)

    def may_be_challenged(self, number: int) -> bool:
        """Whether `number` was sent lately and not challenged before: an old Challenge is a replay."""
        request = self._requests.get(number)
        if request is not None:
            if request.challenged:
                return False
            request.challenged = True
            return True
        if number in self._unanswered:
            self._unanswered.remove(number)
            return True
        return False

    def transmitted(self, request: Request, now: float) -> None:
        """It is being sent now."""
        if request.transmissions == 0:
            request.first_sent = now
        else:
            request.pause = min(request.pause * 2, _MAX_PAUSE)
        request.transmissions += 1
        request.due = now + request.pause

    def hold(self) -> None:
        """No session: nothing is sent, deadlines go on."""
        for request in self._requests.values():
            request.due = None

    def restart(self, pause: float) -> list[tuple[int, Request]]:
        """A new session: all of them are to be sent in it, as if for the first time."""
        for request in self._requests.values():
            request.transmissions = 0
            request.pause = pause
        return list(self._requests.items())

    def take_expired(self, now: float) -> list[tuple[int, Request]]:
        """Those whose time is over; they leave the table."""
        expired = [item for item in self._requests.items() if now >= item[1].deadline]
        for number, _ in expired:
            del self._requests[number]
        return expired

    def due(self, now: float) -> list[tuple[int, Request]]:
        """Those that are to be sent again."""
        return [item for item in self._requests.items() if item[1].due is not None and now >= item[1].due]

    def next_timer(self) -> float | None:
        """When the next of them is due or over."""
        times = [request.deadline for request in self._requests.values()]
        times += [request.due for request in self._requests.values() if request.due is not None]
        return min(times, default=None)
