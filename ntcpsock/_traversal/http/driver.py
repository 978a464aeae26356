"""TCP connections to servers, straight or through an HTTP proxy, in TLS or not, and their upgrade, under trio."""

from __future__ import annotations

import errno
import os
import socket as stdlib_socket
import ssl
from collections.abc import Awaitable
from contextlib import suppress
from typing import Protocol

import trio

from ntcpsock._errors import BadMessage
from ntcpsock._traversal.http.message import (
    END_OF_HEAD,
    MAX_HEAD,
    Request,
    connect_request,
    decode_response_untrusted,
    encode_request,
)
from ntcpsock._traversal.http.proxy import Proxy
from ntcpsock._traversal.http.tls import TlsConnection


class Connection(Protocol):
    """What trio's sockets and `TlsConnection` have in common."""

    def recv(self, size: int, flags: int = 0, /) -> Awaitable[bytes]: ...
    def send(self, data: bytes | bytearray, /) -> Awaitable[int]: ...
    def close(self) -> None: ...


async def open_connection(host: str, port: int, proxy: Proxy | None) -> trio.socket.SocketType:
    """A connection to `host`, by way of `proxy` where there is one, which then resolves the name itself.

    Raises OSError; the caller sets the deadline.
    """
    sock = await _connect(*((proxy.host, proxy.port) if proxy else (host, port)))
    if proxy is not None:
        try:
            await ask(sock, connect_request(host, port, proxy.credentials), str(proxy))
        except BaseException:
            sock.close()
            raise
    return sock


async def open_tls(host: str, port: int, proxy: Proxy | None, context: ssl.SSLContext) -> TlsConnection:
    """Likewise, in TLS with `host` from end to end. Raises OSError; the caller sets the deadline."""
    sock = await open_connection(host, port, proxy)
    try:
        connection = TlsConnection(sock, context, host)
        await connection.handshake()
        return connection
    except BaseException:
        sock.close()
        raise


def send_at_once(connection: Connection, data: bytes) -> tuple[bytes, bool]:
    """Bring out what the kernel has room for, without waiting. What is left of `data`, and whether a further `send` is
    needed, be it of nothing, because the connection holds bytes back."""
    if isinstance(connection, TlsConnection):
        return b"", not connection.send_nowait(data)
    assert isinstance(connection, trio.socket.SocketType)
    with suppress(OSError):
        data = data[os.write(connection.fileno(), data) :]
    return data, bool(data)


async def _connect(host: str, port: int) -> trio.socket.SocketType:
    try:
        # trio's own race of addresses (RFC 8305).
        stream = await trio.open_tcp_stream(host, port)
    except OSError as error:
        # It tells that all have failed: one of the reasons says more.
        if isinstance(error.__cause__, BaseExceptionGroup):
            reason = error.__cause__.exceptions[0]
            if isinstance(reason, OSError):
                raise reason from None
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise
    return stream.socket


async def ask(sock: Connection, request: Request, who: str) -> None:
    """Send a request and take its answer, and not a byte more: what follows is another protocol's.

    Raises OSError where the answer is no; `who` stands in its text.
    """
    try:
        head = encode_request(request)
        while head:
            head = head[await sock.send(head) :]
        response = decode_response_untrusted(request, await _read_head(sock))
    except BadMessage as error:
        raise OSError(errno.EPROTO, f"{who} does not speak HTTP: {error.args[0]}") from error
    if response.status != request.wanted:
        raise OSError(
            errno.ECONNREFUSED, f"{who} answers {response.status} {response.reason} to {request.method}"
        )


async def _read_head(sock: Connection) -> bytes:
    head = b""
    while len(head) <= MAX_HEAD:
        # Looked at first: only what belongs to the head may be taken out of the kernel.
        ahead = await sock.recv(MAX_HEAD, stdlib_socket.MSG_PEEK)
        if not ahead:
            raise ConnectionResetError(errno.ECONNRESET, "the connection ended before the answer")
        known = len(head)
        end = (head + ahead).find(END_OF_HEAD)
        wanted = len(ahead) if end < 0 else end + len(END_OF_HEAD) - known
        head += await sock.recv(wanted)
        if end >= 0 and len(head) == known + wanted:
            return head
    raise BadMessage("too long a head")
