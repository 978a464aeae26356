"""Whom a relay has: each side that has come, and how much a node or an address may still move."""

from __future__ import annotations

import socket

import trio

from ntcpsock._address import site_of
from ntcpsock._servers.visitor import Visitor
from ntcpsock._traversal.relay.message import Ticket


class Place:
    """One side that has come: it waits for the other one, and then until both are done."""

    def __init__(self, visitor: Visitor, ticket: Ticket) -> None:
        self.visitor = visitor
        self.ticket = ticket
        #: Whom its quotas count.
        self.site = site_of(visitor.source.host.partition("%")[0])
        self.joined = trio.Event()
        #: Nobody waits at its socket any more; `has_left` says whether that has ended.
        self.released = trio.Event()
        self.has_left = False
        self.done = trio.Event()
        #: Of the pair, once there is one.
        self.scope: trio.CancelScope | None = None

    def end(self) -> None:
        """Reset the pair, or leave while the other side has not come."""
        if self.scope is not None:
            self.scope.cancel()
        else:
            self.visitor.scope.cancel()

    async def wait(self) -> None:
        """Until it is over: joined and done, or gone before the other side came."""
        with trio.CancelScope() as gone:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, gone)
                await self.joined.wait()
                nursery.cancel_scope.cancel()
        if self.joined.is_set():
            self.released.set()
            await self.done.wait()

    async def _watch(self, gone: trio.CancelScope) -> None:
        """Cancel `gone` when the node leaves. What it says already is the other side's, and stays."""
        try:
            # Of TLS, too, an end of the connection is what tells: its records stay for whoever opens them.
            if not await self.visitor.socket.recv(1, socket.MSG_PEEK):
                gone.cancel()
        except OSError:
            gone.cancel()


class Allowance:
    """A node's bytes: a bucket that holds one second's worth."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._left = rate
        self._then = trio.current_time()

    async def spend(self, count: int) -> None:
        now = trio.current_time()
        self._left = min(self._rate, self._left + (now - self._then) * self._rate) - count
        self._then = now
        if self._left < 0:
            await trio.sleep(-self._left / self._rate)
