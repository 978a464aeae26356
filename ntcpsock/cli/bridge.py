"""Two connections as one: what ends, breaks or waits on one side does so on the other.

Data is read from one side when the other has taken what was read before, so a slow reader slows its sender
down and nothing piles up here. The end of a direction is passed on as an end (FIN), a reset as a reset.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from contextlib import suppress
from typing import Protocol

import trio

# One read. Measured for the pump of the sync face: smaller ones cost calls, larger ones leave the cache.
CHUNK = 256 * 1024

# A TCP connection that says nothing is probed after a minute, and given up 30 s later.
KEEP_ALIVE_IDLE = 60
KEEP_ALIVE_INTERVAL = 10
KEEP_ALIVE_PROBES = 3

_TCP_CLOSE = 7  # linux/include/net/tcp_states.h


class End(Protocol):
    """One of the two connections: an NTCPStream, or a TcpEnd."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray: ...
    async def send_all(self, data: bytes | bytearray) -> None: ...
    async def send_eof(self) -> None: ...
    async def aclose(self) -> None: ...
    def reset(self) -> None:
        """End both directions at once, in whatever state; the other side sees a reset."""


class TcpEnd:
    """A TCP connection as an End. It owns `stream`."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._reading = False
        self._eof_sent = False
        sock = stream.socket
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE_IDLE)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEP_ALIVE_INTERVAL)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEP_ALIVE_PROBES)

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        self._reading = True
        try:
            return await self._stream.receive_some(max_bytes)
        finally:
            self._reading = False

    async def send_all(self, data: bytes | bytearray) -> None:
        await self._stream.send_all(data)

    async def send_eof(self) -> None:
        self._eof_sent = True
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def reset(self) -> None:
        sock = self._stream.socket
        if sock.fileno() >= 0:
            # Closing a socket that does not linger is a RST.
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()

    @property
    def local(self) -> tuple[str, int]:
        """Our address, in numbers."""
        host, port, *_ = self._stream.socket.getsockname()
        return host.partition("%")[0], port

    @property
    def was_reset(self) -> bool:
        """Whether the connection was reset while nobody reads, who would have been told.

        Once our own FIN is out this says no: then both directions may have ended in order.
        """
        sock = self._stream.socket
        if self._reading or self._eof_sent or sock.fileno() < 0:
            return False
        with suppress(OSError):
            return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE)
        return False


async def open_tcp(host: str, port: int, *, timeout: float) -> trio.SocketStream:
    """Connect over plain TCP, within `timeout` seconds. Raises the OSError of the last address tried, in words."""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        with trio.fail_after(timeout):
            return await trio.open_tcp_stream(host, port)
    except trio.TooSlowError:
        raise TimeoutError(errno.ETIMEDOUT, f"no connection to {where} within {timeout:g} s") from None
    except socket.gaierror as error:
        raise socket.gaierror(error.errno, f"{where}: {error.strerror}") from error
    except OSError as error:
        # trio's error has no number, the attempts that it stands for have.
        cause = error.__cause__
        attempts = cause.exceptions if isinstance(cause, ExceptionGroup) else (error, cause)
        codes = [attempt.errno for attempt in attempts if isinstance(attempt, OSError) and attempt.errno]
        code = codes[-1] if codes else errno.EHOSTUNREACH
        raise OSError(code, f"{where}: {os.strerror(code)}") from error


class Bridge:
    """Joins two ends, and owns both.

    sent, received: bytes from `near` to `far`, and back. broken_by: the end that did not close in order, with
    the error that said so in `error`; None while all is well.
    """

    def __init__(self, near: End, far: End) -> None:
        self.near = near
        self.far = far
        self.sent = 0
        self.received = 0
        self.broken_by: End | None = None
        self.error: BaseException | None = None
        self._scope: trio.CancelScope | None = None

    async def run(self) -> None:
        """Carry bytes until both directions have ended in order, or one end has broken.

        Cancelled, it resets both ends: half a transfer must not look like a whole one.
        """
        clean = False
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                nursery.start_soon(self._send)
                await self._receive()
            clean = self.broken_by is None
        finally:
            if not clean:
                self.near.reset()
                self.far.reset()
        if clean:
            try:
                await self.near.aclose()
            finally:
                await self.far.aclose()

    def check(self) -> None:
        """Notice a reset of a TCP end that is not being read, since the other end takes no more, or since
        that direction has ended. To be called every now and then."""
        for end in (self.near, self.far):
            if isinstance(end, TcpEnd) and end.was_reset:
                self._break(end, ConnectionResetError("the connection was reset"))

    async def _send(self) -> None:
        while data := await self._read(self.near):
            if not await self._write(self.far, data):
                return
            self.sent += len(data)
        await self._end(self.far)

    async def _receive(self) -> None:
        while data := await self._read(self.far):
            if not await self._write(self.near, data):
                return
            self.received += len(data)
        await self._end(self.near)

    async def _read(self, end: End) -> bytes | bytearray:
        try:
            return await end.receive_some(CHUNK)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._break(end, error)
            await trio.lowlevel.checkpoint()
            return b""

    async def _write(self, end: End, data: bytes | bytearray) -> bool:
        try:
            await end.send_all(data)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._break(end, error)
            return False
        return True

    async def _end(self, end: End) -> None:
        if self.broken_by is None:
            try:
                await end.send_eof()
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                self._break(end, error)

    def _break(self, end: End, error: BaseException) -> None:
        if self.broken_by is None:
            self.broken_by, self.error = end, error
        if self._scope is not None:
            self._scope.cancel()
