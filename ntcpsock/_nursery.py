"""Tasks behind a block: the nursery of a context manager, and operations that outlive their caller."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import trio


@asynccontextmanager
async def open_background_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery that is cancelled at the end of the block, and lets the block's own exception out as it is.

    A plain nursery wraps it into an ExceptionGroup, and whoever writes `async with open_node()` would have to
    know that there are tasks behind it. A crash of a task still comes out as a group.
    """
    error: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except trio.Cancelled:
            raise
        except BaseException as caught:
            error = caught
        finally:
            nursery.cancel_scope.cancel()
    if error is not None:
        raise error


class Background:
    """Operations that go on after their caller has left, as a kernel's do after close(). Ended by `finish`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._running = 0
        self._idle = trio.Event()

    def start(self, operation: Callable[[], Awaitable[None]]) -> None:
        """Run `operation`; that its stream is broken or closed meanwhile interests nobody any more."""
        self._running += 1
        self._nursery.start_soon(self._run, operation)

    async def _run(self, operation: Callable[[], Awaitable[None]]) -> None:
        try:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await operation()
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()
                self._idle = trio.Event()

    async def finish(self, timeout: float) -> None:
        """Wait until nothing runs, `timeout` seconds at most."""
        with trio.move_on_after(timeout):
            while self._running:
                await self._idle.wait()
