"""The pump between an application's TCP socket and an NTCPStream.

The application holds one end of a loopback connection, the engine the other: the *hop*. What happens
on the hop happens on the stream and the other way round: bytes, the end of one direction (FIN), and
a reset (RST), which an application produces by SO_LINGER 0 or by closing with unread bytes. Back-pressure
is TCP's own: a direction is read only when the other side has taken what was read before.

This is the pump for every stream and system: two tasks for each connection, one a direction, on the plain
non-blocking socket (`trio.SocketStream` would cost a conflict detector and a checkpoint for each call). While nothing
moves over QUIC on Linux there are none: both sides are watched, for the tasks take 8 KB. On Linux, streams over TLS
and TCP take the faster one of `ntcpsock._pump_loop`, which behaves alike.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol, runtime_checkable

import trio

from ntcpsock import _broken
from ntcpsock._forwarding import HOP_BUFFER
from ntcpsock._readiness import readiness
from ntcpsock._report import PathInfo, PeerInfo, Report

# One read from the hop. Measured between 16 KiB and 1 MiB on loopback: smaller ones cost calls, larger
# ones leave the cache.
CHUNK = 256 * 1024

# After the end of one direction a hop that lost its application is noticed by these probes: the kernel
# forgets a closed socket that waits for our FIN after 60 s (tcp_fin_timeout), and then answers RST.
_PROBE_AFTER = 60
_PROBE_INTERVAL = 10
_PROBES = 3

# A stream whose both directions have ended is given so long to see its last bytes acknowledged.
CLOSE_DEADLINE = 60.0

# When the program exits: what it has written comes out of its kernel buffer without such a pause, and is
# no more than this (net.ipv4.tcp_wmem and tcp_rmem together); a thread that goes on writing is not waited for.
LAST_BYTES_PAUSE = 0.05
LAST_BYTES = 16 * 1024 * 1024

_TCP_CLOSE = 7  # linux/include/net/tcp_states.h


class Stream(Protocol):
    """What the pump needs of an NTCPStream."""

    @property
    def peer(self) -> PeerInfo: ...
    @property
    def path(self) -> PathInfo: ...
    @property
    def report(self) -> Report: ...
    async def send_all(self, data: bytes) -> None: ...
    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray: ...
    async def send_eof(self) -> None: ...
    async def aclose(self) -> None: ...
    @property
    def failure(self) -> OSError | None: ...
    async def wait_usable(self) -> bool: ...
    def reset(self) -> Awaitable[None] | None: ...


def tune(sock: socket.socket) -> None:
    """Prepare one end of a hop: no Nagle delay, and a congestion control that does not pace loopback.

    A system default of bbr would halve and more what loopback carries; reno may always be chosen.
    """
    with suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_CONGESTION"):
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


def prepare_hop(hop: socket.socket) -> None:
    """Prepare the engine's end of a hop.

    Its buffers are bounded: what they hold is more than one connection's worth of bytes under way, and a sender
    is to feel early that nobody reads. Urgent bytes stay in their place in the stream rather than get lost.
    """
    hop.setblocking(False)
    tune(hop)
    with suppress(OSError):
        hop.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        hop.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, HOP_BUFFER)
        hop.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, HOP_BUFFER)


def abort(sock: socket.socket) -> None:
    """Close with a RST (SO_LINGER 0), so that the other end sees ECONNRESET."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def reset(stream: Stream) -> None:
    """Reset `stream`, whatever state it is in; waits no longer than a second."""
    with trio.move_on_after(1), suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        waiting = stream.reset()
        if waiting is not None:
            await waiting


