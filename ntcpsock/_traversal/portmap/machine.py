"""Timers of port mapping, without sockets and without a clock: one request with its repetitions, a gateway's epoch,
and the life of a lease."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Generic, Literal, TypeVar

from ntcpsock._errors import BadMessage

R = TypeVar("R")

#: RFC 6886 section 3.1, seconds: the first wait, doubled after each request, and the requests in all.
NATPMP_FIRST_WAIT = 0.25
NATPMP_REQUESTS = 9

#: RFC 6887 section 8.1.1, seconds.
IRT = 3.0
MRT = 1024.0
_PCP_JITTER = 0.1

# Seconds between two tries to renew a lease that is about to end (RFC 6887 section 11.2.1).
SHORTEST_RENEWAL_PAUSE = 4.0

# Seconds between two looks whether the router still has what it gave. A router that was restarted does not say so
# to everybody, and its mappings are gone.
CHECK_INTERVAL = 60.0


def natpmp_waits() -> Iterator[float]:
    """Seconds to wait after each request."""
    for number in range(NATPMP_REQUESTS):
        yield NATPMP_FIRST_WAIT * 2**number


def pcp_waits(rng: random.Random) -> Iterator[float]:
    """Seconds to wait after each request: (1 + RAND) * IRT, then (1 + RAND) * min(2 * the last one, MRT)."""
    wait = IRT
    while True:
        wait = (1 + rng.uniform(-_PCP_JITTER, _PCP_JITTER)) * wait
        yield wait
        wait = min(2 * wait, MRT)


class Transaction(Generic[R]):
    """One request and its repetitions until a response, the end of `waits`, or `deadline`.

    decode: gives the response in a datagram, None for one that belongs to another request, and raises BadMessage.
    The five verbs are those of `stun.machine`; extra calls do nothing.
    """

    def __init__(
        self,
        request: bytes,
        decode: Callable[[bytes], R | None],
        waits: Iterator[float],
        *,
        now: float,
        deadline: float,
    ) -> None:
        self._request = request
        self._decode = decode
        self._waits = waits
        self._deadline = deadline
        self._outgoing: list[bytes] = []
        self._next: float | None = now
        self.response: R | None = None
        #: Datagrams that were no response to this request.
        self.dropped = 0
        self.handle_timeout(now)

    @property
    def finished(self) -> bool:
        """Whether it is over: with a `response`, or without one."""
        return self._next is None

    def handle_datagram(self, data: bytes) -> None:
        """Take what the gateway sent."""
        if self._next is None:
            return
        try:
            response = self._decode(data)
        except BadMessage:
            response = None
        if response is None:
            self.dropped += 1
            return
        self.response = response
        self._next = None
        self._outgoing.clear()

    def handle_timeout(self, now: float) -> None:
        """Do what is due at `now`: repeat the request, or give up."""
        if self._next is None or now < self._next:
            return
        wait = next(self._waits, None)
        if wait is None or now >= self._deadline:
            self._next = None
            return
        self._outgoing.append(self._request)
        # From the time that was due, not from `now`: a late call must not stretch the schedule.
        self._next = min(self._next + wait, self._deadline)

    def datagrams_to_send(self) -> list[bytes]:
        """What to send now; each is handed out once."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def next_timeout(self) -> float | None:
        """When `handle_timeout` has something to do, absolute; None when it is over."""
        return self._next


class EpochWatch:
    """Sees from the times that a gateway tells when it has lost its mappings.

    rule: "pcp" (RFC 6887 section 8.5) or "nat-pmp" (RFC 6886 section 3.6, which asks for less).
    """

    def __init__(self, rule: Literal["pcp", "nat-pmp"]) -> None:
        self._rule = rule
        self._last: tuple[float, int] | None = None
        #: How often that was: a mapping made at another count than this is gone.
        self.losses = 0

    def handle_epoch(self, epoch: int, now: float) -> None:
        """Take the epoch of a response, in seconds, that came at `now`."""
        last, self._last = self._last, (now, epoch)
        if last is not None and self._shows_loss(now - last[0], epoch - last[1]):
            self.losses += 1

    def _shows_loss(self, ours: float, theirs: float) -> bool:
        if self._rule == "nat-pmp":
            return theirs < ours * 7 / 8 - 2
        return theirs < -1 or ours + 2 < theirs - theirs / 16 or theirs + 2 < ours - ours / 16


class Lease:
    """When a mapping has to be looked after. lifetime: seconds; 0 for one that never ends by itself.

    Renewal is due after half of the lifetime, and after half of what is left where that fails (RFC 6887 section
    11.2.1); in between the router is asked every CHECK_INTERVAL whether it still knows.
    """

    def __init__(self, lifetime: float, now: float) -> None:
        self._lifetime = lifetime
        self.granted(lifetime, now)

    def granted(self, lifetime: float, now: float) -> None:
        """The router has made, or renewed, the mapping."""
        self._ends = None if lifetime == 0 else now + lifetime
        self._renewal = None if lifetime == 0 else now + lifetime / 2
        self._check = now + CHECK_INTERVAL

    def next_timeout(self) -> float:
        """When `due` has something to say, absolute."""
        return self._check if self._renewal is None else min(self._check, self._renewal)

    def due(self, now: float) -> Literal["nothing", "check", "renew", "ended"]:
        """What to do at `now`."""
        if self._ends is not None and now >= self._ends:
            return "ended"
        if self._renewal is not None and now >= self._renewal:
            return "renew"
        return "check" if now >= self._check else "nothing"

    def checked(self, *, intact: bool, now: float) -> None:
        """The router was asked, or did not answer (then `intact`: nothing speaks against it)."""
        self._check = now + CHECK_INTERVAL
        if not intact:
            self._renewal = now

    def renewal_failed(self, now: float) -> None:
        """The router did not answer, or refused."""
        if self._ends is None:
            self._renewal = now + CHECK_INTERVAL
        else:
            self._renewal = min(self._ends, now + max(SHORTEST_RENEWAL_PAUSE, (self._ends - now) / 2))
