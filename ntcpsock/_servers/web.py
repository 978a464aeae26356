"""The TCP port of the servers: HTTP/1.1 requests of strangers, their limits, and whom they are handed to.

A connection costs a stranger an address and us a descriptor: until its owner has proved something it has a deadline,
a place among few of its host, and makes room, oldest first, where there are too many in all.

With a certificate the port speaks TLS to whoever begins with a ClientHello, and stays plain for everybody else: what
goes over it is sealed from node to node anyway, so TLS hides only what it is, and gets it through networks that let
nothing else pass.
"""

from __future__ import annotations

import ipaddress
import socket
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NoReturn

import h11
import trio

from ntcpsock._address import Endpoint, site_of
from ntcpsock._errors import BadMessage
from ntcpsock._servers.certificate import CertificateFiles
from ntcpsock._servers.datagrams import endpoint_of
from ntcpsock._servers.descriptors import descriptor_limit
from ntcpsock._servers.networks import Networks
from ntcpsock._servers.tls_stream import TLS_HANDSHAKE
from ntcpsock._servers.visitor import RECEIVE_SIZE, Handler, Visitor


@dataclass(frozen=True, slots=True)
class WebLimits:
    """connections: None is half of the process's descriptors. unproven: in all, and of one host. Seconds:
    header_deadline until a whole request has come, TLS included; proof_deadline until its owner has proved
    something."""

    connections: int | None = None
    unproven: int = 1024
    unproven_of_a_host: int = 128
    header_bytes: int = 8192
    header_deadline: float = 10.0
    proof_deadline: float = 15.0


@dataclass(slots=True)
class WebCounters:
    """What the port has seen since it was opened."""

    accepted: int = 0
    refused: int = 0  # over a limit
    displaced: int = 0  # unproven, to make room
    late: int = 0  # no request, or no proof, in time
    broken: int = 0  # no HTTP, or gone half-way
    tls: int = 0  # of the accepted, those that began with TLS
    open: int = 0


class WebServer:
    """Handlers by path."""

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        limits: WebLimits | None = None,
        *,
        behind: Collection[str] = (),
        certificate: CertificateFiles | None = None,
    ) -> None:
        """behind: addresses and networks of reverse proxies, whose word (X-Forwarded-For) for whom they bring is
        taken. certificate: for those who speak TLS; None: nobody may. Raises ValueError for what is no address."""
        self._handlers = handlers
        self._behind = Networks(behind)
        self._certificate = certificate
        self._limits = limits or WebLimits()
        self._most = self._limits.connections or descriptor_limit() // 2
        self._unproven: dict[Visitor, str] = {}
        self._unproven_of: Counter[str] = Counter()
        self.counters = WebCounters()

    async def serve(self, listeners: list[trio.SocketListener]) -> NoReturn:
        """Until cancelled; closes the listeners."""
        await trio.serve_listeners(self._visit, listeners)

    async def _visit(self, stream: trio.SocketStream) -> None:
        try:
            address = stream.socket.getpeername()
        except OSError:  # gone before it was accepted
            return
        source = endpoint_of(address)
        host = _customer(source)
        counters, limits = self.counters, self._limits
        if counters.open >= self._most or (self._is_crowded(host) and source.host not in self._behind):
            counters.refused += 1
            return
        counters.accepted += 1
        counters.open += 1
        visitor = Visitor(stream, source, limits.header_bytes)
        visitor.proved = lambda: self._proved(visitor)
        self._count(visitor, host)
        if len(self._unproven) > limits.unproven:
            oldest = next(iter(self._unproven))
            oldest.scope.cancel()
            self._proved(oldest)
            counters.displaced += 1
        try:
            visitor.scope.deadline = trio.current_time() + limits.header_deadline
            with visitor.scope:
                await self._serve(visitor)
            counters.late += visitor.scope.cancelled_caught
        except (BadMessage, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            counters.broken += 1
        finally:
            visitor.close()
            self._proved(visitor)
            counters.open -= 1

    async def _serve(self, visitor: Visitor) -> None:
        try:
            await self._begin_tls(visitor)
            if not await self._read_request(visitor):
                self.counters.broken += 1
                return
        except h11.RemoteProtocolError as error:
            self.counters.broken += 1
            await visitor.answer(error.error_status_hint, "Not a request that is served here.\n")
            return
        visitor.scope.deadline = trio.current_time() + self._limits.proof_deadline
        assert visitor.request is not None
        if visitor.source.host in self._behind and not self._believe(visitor):
            self.counters.refused += 1
            await visitor.answer(429, "Too many connections of this address.\n")
            return
        path = visitor.request.target.partition(b"?")[0].decode("ascii", "replace")
        handler = self._handlers.get(path)
        if handler is None:
            await visitor.answer(404, "There is nothing here. See /.\n")
        elif visitor.request.method not in (b"GET", b"HEAD"):
            await visitor.answer(405, "GET, please.\n")
        else:
            await handler(visitor)

    async def _begin_tls(self, visitor: Visitor) -> None:
        """With whoever wants it. Raises trio.BrokenResourceError where that fails."""
        if self._certificate is None:
            return
        if await visitor.socket.recv(1, socket.MSG_PEEK) != TLS_HANDSHAKE:
            return
        self.counters.tls += 1
        await visitor.begin_tls(self._certificate.context)

    async def _read_request(self, visitor: Visitor) -> bool:
        """Whether a whole one came."""
        while True:
            event = visitor.connection.next_event()
            if event is h11.NEED_DATA:
                visitor.connection.receive_data(bytes(await visitor.stream.receive_some(RECEIVE_SIZE)))
            elif isinstance(event, h11.Request):
                visitor.request = event
                # For the state machine: what follows belongs to the handler.
                if visitor.connection.next_event() is h11.NEED_DATA:
                    raise h11.RemoteProtocolError("a request with a body", error_status_hint=413)
                visitor.rest = visitor.connection.trailing_data[0]
                return True
            else:
                return False

    def _believe(self, visitor: Visitor) -> bool:
        """A proxy's word for whom it brings, who is counted from here on; False: he has too many connections."""
        source = _forwarded(visitor)
        host = _customer(source)
        if source.host not in self._behind and self._is_crowded(host):
            return False
        visitor.source = source
        if visitor in self._unproven:
            self._proved(visitor)
            self._count(visitor, host)
        return True

    def _is_crowded(self, host: str) -> bool:
        return self._unproven_of[host] >= self._limits.unproven_of_a_host

    def _count(self, visitor: Visitor, host: str) -> None:
        self._unproven[visitor] = host
        self._unproven_of[host] += 1

    def _proved(self, visitor: Visitor) -> None:
        host = self._unproven.pop(visitor, None)
        if host is not None:
            self._unproven_of[host] -= 1
            if not self._unproven_of[host]:
                del self._unproven_of[host]


def _customer(source: Endpoint) -> str:
    return site_of(source.host.partition("%")[0])


def _forwarded(visitor: Visitor) -> Endpoint:
    """Where a reverse proxy says that a request came from: the last address is the one that it saw itself."""
    host = (visitor.header("x-forwarded-for") or b"").rpartition(b",")[2].decode("ascii", "replace").strip()
    try:
        return Endpoint(str(ipaddress.ip_address(host)), visitor.source.port)
    except ValueError:
        return visitor.source