async def close_ends(
    hop: socket.socket, stream: Stream, *, clean: bool, keep_hop: bool, failure: BaseException | None
) -> None:
    """The end of a connection: in order where both directions have ended, and as a reset on both sides where not.

    failure: what the stream broke with, if it was the stream.
    """
    trio.lowlevel.notify_closing(hop)
    if keep_hop:
        hop.detach()
    elif clean:
        hop.close()
    if clean:
        with trio.move_on_after(CLOSE_DEADLINE), suppress(trio.BrokenResourceError):
            await stream.aclose()
        return
    try:
        with trio.CancelScope(shield=True):
            await reset(stream)
        if _broken.is_of_the_network(failure) and not keep_hop:
            await _broken.time_out(hop)
    finally:
        if not keep_hop:
            abort(hop)


def probe(hop: socket.socket) -> None:
    """Notice in time that the application is gone, on a hop that it has ended its direction of."""
    with suppress(OSError):
        hop.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        hop.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER)
        hop.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_INTERVAL)
        hop.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)


def is_closed(hop: socket.socket) -> bool:
    """Whether the application's end was reset, as far as the kernel tells."""
    if not hasattr(socket, "TCP_INFO"):
        return False
    with suppress(OSError):
        return hop.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE
    return False


@runtime_checkable
class WatchableStream(Protocol):
    """As `ntcpsock._session.stream.NTCPStream`."""

    @property
    def is_watchable(self) -> bool: ...
    def watch_incoming(self, callback: Callable[[], None]) -> Callable[[], None] | None: ...


class Pump:
    """Carries one connection. `run()` returns when both directions have ended or one was reset."""

    def __init__(self, hop: socket.socket, stream: Stream) -> None:
        prepare_hop(hop)
        self.hop = hop
        self.stream = stream
        self._tasks: trio.CancelScope | None = None
        self._reading: trio.CancelScope | None = None  # the wait for the application's next bytes
        self._receiving: trio.CancelScope | None = None  # the wait for the peer's next bytes
        # Both, at the last look.
        self._seen: tuple[trio.CancelScope | None, trio.CancelScope | None] = None, None
        self._dozing = False  # the tasks are to end until something moves
        self._alarm: trio.Event | None = None  # ends that sleep
        self._shut = False
        self._broken = False
        self._failure: BaseException | None = None
        self._finishing = False
        self._leaving = False
        self._keep_hop = False
        self._last_bytes = LAST_BYTES
        self._outward_step = CHUNK
        self._inward_step: int | None = None

    def wait_passed(self) -> None:
        """Nothing: the engine's tasks pass things on in their own time."""

    def limit_outward(self, size: int) -> None:
        """In any thread: take no more than so many bytes from the program at once."""
        self._outward_step = size

    def limit_inward(self, size: int) -> None:
        """In any thread: take no more than so many bytes from the peer at once."""
        self._inward_step = size

    async def run(self) -> bool:
        """Pump until the end. Owns both ends: they are closed, or reset, on every way out but one: True, where the
        stream has moved, and another pump suits it better."""
        clean = False
        try:
            await self._carry()
            while self._dozing and not self._broken:
                await self._sleep()
                self._dozing = False
                await self._carry()
            clean = not self._broken
            if clean and self._leaving:
                return True
        finally:
            if not (clean and self._leaving):
                await self._close_ends(clean)
        return False

    async def _carry(self) -> None:
        async with trio.open_nursery() as nursery:
            self._tasks = nursery.cancel_scope
            nursery.start_soon(self._outward)
            await self._inward()

    async def _sleep(self) -> None:
        """Until either side has something, or this end. The tasks find out what it is."""
        stream, watching, self._alarm = self.stream, readiness(), trio.Event()
        assert isinstance(stream, WatchableStream)
        assert watching is not None
        stop = stream.watch_incoming(self._alarm.set)
        if stop is None:
            return
        try:
            try:
                watching.watch(self.hop, self._alarm.set)
            except OSError:  # the system watches no more descriptors: the tasks wait, as elsewhere
                return
            if not (self._finishing or self._leaving):
                await self._alarm.wait()
        finally:
            self._alarm = None
            watching.forget(self.hop)
            stop()

    def _doze(self) -> None:
        """Where nothing has moved since the last look."""
        waits = self._reading, self._receiving
        is_idle = waits[0] is not None and waits[0] is self._seen[0] and waits[1] is self._seen[1]
        self._seen = waits
        stream = self.stream
        if not is_idle or waits[1] is None or self._finishing or self._leaving:
            return
        if not isinstance(stream, WatchableStream) or not stream.is_watchable or readiness() is None:
            return
        self._dozing, self._seen = True, (None, None)
        self._end_waits()

    def _end_waits(self) -> None:
        for scope in (self._reading, self._receiving):
            if scope is not None:
                scope.cancel()
        if self._alarm is not None:
            self._alarm.set()

    async def _close_ends(self, clean: bool) -> None:
        await close_ends(self.hop, self.stream, clean=clean, keep_hop=self._keep_hop, failure=self._failure)

    def leave(self) -> None:
        """Let another pump go on, which suits the stream better now: `run` returns as soon as nothing is half done."""
        self._leaving = True
        self._end_waits()

    def finish(self, *, keep_hop: bool) -> None:
        """The engine is ending: send what the program has written, say the end, and wait for nothing more.

        keep_hop: leave the application's end as it is, until the process ends.
        """
        self._finishing = True
        self._keep_hop = keep_hop
        self._end_waits()

    def check(self) -> None:
        """Break the connection when the application's end was reset while nobody reads the hop.

        The pump sees a RST when it reads. It does not read after the end of that direction, nor while
        the peer takes no bytes; the engine calls this every now and then. Once our own FIN is out, a
        closed hop is no news: both directions may have ended in order.
        """
        if self._alarm is not None:
            return
        if self._reading is None and not self._shut and is_closed(self.hop):
            self._break()
        else:
            self._doze()

    def _break(self, failure: BaseException | None = None) -> None:
        self._broken = True
        self._failure = self._failure or failure
        if self._tasks is not None:
            self._tasks.cancel()

    async def _outward(self) -> None:
        """Application -> peer."""
        try:
            while data := await self._read():
                await self.stream.send_all(data)
            if self._leaving or self._dozing:
                return
            await self.stream.send_eof()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._break(error)
            return
        if not self._finishing:
            probe(self.hop)

    async def _read(self) -> bytes:
        """The next bytes of the application; b"" at its end. Raises OSError when it was reset."""
        while not self._finishing:
            if self._leaving or self._dozing:
                return b""
            try:
                return self.hop.recv(self._outward_step)
            except (BlockingIOError, InterruptedError):
                pass  # and wait outside, where the error and its frames are not kept
            with trio.CancelScope() as self._reading:
                await trio.lowlevel.wait_readable(self.hop)
            self._reading = None
        with trio.move_on_after(LAST_BYTES_PAUSE):
            await trio.lowlevel.wait_readable(self.hop)
            if self._last_bytes > 0:
                data = self.hop.recv(CHUNK)
                self._last_bytes -= len(data)
                return data
        return b""

    async def _inward(self) -> None:
        """Peer -> application."""
        try:
            while data := await self._receive():
                await self._write(data)
            if self._keep_hop or self._leaving or self._dozing:
                return
            self._shut = True
            with suppress(OSError):  # ENOTCONN: the application has gone already
                self.hop.shutdown(socket.SHUT_WR)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._break(error)

    async def _receive(self) -> bytes | bytearray:
        data: bytes | bytearray = b""
        if not (self._finishing or self._leaving or self._dozing):
            with trio.CancelScope() as self._receiving:
                data = await self.stream.receive_some(self._inward_step)
            self._receiving = None
        return data

    async def _write(self, data: bytes | bytearray) -> None:
        try:
            sent = self.hop.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent == len(data):
            return
        with memoryview(data) as view:
            while sent < len(data) and not self._finishing:
                await trio.lowlevel.wait_writable(self.hop)
                with suppress(BlockingIOError, InterruptedError):
                    sent += self.hop.send(view[sent:])
