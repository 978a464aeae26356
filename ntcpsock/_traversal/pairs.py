"""One costly attempt at a time between two nodes.

A joint attempt may hold hundreds of sockets and fill as many entries of both NATs. Dials of one pair that run at the
same time take turns with them; direct attempts cost next to nothing and need none.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import trio

#: Joint attempts at once with all nodes together, of those that we lead and of those that we follow.
MAX_AT_ONCE = 8

#: Of those that we follow: how many may begin in a row, and in each second after that. Who leads is free to begin
#: again and again.
FOLLOWS_IN_A_ROW = 16
FOLLOWS_PER_SECOND = 2.0

# Seconds for the last word on a connection that the leader has chosen.
HANDOVER = 1.0


@dataclass
class _Pair:
    """What is under way with one node."""

    turns: trio.Lock = field(default_factory=trio.Lock)
    waiting: int = 0
    led: trio.CancelScope | None = None
    followed: trio.CancelScope | None = None
    followed_dial: bytes | None = None
    follow_ended: trio.Event = field(default_factory=trio.Event)


class Pairs:
    """A node's joint attempts, by the key of the other node. own_key: this node's."""

    def __init__(self, own_key: bytes) -> None:
        self._own_key = own_key
        self._pairs: dict[bytes, _Pair] = {}
        self._leading = trio.CapacityLimiter(MAX_AT_ONCE)
        self._following = 0
        self._follows_left = float(FOLLOWS_IN_A_ROW)
        self._counted = -math.inf

    @asynccontextmanager
    async def lead(self, key: bytes) -> AsyncIterator[None]:
        """Wait for this pair's turn, and hold it for the block. The block is cancelled, and ends quietly, when the
        other node leads one too and comes first: two nodes that dial each other would wait for each other."""
        with self._known(key) as pair:
            async with pair.turns, self._leading:
                while pair.followed is not None and key != self._own_key:
                    await pair.follow_ended.wait()
                with trio.CancelScope() as pair.led:
                    try:
                        yield
                    finally:
                        pair.led = None

    @asynccontextmanager
    async def follow(self, key: bytes, dial_id: bytes) -> AsyncIterator[trio.CancelScope | None]:
        """The scope for an attempt that the other node leads, or None where it must not be made.

        Who leads does so one at a time: a newer attempt of the same dial ends the one before, which has failed there.
        One of another dial waits a moment for it, since that may have been chosen just now.
        """
        with self._known(key) as pair:
            if pair.followed_dial != dial_id:
                with trio.move_on_after(HANDOVER):
                    while pair.followed is not None:
                        await pair.follow_ended.wait()
            if pair.followed is not None:
                pair.followed.cancel()
                self._ended(pair)
            refused = pair.led is not None and key > self._own_key
            if refused or self._following >= MAX_AT_ONCE or not self._may_follow():
                yield None
                return
            if pair.led is not None and key < self._own_key:
                pair.led.cancel()
            scope = pair.followed = trio.CancelScope()
            pair.followed_dial = dial_id
            self._following += 1
            try:
                with scope:
                    yield scope
            finally:
                if pair.followed is scope:
                    self._ended(pair)

    def _may_follow(self) -> bool:
        now = trio.current_time()
        earned = (now - self._counted) * FOLLOWS_PER_SECOND
        self._follows_left = min(FOLLOWS_IN_A_ROW, self._follows_left + earned)
        self._counted = now
        if self._follows_left < 1:
            return False
        self._follows_left -= 1
        return True

    def _ended(self, pair: _Pair) -> None:
        self._following -= 1
        pair.followed = None
        pair.follow_ended.set()
        pair.follow_ended = trio.Event()

    @contextmanager
    def _known(self, key: bytes) -> Iterator[_Pair]:
        pair = self._pairs.setdefault(key, _Pair())
        pair.waiting += 1
        try:
            yield pair
        finally:
            pair.waiting -= 1
            if not pair.waiting:
                del self._pairs[key]
