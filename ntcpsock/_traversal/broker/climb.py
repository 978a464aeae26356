"""When to look whether UDP leads to the broker again, for a session that had to fall over to TCP."""

from __future__ import annotations

import math

import trio

#: Seconds until the first look, and between two of them at most: it doubles with each that finds nothing.
FIRST_PAUSE = 30.0
LONGEST_PAUSE = 960.0
#: Seconds until the first look in another network.
AFTER_CHANGE = 2.0
#: A session that had to leave UDP again within so many seconds begins with the pause that it had before, doubled.
GOOD_FOR = 600.0


class Climb:
    """A schedule; `wait` is its only wait."""

    def __init__(self) -> None:
        self._pause = FIRST_PAUSE
        self._is_wanted = trio.Event()
        self._moved = -math.inf
        self._hurried = trio.Event()

    def hurry(self) -> None:
        """The network is another one: what was found out in the old one does not count."""
        self._pause = AFTER_CHANGE
        self._hurried.set()

    def begin(self) -> None:
        """The session is over TCP now."""
        self._is_wanted.set()

    async def wait(self) -> None:
        """Until it is time to look. Without end while nobody has to climb."""
        await self._is_wanted.wait()
        while True:
            self._hurried = trio.Event()
            with trio.move_on_after(self._pause):
                await self._hurried.wait()
                continue
            return

    def rest(self) -> None:
        """There is nothing to climb to, or no need: wait for the next `begin`."""
        self._is_wanted = trio.Event()

    def failed(self) -> None:
        """UDP does not lead there."""
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def succeeded(self, now: float) -> None:
        """It does, and is in use."""
        self._moved = now
        self.rest()

    def fell(self, now: float) -> None:
        """The way in use has fallen silent, and another one is tried."""
        if now - self._moved > GOOD_FOR:
            self._pause = FIRST_PAUSE
        else:
            self.failed()
            self._moved = -math.inf
