"""A node without a network: the interface that the sync face uses, within one engine.

`FakeNetwork` is what a broker and two NATs would be: a directory of listeners by name and port, and
scripted failures. Put `network.open_node` into `ntcpsock._portal.node_opener`.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
from quic_support import handshake, socket_paths
from session_support import make_stream, tls_streams

from ntcpsock._config import Config
from ntcpsock._errors import NameNotFound, NTCPError, PeerRefused, TraversalTimeout
from ntcpsock._nursery import open_background_nursery
from ntcpsock._report import PathInfo, PeerInfo, Report
from ntcpsock._session.stream import NTCPStream

NODE_ID = "abcdefghijklmnopqrstuvwxyz234567abcdefghijklmnopqrsa"


class _Direction:
    """The bytes one way: bounded, with an end and a reset."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.data = bytearray()
        self.ended = False
        self.reset = False
        self.changed = trio.lowlevel.ParkingLot()

    def wake(self) -> None:
        self.changed.unpark_all()

    async def put(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        view = memoryview(data)
        while view:
            if self.reset:
                raise trio.BrokenResourceError from ConnectionResetError(errno.ECONNRESET, "reset")
            room = self.limit - len(self.data)
            if room > 0:
                self.data += view[:room]
                view = view[room:]
                self.wake()
            else:
                await self.changed.park()

    async def take(self, limit: int) -> bytes:
        await trio.lowlevel.checkpoint()
        while not self.data:
            if self.reset:
                raise trio.BrokenResourceError from ConnectionResetError(errno.ECONNRESET, "reset")
            if self.ended:
                return b""
            await self.changed.park()
        data = bytes(self.data[:limit])
        del self.data[:limit]
        self.wake()
        return data


class FakeStream(trio.abc.HalfCloseableStream):
    """One end of a connection, with the attributes and the `reset` of an NTCPStream."""

    def __init__(self, peer: PeerInfo, out: _Direction, into: _Direction, report: Report) -> None:
        self.peer = peer
        self.path = PathInfo("tcp", "tcp-open", ("192.0.2.1", 1), ("198.51.100.1", 2), 0.1)
        self.report = report
        self.closed = False
        self._out = out
        self._into = into

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.closed or self._out.ended:
            raise trio.ClosedResourceError
        await self._out.put(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self.closed:
            raise trio.ClosedResourceError
        return await self._into.take(max_bytes or 65536)

    async def send_eof(self) -> None:
        self._out.ended = True
        self._out.wake()
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        """The peer sees what has arrived already, then the reset."""
        self.closed = True
        for direction in (self._out, self._into):
            if not (direction is self._out and direction.ended and not direction.data):
                direction.reset = True
            direction.wake()
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self.closed = True
        if not self._out.reset:
            self._out.ended = True
        # Bytes that come from now on have no reader: the sender's kernel would say so.
        if not self._into.ended:
            self._into.reset = True
        self._out.wake()
        self._into.wake()
        await trio.lowlevel.checkpoint()


@dataclass
class FakeNetwork:
    """The directory, and what is to go wrong in it."""

    #: Bytes on their way in each direction before a sender waits.
    window: int = 65536
    #: Real streams, TLS over loopback, in place of fakes.
    encrypted: bool = False
    #: Real streams, QUIC over loopback, in place of fakes.
    quic: bool = False
    #: Raised by open_stream for a name.
    dial_errors: dict[str, Exception] = field(default_factory=dict)
    #: Names that never answer.
    silent: set[str] = field(default_factory=set)
    #: Raised by open_node, open_listener.
    open_error: Exception | None = None
    listen_error: Exception | None = None
    listeners: dict[tuple[str, int], FakeListener] = field(default_factory=dict)
    #: The configurations that nodes were opened with, and what happened, in order.
    opened: list[Config] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    streams: list[FakeStream] = field(default_factory=list)

    @asynccontextmanager
    async def open_node(self, config: Config) -> AsyncIterator[FakeNode]:
        await trio.lowlevel.checkpoint()
        if self.open_error is not None:
            raise self.open_error
        self.opened.append(config)
        try:
            async with open_background_nursery() as nursery:
                yield FakeNode(self, config, nursery)
        finally:
            self.events.append(f"closed {config.name}")


class FakeNode:
    def __init__(self, network: FakeNetwork, config: Config, nursery: trio.Nursery) -> None:
        self.network = network
        self.nursery = nursery
        self.config = config
        self.name = config.name
        self.node_id = NODE_ID

    async def wait_warm(self) -> None:
        await trio.lowlevel.checkpoint()
        self.network.events.append("warm")

    async def open_stream(
        self, name: str, port: int, *, timeout: float | None = None, source_port: int = 0
    ) -> FakeStream | NTCPStream:
        network = self.network
        report = Report(f"{name}:{port}", "dialer")
        if name in network.silent:
            try:
                await trio.sleep(self.config.connect_timeout if timeout is None else timeout)
            except trio.Cancelled:
                network.events.append(f"cancelled dial of {name}")
                raise
            raise TraversalTimeout(f"{name}: no answer", report=report)
        await trio.lowlevel.checkpoint()
        error = network.dial_errors.get(name)
        if error is not None:
            if isinstance(error, NTCPError):
                error.report = report
            raise error
        listener = network.listeners.get((name, port))
        if listener is None:
            if any(known == name for known, _ in network.listeners):
                raise PeerRefused(f"{name}: nothing listens on port {port}", report=report)
            raise NameNotFound(f"{name}: nobody has this name", report=report)
        peers = PeerInfo(name, "b" * 52, port), PeerInfo(self.name, self.node_id, port, source_port)
        if network.encrypted or network.quic:
            if network.quic:
                carriers = await handshake(self.nursery, *socket_paths(1400))
                first, second = (make_stream(carrier) for carrier in carriers)
            else:
                first, second = await tls_streams()
            first.peer, second.peer = peers
            first.report = report
            await listener.arrive.send(second)
            return first
        there, back = _Direction(network.window), _Direction(network.window)
        ours = FakeStream(peers[0], there, back, report)
        theirs = FakeStream(peers[1], back, there, Report(f"{name}:{port}", "listener"))
        network.streams += [ours, theirs]
        await listener.arrive.send(theirs)
        return ours

    async def open_listener(
        self, port: int, *, name: str | None = None, allow: object = None, backlog: int = 128
    ) -> FakeListener:
        await trio.lowlevel.checkpoint()
        if self.network.listen_error is not None:
            raise self.network.listen_error
        label = name or self.name
        assert label is not None
        listener = FakeListener(self.network, label, port, backlog)
        if (label, port) in self.network.listeners:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        self.network.listeners[label, port] = listener
        self.network.events.append(f"listening {label}:{port}")
        return listener


class FakeListener(trio.abc.Listener[Any]):
    def __init__(self, network: FakeNetwork, name: str, port: int, backlog: int) -> None:
        self.network = network
        self.name = name
        self.port = port
        self.backlog = backlog
        self.arrive, self._arrived = trio.open_memory_channel[Any](max(1, backlog))
        self.failure: Exception | None = None

    async def accept(self) -> Any:
        try:
            return await self._arrived.receive()
        except trio.EndOfChannel:
            assert self.failure is not None
            raise self.failure from None

    def fail(self, error: Exception) -> None:
        """In the engine: the registration is lost."""
        self.failure = error
        self.arrive.close()

    async def aclose(self) -> None:
        self.network.listeners.pop((self.name, self.port), None)
        self.network.events.append(f"ended {self.name}:{self.port}")
        await trio.lowlevel.checkpoint()
