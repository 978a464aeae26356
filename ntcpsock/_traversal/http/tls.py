"""TLS around a connection to a server: `wss://` brokers and their relays, checked as a browser would.

It hides what is said from the network on the way, and gets through those that let nothing else out. It proves nothing
that matters here: frames and relayed streams are sealed from end to end inside of it.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from ntcpsock._errors import ConfigurationError

_RECEIVE_SIZE: Final = 65536


@functools.lru_cache(maxsize=8)
def client_context(ca_file: Path | None) -> ssl.SSLContext:
    """Checks names and chains, against the authorities of `ca_file` or of the system. Raises ConfigurationError."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # which SSLError is
        reason = error.strerror or error
        raise ConfigurationError(f"ca_file {ca_file}: {reason}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # An end of one direction is TCP's own: what goes over it proves by itself where it ends. OpenSSL 1 did so.
    context.options |= getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    context.set_alpn_protocols(["http/1.1"])
    return context


class TlsConnection:
    """The methods of a trio socket that byte streams need, over TLS. One task may receive while others send."""

    def __init__(self, sock: trio.socket.SocketType, context: ssl.SSLContext, host: str) -> None:
        """host: whose certificate it has to be, a name or an address."""
        self.socket = sock
        self._host = host
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        # Opened already, and sealed but not sent yet.
        self._opened = bytearray()
        self._sealed = bytearray()
        self._sending = trio.Lock()

    async def handshake(self) -> None:
        """Raises OSError where the server is not who it should be, or does not speak TLS."""
        while True:
            try:
                self._tls.do_handshake()
                self._take_sealed()
                await self._flush()
                return
            except ssl.SSLWantReadError:
                self._take_sealed()
                await self._flush()
                await self._fill()
            except ssl.SSLError as error:
                self._take_sealed()
                self._push()  # the alert that says why
                raise self._failure(error) from error

    async def recv(self, size: int, flags: int = 0, /) -> bytes:
        """As of a socket, MSG_PEEK included; b"" at the end. Raises OSError."""
        while not self._opened:
            try:
                data = self._tls.read(_RECEIVE_SIZE)
            except ssl.SSLWantReadError:
                await self._fill()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""
            except ssl.SSLError as error:
                raise self._failure(error) from error
            else:
                if not data:
                    return b""
                self._opened += data
        data = bytes(self._opened[:size])
        if not flags & socket.MSG_PEEK:
            del self._opened[:size]
        await trio.lowlevel.checkpoint()
        return data

    async def send(self, data: bytes | bytearray | memoryview, /) -> int:
        """All of it: a record that was begun must be finished. Raises OSError."""
        count = len(data)  # what it is now: it may grow while we wait
        self._seal(data)
        await self._flush()
        return count

    def send_nowait(self, data: bytes) -> bool:
        """Take all, and bring out what the kernel has room for; whether that was all. `send` brings out the rest."""
        self._seal(data)
        self._push()
        return not self._sealed

    def close(self) -> None:
        """Without a goodbye, as what goes over it has its own."""
        self.socket.close()

    def _seal(self, data: bytes | bytearray | memoryview) -> None:
        if data:
            try:
                self._tls.write(data)
            except ssl.SSLError as error:
                raise self._failure(error) from error
        self._take_sealed()

    def _take_sealed(self) -> None:
        self._sealed += self._outgoing.read()

    async def _flush(self) -> None:
        async with self._sending:
            while self._sealed:
                count = await self.socket.send(self._sealed)
                del self._sealed[:count]

    def _push(self) -> None:
        if self._sealed and not self._sending.locked():
            with suppress(OSError):
                del self._sealed[: os.write(self.socket.fileno(), self._sealed)]

    async def _fill(self) -> None:
        # What TLS itself has to say, as to a change of keys. Nobody waits for room here: both ends might.
        self._take_sealed()
        self._push()
        data = await self.socket.recv(_RECEIVE_SIZE)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _failure(self, error: ssl.SSLError) -> OSError:
        if isinstance(error, ssl.SSLCertVerificationError):
            reason = f"its certificate does not hold: {error.verify_message}"
        elif isinstance(error, ssl.SSLEOFError):
            reason = "the connection ended"
        else:
            reason = (error.reason or "an error").lower().replace("_", " ")
        return OSError(errno.EPROTO, f"TLS with {self._host}: {reason}")
