"""The dialer's side of a stream that has a path: it moves to a better one, and to a younger one where paths end at an
age."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

import trio

from ntcpsock._config import UDP_TECHNIQUES
from ntcpsock._session.stream import NTCPStream
from ntcpsock._traversal.course import DialContext
from ntcpsock._traversal.dial import Dial
from ntcpsock._traversal.moving.ages import PathAge
from ntcpsock._traversal.moving.climbing import BUDGET, LEFT_OUT, LOOK, Climbing, Seekers
from ntcpsock._traversal.moving.kept import KeptContext, KeptStream

_RELAYED = frozenset({"relay", "turn"})


class ClimbContext(DialContext, KeptContext, Protocol):
    """What these streams need of their node."""

    async def wait_network_changed(self) -> None:
        """Until an address or a route has changed, or the machine has slept."""
        ...


class ClimbingStream(KeptStream):
    """One of them. age: of its path."""

    def __init__(
        self,
        node: ClimbContext,
        stream: NTCPStream,
        dial: Dial,
        on_end: Callable[[], object],
        seekers: Seekers,
    ) -> None:
        super().__init__(node, stream, dial.key, on_end)
        self.age = PathAge(node.surroundings, dial.key, stream.path, dial.since)
        self._climber = node
        self._seekers = seekers
        self._climbing: trio.CancelScope | None = None
        self._changed_there = trio.Event()
        self.start_climbing()

    @abstractmethod
    async def _move(self, reason: str, useless: frozenset[str] = frozenset()) -> None:
        """Dial again, and go on over what that gives. Raises OSError."""

    def start_climbing(self) -> None:
        """Look for a better path from now on, where there may be one."""
        if self.stream.driver.error is None and self._useless():
            self._climber.nursery.start_soon(self._climb)

    def _stop_climbing(self) -> None:
        if self._climbing is not None:
            self._climbing.cancel()

    def _ended(self) -> None:
        self.age.ended(trio.current_time(), self.stream.driver.silence)
        super()._ended()
        self._seekers.forget(self.key, self)
        self._stop_climbing()

    def _lost(self, error: OSError) -> None:
        if self._lost_at is None:
            self.age.lost(trio.current_time(), error, self.stream.driver.silence)
        super()._lost(error)

    def mind_age(self) -> None:
        """Have another path before this one is dropped, where it is known when it will be."""
        driver = self.stream.driver
        if driver.suspended or not driver.can_move or driver.closed:
            return
        if self.age.wants_successor(trio.current_time(), driver.silence):
            self._climber.nursery.start_soon(self._renew)

    async def _renew(self) -> None:
        if self.stream.driver.suspended:
            return
        self._stop_climbing()
        useless = frozenset() if self.stream.path.kind == "relay" else _RELAYED
        with trio.CancelScope() as self._climbing:
            with suppress(OSError), trio.move_on_after(BUDGET):
                await self._move("it grew old", useless)
            await self._climb_on()

    def _useless(self) -> frozenset[str]:
        """What brings no better path than this one; empty where there is no better one. Direct ones are better than a
        relay, and where the first one has won, TCP, whose bytes the kernel moves, is better than UDP."""
        node, path = self._climber, self.stream.path
        useless: frozenset[str] = frozenset()
        if path.kind == "relay":
            useless = _RELAYED
        elif path.kind == "udp" and node.prefer == "first":
            useless = _RELAYED | set(UDP_TECHNIQUES)
        return useless if set(node.techniques) - useless else frozenset()

    async def _climb(self) -> None:
        """To a better path, as soon as there is one."""
        with trio.CancelScope() as self._climbing:
            await self._climb_on()

    async def _climb_on(self) -> None:
        driver, machine = self.stream.driver, self.stream.driver.machine
        climbing: Climbing | None = None
        while driver.error is None and (useless := self._useless()):
            now, carried = trio.current_time(), machine.sent + machine.received
            has_light = bool(set(self._climber.techniques) - useless - LEFT_OUT)
            climbing = climbing or Climbing(now, carried, has_light=has_light)
            kind, seconds = climbing.next(now, carried)
            if kind != "wait" and not self._seekers.enter(self.key, self):
                kind, seconds = "wait", LOOK
            if kind == "wait":
                with trio.move_on_after(seconds) as waiting:
                    await self._wait_changed()
                climbing = climbing if waiting.cancelled_caught else None
                continue
            reason = "a direct path" if self.stream.path.kind == "relay" else "a path over TCP"
            try:
                with suppress(OSError), trio.move_on_after(seconds):
                    await self._move(reason, useless if kind == "full" else useless | LEFT_OUT)
                    self._seekers.found(self.key)
            finally:
                self._seekers.leave(self.key, self)
            climbing.tried(kind, trio.current_time(), machine.sent + machine.received)

    async def _wait_changed(self) -> None:
        """Until the network is another one, at either end."""
        there = self._changed_there
        async with trio.open_nursery() as nursery:

            async def wait(event: Callable[[], Awaitable[None]]) -> None:
                await event()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait, self._climber.wait_network_changed)
            nursery.start_soon(wait, there.wait)

    def changed_there(self) -> None:
        """The listener's network is another one."""
        self._changed_there.set()
        self._changed_there = trio.Event()
