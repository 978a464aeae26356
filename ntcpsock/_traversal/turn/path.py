"""The road to one peer by way of a TURN server, as QUIC and plain datagrams take it."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import trio

from ntcpsock._address import Endpoint
from ntcpsock._session.datagram_path import SAFE_DATAGRAM_SIZE
from ntcpsock._traversal.turn.transport import BATCH

#: Datagrams that wait for a slow reader; more are dropped, as a kernel's full buffer drops them.
MAX_QUEUED: Final = 1024


class PathOwner(Protocol):
    """What a path needs of its allocation."""

    @property
    def relayed(self) -> Endpoint: ...
    def check(self, host: str) -> None:
        """Raises OSError where nothing reaches `host` any more."""
        ...

    def try_send_to(self, datagrams: Sequence[bytes | memoryview], peer: Endpoint) -> int: ...
    async def wait_writable(self) -> None: ...
    def release(self, path: TurnPath) -> None: ...


class TurnPath:
    """A `DatagramPath` to `remote`, which sees us at `local`, the relayed address. Made by an allocation.

    Datagrams of 1,200 bytes fit every way, with TURN's own header or without. dropped: those that came and found
    the queue full.
    """

    def __init__(self, owner: PathOwner, remote: Endpoint) -> None:
        self._owner = owner
        self.local = owner.relayed
        self.remote = remote
        self.max_datagram_size = SAFE_DATAGRAM_SIZE
        self.dropped = 0
        self._queue: deque[bytes] = deque()
        self._arrived = trio.Event()
        self._waits: dict[str, trio.CancelScope] = {}
        self._closed = False

    def try_send(self, datagrams: Sequence[bytes | memoryview]) -> int:
        self._check_open()
        return self._owner.try_send_to(datagrams, self.remote)

    def try_receive(self) -> list[bytes]:
        self._check_open()
        if not self._queue:
            self._owner.check(self.remote.host)
            return []
        return [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]

    async def wait_readable(self) -> None:
        await self._wait("readable", self._until_readable)

    async def wait_writable(self) -> None:
        await self._wait("writable", self._owner.wait_writable)

    async def _until_readable(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self._queue:
            try:
                self._owner.check(self.remote.host)
            except OSError:
                return  # `try_receive` tells it
            await self._arrived.wait()

    async def _wait(self, what: str, wait: Callable[[], Awaitable[None]]) -> None:
        self._check_open()
        if what in self._waits:
            raise trio.BusyResourceError(f"another task waits until this path is {what}")
        with trio.CancelScope() as scope:
            self._waits[what] = scope
            try:
                await wait()
            finally:
                del self._waits[what]
        if scope.cancelled_caught:
            raise trio.ClosedResourceError("this path was closed or interrupted")

    def deliver(self, data: bytes) -> None:
        """A datagram from the peer, by the allocation's task."""
        if len(self._queue) >= MAX_QUEUED:
            self.dropped += 1
            return
        self._queue.append(data)
        self.wake()

    def wake(self) -> None:
        """Let the reader look again."""
        self._arrived.set()
        self._arrived = trio.Event()

    def interrupt(self) -> None:
        for scope in self._waits.values():
            scope.cancel()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._queue.clear()
            self.interrupt()
            self._owner.release(self)

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this path was closed")
