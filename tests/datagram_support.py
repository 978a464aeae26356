"""Nodes for datagrams without a network: hubs in one process, whose roads are connected UDP sockets of loopback."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio

from ntcpsock._address import Endpoint, encode_node_id
from ntcpsock._datagram_socket import Deliver, NTCPDatagramSocket, Refuse
from ntcpsock._datagram_way import OpenRoad
from ntcpsock._datagrams import Datagrams
from ntcpsock._errors import NameNotFound, PeerRefused
from ntcpsock._report import PathInfo, Report
from ntcpsock._session.datagram_road import BareRoad

_BATCH = 64


class LoopbackPath:
    """A DatagramPath over a connected UDP socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4194304)
        self.sock = sock
        self.local = Endpoint(*sock.getsockname())
        self.remote = Endpoint(*sock.getpeername())
        self.max_datagram_size = 1200
        self.closed = False

    def _check(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError

    def try_send(self, datagrams: object) -> int:
        self._check()
        taken = 0
        for data in datagrams:  # type: ignore[attr-defined]
            try:
                self.sock.send(data)
            except BlockingIOError:
                break
            taken += 1
        return taken

    def try_receive(self) -> list[bytes]:
        self._check()
        received: list[bytes] = []
        while len(received) < _BATCH:
            try:
                received.append(self.sock.recv(65536))
            except BlockingIOError:
                break
        return received

    async def wait_readable(self) -> None:
        self._check()
        await trio.lowlevel.wait_readable(self.sock)

    async def wait_writable(self) -> None:
        self._check()
        await trio.lowlevel.wait_writable(self.sock)

    def interrupt(self) -> None:
        trio.lowlevel.notify_closing(self.sock)

    def close(self) -> None:
        if not self.closed:
            self.interrupt()
            self.closed = True
            self.sock.close()


def joined_paths() -> tuple[LoopbackPath, LoopbackPath]:
    """Two ends of one path."""
    left, right = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    for sock in (left, right):
        sock.bind(("127.0.0.1", 0))
    left.connect(right.getsockname())
    right.connect(left.getsockname())
    return LoopbackPath(left), LoopbackPath(right)


def key_of(name: str) -> bytes:
    return name.encode().ljust(32, b"\1")


@dataclass
class Net:
    """The directory. dials: (dialler, label, port) in order; delay: seconds of a dial; fail: raised by a dial or a
    lookup of a label; roads: what was opened, both ends each."""

    nursery: trio.Nursery
    nodes: dict[str, Place] = field(default_factory=dict)
    dials: list[tuple[str, str, int]] = field(default_factory=list)
    delay: float = 0.0
    fail: dict[str, OSError] = field(default_factory=dict)
    roads: list[tuple[BareRoad, BareRoad]] = field(default_factory=list)
    lookups: list[str] = field(default_factory=list)

    def node(self, name: str) -> Place:
        place = self.nodes[name] = Place(self, name, self.nursery)
        return place

    async def resolve(self, name: str) -> bytes:
        self.lookups.append(name)
        await trio.lowlevel.checkpoint()
        if name in self.fail and isinstance(self.fail[name], NameNotFound):
            raise self.fail[name]
        for place in self.nodes.values():
            if name in place.own_labels:
                return place.public_key
        raise NameNotFound(f"{name}: nobody has this name")

    async def dial_road(self, dialler: Place, label: str, key: bytes, port: int) -> OpenRoad:
        self.dials.append((dialler.name, label, port))
        await trio.sleep(self.delay)
        if label in self.fail:
            raise self.fail[label]
        other = next(place for place in self.nodes.values() if place.public_key == key)
        sock = other.datagrams.sockets.get(port)
        if sock is None or not await other.is_allowed(sock.allow, dialler.public_key, dialler.says):
            raise PeerRefused(f"{label}: nothing is bound to port {port}")
        ours, theirs = joined_roads()
        self.roads.append((ours, theirs))
        other.datagrams.arrived(opened(theirs, dialler.public_key, dialler.says, "listener"))
        return opened(ours, key, label, "dialer")


class Network(Protocol):
    async def resolve(self, name: str) -> bytes: ...
    async def dial_road(self, dialler: Any, label: str, key: bytes, port: int) -> OpenRoad: ...


class Place:
    """A node with datagrams and nothing else: what `Datagrams` needs of one."""

    def __init__(self, net: Network, name: str, nursery: trio.Nursery) -> None:
        self.net = net
        self.name = name
        self.public_key = key_of(name)
        self.node_id = encode_node_id(self.public_key)
        self.own_labels = (name, self.node_id)
        #: By what name it introduces itself.
        self.says: str | None = name
        self.datagrams = Datagrams(self, nursery)

    def bind(
        self,
        port: int = 0,
        allow: tuple[str, ...] | None = None,
        *,
        deliver: Deliver | None = None,
        refuse: Refuse | None = None,
    ) -> NTCPDatagramSocket:
        return self.datagrams.bind(self.name, port, allow, is_bound=port != 0, deliver=deliver, refuse=refuse)

    async def resolve(self, name: str) -> bytes:
        return await self.net.resolve(name)

    async def is_allowed(self, allow: tuple[str, ...] | None, key: bytes, name: str | None) -> bool:
        await trio.lowlevel.checkpoint()
        return allow is None or encode_node_id(key) in allow or (name is not None and name in allow)

    async def dial_road(self, label: str, key: bytes, port: int, source_port: int) -> OpenRoad:
        return await self.net.dial_road(self, label, key, port)


def joined_roads() -> tuple[BareRoad, BareRoad]:
    left, right = joined_paths()
    return BareRoad(left), BareRoad(right)


def opened(road: BareRoad, key: bytes, name: str | None, role: str) -> OpenRoad:
    report = Report(name or "", role)  # type: ignore[arg-type]
    return OpenRoad(road, key, name, PathInfo("udp", "udp-punch", road.local, road.remote, 0.1), report)


@asynccontextmanager
async def open_net() -> AsyncIterator[Net]:
    async with trio.open_nursery() as nursery:
        net = Net(nursery)
        yield net
        for place in net.nodes.values():
            place.datagrams.close()
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until it is so."""
    with trio.fail_after(30):
        while not condition():
            await trio.sleep(0.001)


def pair(net: Net) -> tuple[Place, Place]:
    return net.node("alice"), net.node("bob")
