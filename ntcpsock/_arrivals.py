"""What the engine brings to a listener, announced before it comes: so `accept` knows it from strangers."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ntcpsock._report import PathInfo, PeerInfo, Report

if TYPE_CHECKING:
    from ntcpsock._punched import Claim

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Arrival:
    """What `accept` tells about a connection that came in by name."""

    peer: PeerInfo
    path: PathInfo
    report: Report


class Arrivals:
    """The connections that the engine made to one listener and `accept` has not returned yet.

    One that ended meanwhile stays for its turn in the kernel's queue, as TCP's do: `accept` returns it
    and `recv` tells its end. The queue is first in, first out, so whoever takes the address that became
    free comes behind it. What is never taken (a C program accepts) is forgotten, the oldest first.
    """

    def __init__(self, backlog: int) -> None:
        self._waiting: dict[Address, Arrival] = {}
        self._ended: deque[tuple[Address, Arrival]] = deque()
        self._most_ended = backlog + 1
        self._claims: dict[Address, Claim] = {}
        #: Whether this process has called `NTCPSocket.accept`, which can take a connection as it is.
        self.asked = False

    def __len__(self) -> int:
        return len(self._waiting)

    def announce(self, source: Address, arrival: Arrival) -> None:
        """In the engine, before the connection is made."""
        self._waiting[source] = arrival

    def offer(self, source: Address, claim: Claim) -> None:
        """In the engine: `accept` may take this connection in place of the hop from `source`."""
        self._claims[source] = claim

    def claim(self, source: Address) -> Claim | None:
        """In the program's thread, before `take`: the connection itself, where it may be had."""
        return self._claims.pop(source, None)

    def take(self, source: Address) -> Arrival | None:
        """In the program's thread: what came from `source`; None for a stranger."""
        claim = self._claims.pop(source, None)
        if claim is not None:
            claim.decline()  # accepted by one who cannot take it: the hop is what it has
        return self._waiting.pop(source, None)

    def ended(self, source: Address, arrival: Arrival) -> None:
        """In the engine: the connection is over."""
        if self._waiting.get(source) is arrival:
            self._ended.append((source, arrival))
        while len(self._ended) > self._most_ended:
            self.withdraw(*self._ended.popleft())

    def withdraw(self, source: Address, arrival: Arrival) -> None:
        """In the engine: the connection was never made."""
        self._claims.pop(source, None)
        if self._waiting.get(source) is arrival:
            self._waiting.pop(source, None)
