"""Standard input and output as a byte stream, and netcat between them and a stream.

Both run in worker threads: files, pipes and terminals alike can be read and written there, and the
descriptors, which we share with the shell, keep their blocking mode.
"""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

CHUNK = 256 * 1024


@dataclass(slots=True)
class Transfer:
    """Bytes of one connection: from stdin to the peer, from the peer to stdout."""

    sent: int = 0
    received: int = 0


class Stdin:
    """Chunks of standard input. One reader serves connections one after another: what arrives while
    none is there waits for the next one."""

    def __init__(self, chunks: trio.MemoryReceiveChannel[bytes]) -> None:
        self._chunks = chunks

    async def receive(self) -> bytes:
        """The next bytes, b"" at the end and ever after. Cancelling loses nothing."""
        try:
            return await self._chunks.receive()
        except trio.EndOfChannel:
            return b""


@asynccontextmanager
async def open_stdin(fd: int = 0) -> AsyncIterator[Stdin]:
    """Read `fd` ahead by one chunk while the block runs."""
    sender, receiver = trio.open_memory_channel[bytes](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_feed, fd, sender)
        yield Stdin(receiver)
        nursery.cancel_scope.cancel()


async def _feed(fd: int, sender: trio.MemorySendChannel[bytes]) -> None:
    async with sender:
        # Started with stdin closed: descriptor 0 may belong to anything by now.
        if fd == 0 and sys.stdin is None:
            return
        while chunk := await trio.to_thread.run_sync(_read, fd, abandon_on_cancel=True):
            await sender.send(chunk)


async def exchange(stream: trio.abc.HalfCloseableStream, stdin: Stdin, *, until_peer_ends: bool) -> Transfer:
    """Copy both ways until both have ended; the end of stdin half-closes the stream.

    until_peer_ends: do not wait for the end of stdin, once the peer has ended.
    """
    transfer = Transfer()
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            while chunk := await stdin.receive():
                await stream.send_all(chunk)
                transfer.sent += len(chunk)
            await stream.send_eof()

        nursery.start_soon(send)
        while chunk := bytes(await stream.receive_some(CHUNK)):
            await trio.to_thread.run_sync(_write, 1, chunk, abandon_on_cancel=True)
            transfer.received += len(chunk)
        if until_peer_ends:
            nursery.cancel_scope.cancel()
    return transfer


def _read(fd: int) -> bytes:
    while True:
        try:
            return os.read(fd, CHUNK)
        except BlockingIOError:
            select.select([fd], [], [])  # another program left it non-blocking
        except OSError as error:
            # A terminal that went away.
            if error.errno == errno.EIO:
                return b""
            raise


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])
