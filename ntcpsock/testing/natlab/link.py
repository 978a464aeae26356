"""What a link does to the packets that cross it."""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass

QUEUE_LIMIT = 64 * 1024 * 1024
"""Bytes that one direction of a link holds; what comes beyond is dropped and counted."""

_HELD_BACK = 4  # a reordered packet comes this many delays (or ms) late


@dataclass(frozen=True, slots=True)
class Link:
    """The quality of the link between a router and the public segment, in both directions."""

    delay: float = 0.025
    """One-way seconds."""
    jitter: float = 0.0
    """Up to so many seconds more, evenly distributed; the order is kept."""
    loss: float = 0.0
    """Share of the packets that get lost, 0 to 1."""
    duplication: float = 0.0
    """Share of the packets that arrive twice."""
    reordering: float = 0.0
    """Share of the packets that later ones overtake."""
    rate: float | None = None
    """Bytes per second; what would wait for longer than `buffer` seconds is dropped."""
    buffer: float = 0.25
    """Seconds of traffic at `rate` that the sending end holds."""
    mtu: int = 1500
    """Largest packet; the router before it answers larger ones (RFC 1191), or makes fragments."""

    def __post_init__(self) -> None:
        for name in ("loss", "duplication", "reordering"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share from 0 to 1, not {getattr(self, name)}")
        if self.delay < 0 or self.jitter < 0 or (self.rate is not None and self.rate <= 0):
            raise ValueError("delay, jitter and rate of a link are positive numbers")
        if not 576 <= self.mtu <= 65535:  # RFC 791
            raise ValueError(f"an MTU of {self.mtu}: between 576 and 65535")

    @property
    def counts_packets(self) -> bool:
        """Whether single packets meet a fate of their own: then they must be as large as on a real link."""
        return bool(self.jitter or self.loss or self.duplication or self.reordering or self.rate)


class Queue:
    """One direction of a link: packets with the time at which each is due."""

    def __init__(self, link: Link, rng: random.Random) -> None:
        self._link = link
        self._rng = rng
        self._numbers = itertools.count()
        self._heap: list[tuple[float, int, bytes]] = []
        self._bytes = 0
        self._line_free = 0.0
        self._latest = 0.0
        self.dropped = 0
        """Packets that were lost, by chance or for want of room."""

    def put(self, packet: bytes, now: float) -> None:
        """A packet enters the link."""
        link = self._link
        if link.loss and self._rng.random() < link.loss:
            self.dropped += 1
            return
        copies = 2 if link.duplication and self._rng.random() < link.duplication else 1
        for _ in range(copies):
            self._put_copy(packet, now)

    def _put_copy(self, packet: bytes, now: float) -> None:
        link = self._link
        size = len(packet)
        if self._bytes + size > QUEUE_LIMIT:
            self.dropped += 1
            return
        if link.rate is not None:
            if self._line_free - now > link.buffer:
                self.dropped += 1
                return
            self._line_free = now = max(self._line_free, now) + size / link.rate
        due = now + link.delay
        if link.jitter:
            due = max(due + self._rng.random() * link.jitter, self._latest)
        self._latest = due
        if link.reordering and self._rng.random() < link.reordering:
            due += _HELD_BACK * max(link.delay, 0.001)  # but not those behind it
        heapq.heappush(self._heap, (due, next(self._numbers), packet))
        self._bytes += size

    def due(self) -> float | None:
        """When the next packet leaves the link."""
        return self._heap[0][0] if self._heap else None

    def take(self) -> tuple[float, bytes]:
        """The next packet and when it was due."""
        due, _, packet = heapq.heappop(self._heap)
        self._bytes -= len(packet)
        return due, packet
