"""One connection to the TCP port of a server, over TLS or not, with the HTTP request that it began with."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import h11
import trio

from ntcpsock._address import Endpoint
from ntcpsock._servers.tls_stream import KernelSocket, TlsStream

RECEIVE_SIZE: Final = 4096
# Seconds for an answer that ends the connection to arrive, and bytes that are read and dropped meanwhile.
_ANSWER_DEADLINE: Final = 5.0
_MOST_DRAINED: Final = 65536


#: The HTTP of connections that have gone over to another protocol.
_SPENT: Final = h11.Connection(h11.SERVER)
_SPENT.send_failed()


class Visitor:
    """One connection with its request. `scope` ends it at its deadline; a handler that returns ends it too.

    stream: what is said, after TLS; socket: the kernel's; source: who it is, by the word of a trusted proxy where one
    is before us.
    """

    def __init__(self, connection: trio.SocketStream, source: Endpoint, header_bytes: int) -> None:
        self.stream: trio.abc.Stream = connection
        self.socket: KernelSocket = connection.socket
        self._connection = connection
        self.source = source
        self.is_tls = False
        self.scope = trio.CancelScope()
        self.request: h11.Request | None = None
        #: Bytes that came behind the request.
        self.rest = b""
        self.connection = h11.Connection(h11.SERVER, max_incomplete_event_size=header_bytes)
        #: To be called when the owner has proved something: no limit for strangers holds from then on.
        self.proved: Callable[[], None] = lambda: None

    async def begin_tls(self, context: ssl.SSLContext) -> None:
        """Raises OSError, trio.BrokenResourceError where that fails."""
        stream = TlsStream.take_over(self._connection, context)
        self.stream, self.socket, self.is_tls = stream, stream.kernel, True
        await stream.do_handshake()

    def forget_request(self) -> None:
        """Drop what only HTTP needs, some kilobytes; nothing can be answered any more."""
        self.request, self.rest, self.connection = None, b"", _SPENT

    def close(self) -> None:
        """What TLS has taken over; a plain connection is closed by whoever has accepted it."""
        if isinstance(self.stream, TlsStream):
            self.stream.close()

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        assert self.request is not None
        return list(self.request.headers)

    def header(self, name: str) -> bytes | None:
        """The value of a header that stands there once; None otherwise."""
        values = [value for key, value in self.headers if key == name.encode()]
        return values[0] if len(values) == 1 else None

    @property
    def is_forwarded(self) -> bool:
        """Whether a proxy says that it brings somebody."""
        return any(key == b"x-forwarded-for" for key, _ in self.headers)

    async def answer(
        self,
        status: int,
        text: str,
        content_type: str = "text/plain; charset=utf-8",
        further: Sequence[tuple[str, str]] = (),
    ) -> None:
        """A whole response, with `further` headers; the connection ends with it."""
        body = text.encode()
        headers = [
            ("Content-Type", content_type),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Connection", "close"),
            *further,
        ]
        if self.connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        data = self.connection.send(h11.Response(status_code=status, headers=headers)) or b""
        is_head = self.request is not None and self.request.method == b"HEAD"
        data += b"" if is_head else self.connection.send(h11.Data(data=body)) or b""
        with trio.move_on_after(_ANSWER_DEADLINE):
            await self.stream.send_all(data)
            # The length was said, so TLS needs no goodbye of its own.
            self.socket.shutdown(socket.SHUT_WR)
            # Closed over unread bytes, the kernel would send a reset that takes our answer along.
            unread = _MOST_DRAINED
            while unread > 0 and (rest := await self.socket.recv(RECEIVE_SIZE)):
                unread -= len(rest)

    async def switch(self, protocol: str) -> None:
        """101: from here on the connection is `protocol`'s."""
        headers = [("Connection", "Upgrade"), ("Upgrade", protocol)]
        response = h11.InformationalResponse(status_code=101, headers=headers, reason=b"Switching Protocols")
        await self.stream.send_all(self.connection.send(response) or b"")


#: Serves one visitor whose request was for its path.
Handler = Callable[[Visitor], Awaitable[None]]
