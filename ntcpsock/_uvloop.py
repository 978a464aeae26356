"""uvloop resolves, connects and accepts in C, where no Python class is met: names are led past it.

Its loop class gets methods of ours that know names and hand everything else on: what is connected by name is a
socket of ours, connected before uvloop has it (`sock=`); what listens under a name is accepted by our class,
which lets in nobody but the engine, and handed to uvloop connection by connection. Bytes flow in uvloop as ever.

What stays different: a transport that was connected by name shows the loopback address of the engine as its
"peername", because uvloop asks the kernel; the accepting side shows the peer's number.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket as _stdlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ntcpsock import _names, _publish, _resolver
from ntcpsock._socket import NTCPSocket

log = logging.getLogger("ntcpsock")

# Errors of accept() that pass by themselves, and how long they are given, in seconds; as in asyncio.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_ACCEPT_RETRY_DELAY = 1.0


def methods(base: Any) -> dict[str, Callable[..., Any]]:
    """The methods for uvloop.Loop; base: the class of uvloop's own that it derives from."""

    async def getaddrinfo(self: Any, host: Any, port: Any, **keywords: Any) -> Any:
        if _names.label_of(host) is None:
            return await base.getaddrinfo(self, host, port, **keywords)
        # In a thread: the first question starts the engine.
        return await self.run_in_executor(None, partial(_resolver.getaddrinfo, host, port, **keywords))

    async def getnameinfo(self: Any, sockaddr: Any, flags: int = 0) -> Any:
        if _names.label_of_address(sockaddr) is None:
            return await base.getnameinfo(self, sockaddr, flags)
        return _names.getnameinfo(sockaddr, flags)

    async def create_connection(
        self: Any, protocol_factory: Any, host: Any = None, port: Any = None, **keywords: Any
    ) -> Any:
        if keywords.get("sock") is not None or _names.label_of(host) is None:
            return await base.create_connection(self, protocol_factory, host, port, **keywords)
        family, proto, flags = (keywords.pop(name, 0) for name in ("family", "proto", "flags"))
        local = keywords.pop("local_addr", None)
        found = _names.getaddrinfo(host, port, family, _stdlib.SOCK_STREAM, proto, flags)
        sock = NTCPSocket(found[0][0], _stdlib.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if local is not None:
                sock.bind(tuple(local))
            await self.sock_connect(sock, found[0][4])
            if keywords.get("ssl") and keywords.get("server_hostname") is None:
                keywords["server_hostname"] = host
            return await base.create_connection(self, protocol_factory, sock=sock, **keywords)
        except BaseException as error:
            # The dial's own error says more than its number, which is what uvloop has seen.
            failure = sock._parked.error if sock._parked is not None else None
            sock.close()
            if failure is not None and isinstance(error, OSError):
                raise failure from None
            raise

    async def create_server(
        self: Any, protocol_factory: Any, host: Any = None, port: Any = None, **keywords: Any
    ) -> Any:
        sock = keywords.get("sock")
        if sock is None and _is_ours(host):
            shares = {name: keywords.pop(name, None) for name in ("reuse_address", "reuse_port")}
            family = keywords.pop("family", 0)
            keywords.pop("flags", None)
            sockets = _bound(host, port, family, **shares)
        elif isinstance(sock, NTCPSocket) and _is_reached_by_name(sock):
            del keywords["sock"]
            sockets = [sock]
        else:
            try:
                return await base.create_server(self, protocol_factory, host, port, **keywords)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not _resolver.make_room((host, port)):
                    raise
            return await base.create_server(self, protocol_factory, host, port, **keywords)
        return await _serve(self, protocol_factory, sockets, **keywords)

    return {
        function.__name__: function
        for function in (getaddrinfo, getnameinfo, create_connection, create_server)
    }


def _is_ours(host: Any) -> bool:
    """A name, or all addresses in a process whose listeners are published under its own name."""
    if host in (None, "", "0.0.0.0", "::"):
        return _publish.enabled and _publish.own_name() is not None
    return isinstance(host, (str, bytes)) and _names.label_of(host) is not None


def _is_reached_by_name(sock: NTCPSocket) -> bool:
    """Whether it listens under a name, or will: what listens at all addresses is published by our class's listen."""
    if sock._named is not None or sock._published is not None:
        return True
    return _publish.enabled and _publish.is_candidate(sock) is not None and _publish.own_name() is not None


def _bound(
    host: Any, port: Any, family: int, *, reuse_address: bool | None, reuse_port: bool | None
) -> list[NTCPSocket]:
    """Sockets as asyncio's create_server makes them. Raises OSError."""
    sockets: list[NTCPSocket] = []
    found = _names.getaddrinfo(host or None, port, family, _stdlib.SOCK_STREAM, 0, _stdlib.AI_PASSIVE)
    try:
        for answer_family, _, _, _, address in dict.fromkeys(found):
            sock = NTCPSocket(answer_family, _stdlib.SOCK_STREAM)
            sockets.append(sock)
            if reuse_address or reuse_address is None:
                sock.setsockopt(_stdlib.SOL_SOCKET, _stdlib.SO_REUSEADDR, 1)
            if reuse_port:
                sock.setsockopt(_stdlib.SOL_SOCKET, _stdlib.SO_REUSEPORT, 1)
            if answer_family == _stdlib.AF_INET6 and _names.label_of_address(address) is None:
                sock.setsockopt(_stdlib.IPPROTO_IPV6, _stdlib.IPV6_V6ONLY, 1)
            sock.bind(address)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


async def _serve(
    loop: Any,
    protocol_factory: Any,
    sockets: list[NTCPSocket],
    *,
    backlog: int = 100,
    start_serving: bool = True,
    **tls: Any,
) -> Server:
    server = Server(loop, protocol_factory, sockets, backlog, tls)
    if start_serving:
        try:
            await server.start_serving()
        except BaseException:
            server.close()
            raise
    return server


class Server(asyncio.AbstractServer):
    """What `create_server` returns for sockets of ours; the interface of asyncio's own.

    tls: what `connect_accepted_socket` takes beside the socket.
    """

    def __init__(
        self, loop: Any, protocol_factory: Any, sockets: list[NTCPSocket], backlog: int, tls: dict[str, Any]
    ) -> None:
        self._loop = loop
        self._protocol_factory = protocol_factory
        self._sockets: list[NTCPSocket] | None = sockets
        self._backlog = backlog
        self._tls = tls
        self._serving = False
        self._closed = loop.create_future()
        # Connections that their protocol does not have yet; each ends by its handshake's deadline at the latest. They
        # outlive `close`, as in asyncio, and must: uvloop tells a protocol of no end whose task was cancelled.
        self._arriving: set[asyncio.Task[Any]] = set()

    @property
    def sockets(self) -> Sequence[NTCPSocket]:
        """The listening sockets; none when the server is closed."""
        return tuple(self._sockets or ())

    def get_loop(self) -> Any:
        """The loop that serves."""
        return self._loop

    def is_serving(self) -> bool:
        """Whether connections are accepted."""
        return self._serving

    async def start_serving(self) -> None:
        """Listen, which registers a name, and accept. Raises what `NTCPSocket.listen` raises."""
        if self._serving:
            return
        self._serving = True
        for sock in self.sockets:
            sock.setblocking(False)
            # In a thread: a name is registered at the broker.
            await self._loop.run_in_executor(None, sock.listen, self._backlog)
        for sock in self.sockets:
            self._loop.add_reader(sock.fileno(), self._accept, sock)

    async def serve_forever(self) -> None:
        """Accept until the caller is cancelled; then close."""
        await self.start_serving()
        try:
            await asyncio.shield(self._closed)
        finally:
            self.close()

    def close(self) -> None:
        """Stop listening; connections that are up go on."""
        sockets, self._sockets = self._sockets, None
        if sockets is None:
            return
        self._serving = False
        for sock in sockets:
            if sock.fileno() >= 0:
                self._loop.remove_reader(sock.fileno())
                sock.close()
        if not self._closed.done():
            self._closed.set_result(None)

    async def wait_closed(self) -> None:
        """Wait until `close` was called."""
        await asyncio.shield(self._closed)

    def _accept(self, sock: NTCPSocket) -> None:
        for _ in range(self._backlog):
            try:
                connection, _ = sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._loop.remove_reader(sock.fileno())
                if error.errno in _EXHAUSTED:
                    log.warning("a connection cannot be accepted: %s", error)
                    self._loop.call_later(_ACCEPT_RETRY_DELAY, self._resume, sock)
                else:
                    log.error("listening ended: %s", error)
                    self.close()
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._connect(connection))
            self._arriving.add(task)
            task.add_done_callback(self._arriving.discard)

    def _resume(self, sock: NTCPSocket) -> None:
        if self._serving and sock.fileno() >= 0:
            self._loop.add_reader(sock.fileno(), self._accept, sock)

    async def _connect(self, connection: NTCPSocket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol_factory, connection, **self._tls)
        except (OSError, asyncio.CancelledError) as error:
            # A client that fails in the TLS handshake is its own affair.
            connection.close()
            if isinstance(error, asyncio.CancelledError):
                raise
