"""What a session needs from the thing that carries its bytes: TLS over TCP, a relay, a test's pipe.

Tries and waits are apart, so that one task can serve both directions and a cancelled wait loses
nothing: what `try_send` has taken is the carrier's to deliver, always whole and in order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from ntcpsock._address import Endpoint


class Carrier(Protocol):
    """An authenticated, ordered, reliable byte pipe. Errors of a broken one are OSErrors.

    After `close` every method but `close` raises trio.ClosedResourceError.
    """

    @property
    def local(self) -> Endpoint: ...

    @property
    def remote(self) -> Endpoint: ...

    def try_send(self, data: bytes | memoryview) -> int:
        """Take the first bytes of `data` without blocking; how many, 0 where it is full.

        With b"" it only goes on with what it holds.
        """
        ...

    @property
    def has_unsent(self) -> bool:
        """Whether the carrier itself holds bytes that only a further `try_send` moves on."""
        ...

    def try_receive_into(self, buffer: memoryview) -> int | None:
        """Fill the front of `buffer` without blocking: how many bytes, None where none are there now,
        0 at the end of the carrier."""
        ...

    @property
    def ended_cleanly(self) -> bool:
        """After `try_receive_into` said 0: whether the other end has closed the carrier, rather than lost it."""
        ...

    def pending(self) -> int:
        """Bytes that are here already and that `wait_readable` does not show, as those of an opened TLS record."""
        ...

    async def wait_writable(self) -> None:
        """Until `try_send` may get on. One waiter at a time."""
        ...

    async def wait_readable(self) -> None:
        """Until `try_receive_into`, that returned None, may get on. One waiter at a time."""
        ...

    def unacknowledged(self) -> int | None:
        """Bytes sent that have not reached the other end yet; None where the carrier cannot know."""
        ...

    def interrupt(self) -> None:
        """Wake both waiters with trio.ClosedResourceError; the carrier stays open."""
        ...

    def close(self, *, abort: bool = False) -> None:
        """Close at once, and `interrupt`. With `abort` the other end sees a reset where that can be said."""
        ...


@runtime_checkable
class WatchableCarrier(Protocol):
    """A carrier that can be waited for without a task."""

    def watch_readable(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` once, as soon as `wait_readable` would return or raise, perhaps at once. What this returns
        ends the watch; there is one at a time."""
        ...
