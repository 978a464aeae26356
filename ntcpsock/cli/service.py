"""How `expose`, `forward` and `proxy` run: many connections at once, up to a limit, until a signal ends it."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import trio

if sys.platform != "win32":
    import resource

from ntcpsock.cli.moves import telling_moves
from ntcpsock.cli.output import Output, only_cause, run_command
from ntcpsock.cli.traffic import Connection, Traffic, live_line

if TYPE_CHECKING:
    from ntcpsock.cli.bridge import Bridge
    from ntcpsock.trio import NTCPStream

Accepted = TypeVar("Accepted")

# Descriptors besides those of the connections: warm ports, STUN connections, dials under way.
_OTHER_DESCRIPTORS = 256
_DESCRIPTORS_PER_CONNECTION = 2

# What accept() says when the process or the machine has no room just now, and the seconds to wait then.
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_NO_ROOM_PAUSE = 0.1

# Seconds after the signal for connections that are just ending; and between two looks at them.
GRACE = 1.0
_GRACE_TICK = 0.02


class Service:
    """The connections of one command. `limit` of them at once; the rest waits in the listener's queue."""

    def __init__(self, output: Output, limit: int) -> None:
        self.traffic = Traffic(output)
        self.limit = limit
        self._room = trio.Semaphore(limit)
        self._said_limit = False
        self._stopping = False
        self._accepting: set[trio.CancelScope] = set()

    def run(self, main: Callable[[], Awaitable[None]]) -> None:
        """Run `main` until SIGINT or SIGTERM (exit 0), or until it fails (exit 1, explained)."""
        run_command(self.traffic.output, lambda: self._until_signalled(main))

    async def _until_signalled(self, main: Callable[[], Awaitable[None]]) -> None:
        allow_descriptors(self.limit * _DESCRIPTORS_PER_CONNECTION + _OTHER_DESCRIPTORS)
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._main, main)
                async for _ in signals:
                    if self._stopping:
                        nursery.cancel_scope.cancel()
                    else:
                        nursery.start_soon(self._stop, nursery.cancel_scope)
        self.traffic.stopped()

    async def _stop(self, everything: trio.CancelScope) -> None:
        """Accept no more, let what is just ending end, then reset the rest. A second signal does not wait."""
        self._stopping = True
        for scope in self._accepting:
            scope.cancel()
        with trio.move_on_after(GRACE):
            while self.traffic.connections:
                await trio.sleep(_GRACE_TICK)
        everything.cancel()

    async def _main(self, main: Callable[[], Awaitable[None]]) -> None:
        async with live_line(self.traffic), trio.open_nursery() as nursery:
            nursery.start_soon(self.traffic.sweep)
            await main()

    async def accept_from(
        self,
        accept: Callable[[], Awaitable[Accepted]],
        handle: Callable[[Connection, Accepted], Awaitable[None]],
        label: Callable[[Accepted], str],
    ) -> None:
        """Hand each connection that `accept` gives to a task of `handle`, until the service is to stop.

        handle: an OSError or BrokenResourceError that leaves it concerns this connection only.
        """
        async with trio.open_nursery() as nursery:
            while not self._stopping:
                with trio.CancelScope() as scope:
                    self._accepting.add(scope)
                    await self._accept_one(nursery, accept, handle, label)
                self._accepting.discard(scope)

    async def _accept_one(
        self,
        nursery: trio.Nursery,
        accept: Callable[[], Awaitable[Accepted]],
        handle: Callable[[Connection, Accepted], Awaitable[None]],
        label: Callable[[Accepted], str],
    ) -> None:
        await self._wait_for_room()
        try:
            accepted = await accept()
        except BaseException as error:
            self._room.release()
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                await trio.sleep(_NO_ROOM_PAUSE)
            elif not isinstance(error, ConnectionError):  # which is gone before it was accepted
                raise
        else:
            nursery.start_soon(self._handle, handle, accepted, label(accepted))

    async def _wait_for_room(self) -> None:
        try:
            self._room.acquire_nowait()
        except trio.WouldBlock:
            if not self._said_limit:
                self._said_limit = True
                self.traffic.limit(self.limit)
            await self._room.acquire()
        else:
            # Said once for each time that it fills up, not for each connection at the brim.
            self._said_limit = self._said_limit and self._room.value < self.limit // 2

    async def _handle(
        self, handle: Callable[[Connection, Accepted], Awaitable[None]], accepted: Accepted, label: str
    ) -> None:
        connection = self.traffic.begin(label)
        try:
            await handle(connection, accepted)
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as errors:
            self.traffic.refused(connection, only_cause(errors))
        finally:
            self.traffic.end(connection)
            self._room.release()

    async def carry(
        self, connection: Connection, bridge: Bridge, target: str, stream: NTCPStream | None
    ) -> None:
        """Run a bridge whose ends are both there. stream: the one of them that goes by name."""
        self.traffic.opened(connection, bridge, stream, target)
        async with telling_moves(stream, partial(self.traffic.moved, connection)):
            await bridge.run()
        self.traffic.closed(connection, _side(bridge, stream))


def _side(bridge: Bridge, stream: NTCPStream | None) -> str | None:
    """Who did not end in order, in a word."""
    if bridge.broken_by is None:
        return None
    if bridge.broken_by is stream:
        return "peer"
    return "client" if bridge.broken_by is bridge.near else "service"


def allow_descriptors(count: int) -> None:
    """Raise the soft limit of open descriptors to `count`, or as far as the hard one allows. Windows has none."""
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
