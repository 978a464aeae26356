"""Packets as they pass this machine, by libpcap in a worker thread that ends with the block that opened it."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

import trio

from ntcpsock._errors import BadMessage
from ntcpsock._nursery import open_background_nursery

T = TypeVar("T")

# Captures at once in this process; each holds a thread.
MAX_CAPTURES = 16
_threads = trio.CapacityLimiter(MAX_CAPTURES)

# What a parser needs of a packet, and what waits for somebody to take it.
_SNAPSHOT_LENGTH = 256
_MAX_WAITING = 16

# libpcap hands packets over after so many milliseconds at the latest: those of one block of its ring.
_RING_TIMEOUT_MS = 10


class Capture(Generic[T]):
    """Made by `open_capture`."""

    def __init__(self, filter_text: str, parse: Callable[[bytes, int], T]) -> None:
        self._filter = filter_text
        self._parse = parse
        self._send, self._receive = trio.open_memory_channel[T](_MAX_WAITING)
        self._opened = trio.Event()
        self._failure: OSError | None = None
        self._wake_reader, self._wake_writer = socket.socketpair()
        #: Packets that the parser refused, or that nobody took in time.
        self.dropped = 0

    async def next(self) -> T:
        """The next packet that fits the filter. Cancelling it loses none. Raises OSError where the capture broke."""
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise self._failure or OSError(errno.EIO, "the capture has ended") from None

    async def opened(self) -> None:
        """Until the capture is on. Raises OSError where it cannot be."""
        await self._opened.wait()
        if self._failure is not None:
            raise self._failure

    async def run(self) -> None:
        """Capture until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._wake_when_cancelled)
                try:
                    await trio.to_thread.run_sync(self._work, limiter=_threads)
                except Exception as error:  # what libpcap, its binding or the parser's library say
                    self._failure = OSError(errno.EIO, f"capturing packets failed: {error}")
                nursery.cancel_scope.cancel()
        finally:
            self._send.close()
            self._opened.set()
            self._wake_reader.close()
            self._wake_writer.close()

    async def _wake_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self._wake_writer.send(b"!")

    # In the worker thread.

    def _work(self) -> None:
        handle = self._open()
        try:
            link_type = handle.datalink()
            descriptor = handle.getfd()
            trio.from_thread.run_sync(self._opened.set)
            while True:
                readable, _, _ = select.select([descriptor, self._wake_reader], [], [])
                if self._wake_reader in readable:
                    return
                # It may wake with nothing: next() does not wait then.
                _, frame = handle.next()
                if frame:
                    self._take(bytes(frame), link_type)
        finally:
            handle.close()

    def _open(self) -> Any:
        import pcapy  # type: ignore[import-not-found]

        # "any" has every interface: which one the packet takes is the routing table's business.
        handle = pcapy.create("any")
        handle.set_snaplen(_SNAPSHOT_LENGTH)
        handle.set_promisc(0)
        handle.set_timeout(_RING_TIMEOUT_MS)
        handle.activate()
        handle.setfilter(self._filter)
        # A blocking next() on a quiet network never returns, whatever time-out was set.
        handle.setnonblock(1)
        return handle

    def _take(self, frame: bytes, link_type: int) -> None:
        try:
            trio.from_thread.run_sync(self._send.send_nowait, self._parse(frame, link_type))
        except (BadMessage, trio.WouldBlock):
            self.dropped += 1


@asynccontextmanager
async def open_capture(filter_text: str, parse: Callable[[bytes, int], T]) -> AsyncIterator[Capture[T]]:
    """Capture what fits a pcap-filter(7) expression, on all interfaces, until the block ends.

    parse: makes of a frame and its link type what `next` returns; it runs in the thread, and BadMessage drops the
    frame. The capture is on when the block begins. Raises OSError (EIO) where it cannot be opened. The thread ends
    when the block ends, at once, whatever ends it.
    """
    capture = Capture(filter_text, parse)
    async with open_background_nursery() as nursery:
        nursery.start_soon(capture.run)
        await capture.opened()
        yield capture
