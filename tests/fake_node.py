"""A node without a network: the interface that the sync face uses, within one engine.

`FakeNetwork` is what a broker and two NATs would be: a directory of listeners by name and port, and
scripted failures. Put `network.open_node` into `ntcpsock._portal.node_opener`.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
from datagram_support import Place, joined_roads, key_of, opened
from quic_support import handshake, socket_paths
from session_support import make_stream, tls_streams

from ntcpsock._config import Config
from ntcpsock._datagram_socket import NTCPDatagramSocket
from ntcpsock._datagram_way import OpenRoad
from ntcpsock._datagrams import Datagrams
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
    #: What is set up in the engine's thread when the first node is opened: other nodes, for datagrams.
    at_start: list[Callable[[FakeNetwork, trio.Nursery], None]] = field(default_factory=list)
    #: The nodes for datagrams, ours and others, by name.
    places: dict[str, Any] = field(default_factory=dict)
    dial_delay: float = 0.0
    dials: list[tuple[str, int]] = field(default_factory=list)

    @asynccontextmanager
    async def open_node(self, config: Config) -> AsyncIterator[FakeNode]:
        await trio.lowlevel.checkpoint()
        if self.open_error is not None:
            raise self.open_error
        self.opened.append(config)
        try:
            async with open_background_nursery() as nursery:
                while self.at_start:
                    self.at_start.pop(0)(self, nursery)
                node = FakeNode(self, config, nursery)
                self.places[config.name or "nameless"] = node
                try:
                    yield node
                finally:
                    node.datagrams.close()
        finally:
            self.events.append(f"closed {config.name}")

    def peer(self, name: str, nursery: trio.Nursery) -> Place:
        """Another node, for datagrams."""
        place = self.places[name] = Place(self, name, nursery)
        return place

    # What nodes for datagrams need of a network.

    async def resolve(self, name: str) -> bytes:
        await trio.lowlevel.checkpoint()
        error = self.dial_errors.get(name)
        if isinstance(error, NameNotFound):
            raise error
        for place in self.places.values():
            if name in place.own_labels:
                return place.public_key  # type: ignore[no-any-return]
        if any(known == name for known, _ in self.listeners):
            return key_of(name)
        raise NameNotFound(f"{name}: nobody has this name")

    async def dial_road(self, dialler: Any, label: str, key: bytes, port: int) -> OpenRoad:
        self.dials.append((label, port))
        await trio.sleep(self.dial_delay)
        error = self.dial_errors.get(label)
        if error is not None:
            raise error
        other = next((place for place in self.places.values() if place.public_key == key), None)
        sock = None if other is None else other.datagrams.sockets.get(port)
        if other is None or sock is None:
            raise PeerRefused(f"{label}: nothing is bound to port {port}", report=Report(label, "dialer"))
        ours, theirs = joined_roads()
        other.datagrams.arrived(opened(theirs, dialler.public_key, dialler.name, "listener"))
        return opened(ours, key, label, "dialer")


class FakeNode:
    def __init__(self, network: FakeNetwork, config: Config, nursery: trio.Nursery) -> None:
        self.network = network
        self.nursery = nursery
        self.config = config
        self.name = config.name
        self.node_id = NODE_ID
        self.public_key = key_of(self.name or "nameless")
        self.own_labels: tuple[str, ...] = (self.name,) if self.name else ()
        self.datagrams = Datagrams(self, nursery)

    async def resolve(self, name: str) -> bytes:
        return await self.network.resolve(name)

    async def dial_road(self, label: str, key: bytes, port: int, source_port: int) -> OpenRoad:
        return await self.network.dial_road(self, label, key, port)

    async def is_allowed(self, allow: tuple[str, ...] | None, key: bytes, name: str | None) -> bool:
        await trio.lowlevel.checkpoint()
        return allow is None or name in allow

    async def open_datagram_socket(
        self, port: int | None = None, *, name: str | None = None, wanted: int = 0, **keywords: Any
    ) -> NTCPDatagramSocket:
        await trio.lowlevel.checkpoint()
        if port is None:
            number = 0 if wanted in self.datagrams.sockets else wanted
            return self.datagrams.bind(self.name or self.node_id, number, None, is_bound=False, **keywords)
        if self.network.listen_error is not None:
            raise self.network.listen_error
        if name is not None:
            self.own_labels += (name,)
        return self.datagrams.bind(name or self.name or "", port, None, is_bound=True, **keywords)

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
