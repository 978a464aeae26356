"""The TCP port of the servers: HTTP/1.1 requests of strangers, their limits, and whom they are handed to.

A connection costs a stranger an address and us a descriptor: until its owner has proved something it has a deadline,
a place among few of its host, and makes room, oldest first, where there are too many in all.
"""

from __future__ import annotations

import ipaddress
import resource
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

import h11
import trio

from ntcpsock._address import Endpoint, site_of
from ntcpsock._errors import BadMessage
from ntcpsock._servers.datagrams import endpoint_of

_RECEIVE_SIZE: Final = 4096
_BACKLOG: Final = 1024
# Seconds for an answer that ends the connection to arrive, and bytes that are read and dropped meanwhile.
_ANSWER_DEADLINE: Final = 5.0
_MOST_DRAINED: Final = 65536


@dataclass(frozen=True, slots=True)
class WebLimits:
    """connections: None is half of the process's descriptors. unproven: in all, and of one host. Seconds:
    header_deadline until a whole request has come, proof_deadline until its owner has proved something."""

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
    open: int = 0


class Visitor:
    """One connection with its request. `scope` ends it at its deadline; a handler that returns ends it too."""

    def __init__(self, stream: trio.SocketStream, source: Endpoint, header_bytes: int) -> None:
        self.stream = stream
        self.source = source
        self.scope = trio.CancelScope()
        self.request: h11.Request | None = None
        #: Bytes that came behind the request.
        self.rest = b""
        self.connection = h11.Connection(h11.SERVER, max_incomplete_event_size=header_bytes)
        #: To be called when the owner has proved something: no limit for strangers holds from then on.
        self.proved: Callable[[], None] = lambda: None

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        assert self.request is not None
        return list(self.request.headers)

    def header(self, name: str) -> bytes | None:
        """The value of a header that stands there once; None otherwise."""
        values = [value for key, value in self.headers if key == name.encode()]
        return values[0] if len(values) == 1 else None

    async def answer(self, status: int, text: str, content_type: str = "text/plain") -> None:
        """A whole response; the connection ends with it."""
        body = text.encode()
        headers = [
            ("Content-Type", f"{content_type}; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Connection", "close"),
        ]
        if self.connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        data = self.connection.send(h11.Response(status_code=status, headers=headers)) or b""
        is_head = self.request is not None and self.request.method == b"HEAD"
        data += b"" if is_head else self.connection.send(h11.Data(data=body)) or b""
        with trio.move_on_after(_ANSWER_DEADLINE):
            await self.stream.send_all(data)
            await self.stream.send_eof()
            # Closed over unread bytes, the kernel would send a reset that takes our answer along.
            unread = _MOST_DRAINED
            while unread > 0 and (rest := await self.stream.receive_some(_RECEIVE_SIZE)):
                unread -= len(rest)

    async def switch(self, protocol: str) -> None:
        """101: from here on the connection is `protocol`'s."""
        headers = [("Connection", "Upgrade"), ("Upgrade", protocol)]
        response = h11.InformationalResponse(status_code=101, headers=headers, reason=b"Switching Protocols")
        await self.stream.send_all(self.connection.send(response) or b"")


#: Serves one visitor whose request was for its path.
Handler = Callable[[Visitor], Awaitable[None]]


class WebServer:
    """Handlers by path."""

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        limits: WebLimits | None = None,
        *,
        behind: Collection[str] = (),
    ) -> None:
        """behind: addresses of reverse proxies, whose word (X-Forwarded-For) for whom they bring is taken."""
        self._handlers = handlers
        self._behind = frozenset(behind)
        self._limits = limits or WebLimits()
        self._most = self._limits.connections or _descriptors() // 2
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
        host = site_of(source.host.partition("%")[0])
        counters, limits = self.counters, self._limits
        is_crowded = self._unproven_of[host] >= limits.unproven_of_a_host and source.host not in self._behind
        if counters.open >= self._most or is_crowded:
            counters.refused += 1
            return
        counters.accepted += 1
        counters.open += 1
        visitor = Visitor(stream, source, limits.header_bytes)
        visitor.proved = lambda: self._proved(visitor)
        self._unproven[visitor] = host
        self._unproven_of[host] += 1
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
            self._proved(visitor)
            counters.open -= 1

    async def _serve(self, visitor: Visitor) -> None:
        try:
            if not await self._read_request(visitor):
                self.counters.broken += 1
                return
        except h11.RemoteProtocolError as error:
            self.counters.broken += 1
            await visitor.answer(error.error_status_hint, "Not a request that is served here.\n")
            return
        visitor.scope.deadline = trio.current_time() + self._limits.proof_deadline
        assert visitor.request is not None
        if visitor.source.host in self._behind:
            visitor.source = _forwarded(visitor)
        path = visitor.request.target.partition(b"?")[0].decode("ascii", "replace")
        handler = self._handlers.get(path)
        if handler is None:
            await visitor.answer(404, "There is nothing here. See /.\n")
        elif visitor.request.method not in (b"GET", b"HEAD"):
            await visitor.answer(405, "GET, please.\n")
        else:
            await handler(visitor)

    async def _read_request(self, visitor: Visitor) -> bool:
        """Whether a whole one came."""
        while True:
            event = visitor.connection.next_event()
            if event is h11.NEED_DATA:
                visitor.connection.receive_data(await visitor.stream.receive_some(_RECEIVE_SIZE))
            elif isinstance(event, h11.Request):
                visitor.request = event
                # For the state machine: what follows belongs to the handler.
                if visitor.connection.next_event() is h11.NEED_DATA:
                    raise h11.RemoteProtocolError("a request with a body", error_status_hint=413)
                visitor.rest = visitor.connection.trailing_data[0]
                return True
            else:
                return False

    def _proved(self, visitor: Visitor) -> None:
        host = self._unproven.pop(visitor, None)
        if host is not None:
            self._unproven_of[host] -= 1
            if not self._unproven_of[host]:
                del self._unproven_of[host]


def _forwarded(visitor: Visitor) -> Endpoint:
    """Where a reverse proxy says that a request came from: the last address is the one that it saw itself."""
    host = (visitor.header("x-forwarded-for") or b"").rpartition(b",")[2].decode("ascii", "replace").strip()
    try:
        return Endpoint(str(ipaddress.ip_address(host)), visitor.source.port)
    except ValueError:
        return visitor.source


def open_listener(listen: str, port: int, *, dual: bool = False) -> trio.SocketListener:
    """A TCP listener on a numeric address; dual: an IPv6 wildcard takes IPv4 too. Raises OSError, OverflowError."""
    family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        sock.bind((listen, port))
        sock.listen(_BACKLOG)
        return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    except BaseException:
        sock.close()
        raise


def _descriptors() -> int:
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft
