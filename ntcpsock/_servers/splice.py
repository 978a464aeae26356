"""Bytes from one connection to another: without passing through Python where both are plain sockets.

That is done by `splice`, by way of a pipe. A pipe belongs to a direction only while bytes are in it, so an idle
connection holds its two sockets and nothing else. Where there is no `splice`, `recv` and `send` do the same; and so do
the TLS streams where either end speaks TLS, since the kernel cannot read their records.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import trio

from ntcpsock._servers.tls_stream import KernelSocket

if sys.platform == "linux":
    import fcntl

#: Called with the number of bytes after each step; may wait.
Meter = Callable[[int], Awaitable[None]]

_CHUNK: Final = 256 * 1024
_COPY_CHUNK: Final = 64 * 1024
_SPARE_PIPES: Final = 64
_HAS_SPLICE: Final = sys.platform == "linux" and hasattr(os, "splice")


@dataclass(frozen=True, slots=True)
class End:
    """One end of a relayed connection. stream: what is said there; socket: the kernel's; is_tls: whether these are two
    things."""

    stream: trio.abc.Stream
    socket: KernelSocket
    is_tls: bool = False


class Pipe:
    """A pipe that does not block."""

    def __init__(self) -> None:
        assert sys.platform == "linux"
        self.reading, self.writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with suppress(OSError):
            # More than 64 KiB a step, where the system lets us: the pages of all pipes of a user are bounded.
            fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, _CHUNK)

    def close(self) -> None:
        os.close(self.reading)
        os.close(self.writing)


class Forwarder:
    """Forwards between pairs of ends. `use_splice` False is the way of systems without it."""

    def __init__(self, *, use_splice: bool = _HAS_SPLICE) -> None:
        self._spare: list[Pipe] = []
        self._use_splice = use_splice

    def close(self) -> None:
        while self._spare:
            self._spare.pop().close()

    async def forward(self, source: End, sink: End, meter: Meter) -> None:
        """All that `source` brings until its end, with the end as `sink`'s end.

        What `sink` does not take is not read from `source`. Raises OSError or trio.BrokenResourceError where either is
        broken. Cancelled, bytes may be lost: do not go on with the pair.
        """
        if source.is_tls or sink.is_tls:
            await _copy_streams(source.stream, sink.stream, meter)
        else:
            assert isinstance(source.socket, trio.socket.SocketType)
            assert isinstance(sink.socket, trio.socket.SocketType)
            step = self._splice if self._use_splice else _copy
            while count := await step(source.socket, sink.socket):
                await meter(count)
        try:
            sink.socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise

    async def _splice(self, source: trio.socket.SocketType, sink: trio.socket.SocketType) -> int:
        """Bytes moved; 0 at the end."""
        assert sys.platform == "linux"
        flags = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
        while True:
            await trio.lowlevel.wait_readable(source)
            pipe = self._spare.pop() if self._spare else Pipe()
            remaining = 0
            try:
                count = remaining = os.splice(source.fileno(), pipe.writing, _CHUNK, flags=flags)
                while remaining:
                    try:
                        remaining -= os.splice(pipe.reading, sink.fileno(), remaining, flags=flags)
                    except BlockingIOError:
                        await trio.lowlevel.wait_writable(sink)
                return count
            except BlockingIOError:
                continue  # nothing there after all
            finally:
                if remaining or len(self._spare) >= _SPARE_PIPES:
                    pipe.close()
                else:
                    self._spare.append(pipe)


async def _copy(source: trio.socket.SocketType, sink: trio.socket.SocketType) -> int:
    data = await source.recv(_COPY_CHUNK)
    unsent = memoryview(data)
    while unsent:
        unsent = unsent[await sink.send(unsent) :]
    return len(data)


async def _copy_streams(source: trio.abc.ReceiveStream, sink: trio.abc.SendStream, meter: Meter) -> None:
    while data := await source.receive_some(_COPY_CHUNK):
        await sink.send_all(data)
        await meter(len(data))
