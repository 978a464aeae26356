"""The dialer's side of a standing offer: made while a stream has a path, dialled when it has none.

See `ntcpsock._traversal.standing`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress

import trio

from ntcpsock._report import Report
from ntcpsock._traversal.candidate import DIRECT_TECHNIQUES, is_loopback
from ntcpsock._traversal.connect import dial_as_agreed
from ntcpsock._traversal.course import DialContext
from ntcpsock._traversal.dial import Dial
from ntcpsock._traversal.gather import WarmPort
from ntcpsock._traversal.interfaces import ipv4_addresses, ipv6_addresses
from ntcpsock._traversal.punch.driver import choose_port
from ntcpsock._traversal.punch.message import MAX_CANDIDATES_OF_TRANSPORT, Candidate
from ntcpsock._traversal.strategies.base import Connection

#: Seconds that a carrier has to live before the next one is agreed upon: most connections are short.
DELAY = 0.5
_MOST_HOSTS = 4


def may_agree(node: DialContext) -> bool:
    """Whether a node tells its address to peers, and lets itself be reached directly over TCP."""
    return not node.hidden and bool(set(DIRECT_TECHNIQUES) & set(node.techniques))


class Agreed:
    """What was agreed for one stream. `forget` must be called at its end."""

    def __init__(self, node: DialContext, dial: Dial) -> None:
        """dial: a new one, for the stream that it shall resume; it is made ready here."""
        self._node = node
        self._dial = dial
        self._number = choose_port()
        dial.standing = True
        node.introductions.hold(dial)

    @property
    def is_answered(self) -> bool:
        return self._dial.answer is not None and self._dial.answer.outcome == "accepted"

    @property
    def dial(self) -> Dial:
        """What was agreed."""
        return self._dial

    def forget(self) -> None:
        """Nobody waits for its answer any more."""
        self._node.introductions.release(self._dial)

    def offer(self) -> None:
        """Tell the listener, by the stream."""
        ours = WarmPort(self._number, (), self._candidates())
        payload = self._dial.offer(1, ours, self._node.broker_rtt)
        self._node.introductions.offer_by_stream(self._dial, payload)

    def _candidates(self) -> tuple[Candidate, ...]:
        """Where that port will be: most NATs keep its number, and they keep their own address longer than we ours."""
        hosts = [*ipv4_addresses()[:_MOST_HOSTS], *ipv6_addresses()[:_MOST_HOSTS]]
        seen = self._node.surroundings.standpoint.observed
        candidates = [Candidate("host", "tcp", host, self._number) for host in hosts]
        if seen not in hosts and not is_loopback(seen):
            candidates.append(Candidate("srflx", "tcp", seen, self._number))
        return tuple(candidates[-MAX_CANDIDATES_OF_TRANSPORT:])

    async def connect(self, report: Report) -> Connection:
        """A carrier as it was agreed. Raises OSError."""
        return await dial_as_agreed(self._node, self._dial, self._number, report)


class Agreements:
    """The one of a stream that holds, and the next one. make_dial: makes a dial that would resume the stream."""

    def __init__(self, node: DialContext, make_dial: Callable[[], Dial]) -> None:
        self._node = node
        self._make_dial = make_dial
        self.current: Agreed | None = None
        self._next: Agreed | None = None
        self.renew()

    def renew(self) -> None:
        """The stream has another carrier: agree anew, in a moment."""
        self._due = trio.current_time() + DELAY if may_agree(self._node) else math.inf

    def tend(self, now: float) -> None:
        """Called a few times a second while there is a carrier."""
        if now >= self._due:
            self._due = math.inf
            if self._next is not None:
                self._next.forget()
                self._next = None
            with suppress(OSError):  # no port is free
                self._next = Agreed(self._node, self._make_dial())
                self._next.offer()
        if self._next is not None and self._next.is_answered:
            if self.current is not None:
                self.current.forget()
            self.current, self._next = self._next, None

    def forget(self) -> None:
        """The stream is over."""
        for agreed in (self.current, self._next):
            if agreed is not None:
                agreed.forget()
        self.current = self._next = None
        self._due = math.inf
