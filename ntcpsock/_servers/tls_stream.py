"""TLS at the TCP port of a server, over a non-blocking `SSLSocket`: it copies less than memory BIOs do.

An end of one direction is TCP's own, without TLS's goodbye: what goes over it (frames, streams between nodes) says by
itself where it ends, and proves it, and so each direction can end alone.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable
from typing import Any, Final, Protocol

import trio

# What is read at once without asking the scheduler: several records.
_RECEIVE_SIZE: Final = 65536
_WRITE_SIZE: Final = 65536

#: What a ClientHello begins with: ContentType handshake (RFC 8446 section 5.1). No HTTP method or STUN message does.
TLS_HANDSHAKE: Final = b"\x16"


class KernelSocket(Protocol):
    """What may be done with the kernel's socket of a connection, be there TLS on top or not."""

    def recv(self, size: int, flags: int = 0, /) -> Awaitable[bytes]: ...
    def setsockopt(self, level: int, option: int, value: Any, /) -> None: ...
    def shutdown(self, how: int, /) -> None: ...


class TlsStream(trio.abc.Stream):
    """The server's side of TLS. Takes the socket over; `aclose` closes it."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        """Raises OSError where the other side is gone already; `sock` is closed then."""
        try:
            sock.setblocking(False)
            sock.getpeername()  # wrap_socket leaves the descriptor open where there is nobody
            # Where OpenSSL tells TCP's end from a reset, Python's way to hide the first would hide the second too.
            self._tls = context.wrap_socket(
                sock,
                server_side=True,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=not hasattr(ssl, "OP_IGNORE_UNEXPECTED_EOF"),
            )
        except BaseException:
            sock.close()
            raise
        self.kernel = _Kernel(self._tls)

    @classmethod
    def take_over(cls, stream: trio.SocketStream, context: ssl.SSLContext) -> TlsStream:
        """Over the socket of `stream`, which has none from here on. Raises as the constructor does."""
        sock = stream.socket
        return cls(socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach()), context)

    async def do_handshake(self) -> None:
        """Raises trio.BrokenResourceError."""
        await trio.lowlevel.checkpoint()
        while True:
            try:
                self._tls.do_handshake()
                return
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self._tls)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self._tls)
            except (OSError, ValueError) as error:
                raise trio.BrokenResourceError from error

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint_if_cancelled()
        wanted = max_bytes or _RECEIVE_SIZE
        parts: list[bytes] = []
        while wanted:
            try:
                data = self._tls.recv(wanted)
            except ssl.SSLWantReadError:
                if parts:
                    break
                await trio.lowlevel.wait_readable(self._tls)
                continue
            except (OSError, ValueError) as error:
                if parts:
                    break  # said again by the next call
                raise trio.BrokenResourceError from error
            if not data:
                break
            parts.append(data)
            wanted -= len(data)
        return b"".join(parts)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        view = memoryview(data)
        while view:
            try:
                view = view[self._tls.send(view[:_WRITE_SIZE]) :]
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self._tls)
            except (OSError, ValueError) as error:
                raise trio.BrokenResourceError from error
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.wait_writable(self._tls)

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Without a goodbye."""
        trio.lowlevel.notify_closing(self._tls)
        self._tls.close()


class _Kernel:
    """The methods of socket.socket that SSLSocket overrides, for what is below TLS."""

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self._tls = tls

    async def recv(self, size: int, flags: int = 0, /) -> bytes:
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            try:
                return socket.socket.recv(self._tls, size, flags)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._tls)

    def setsockopt(self, level: int, option: int, value: Any, /) -> None:
        self._tls.setsockopt(level, option, value)

    def shutdown(self, how: int, /) -> None:
        socket.socket.shutdown(self._tls, how)
