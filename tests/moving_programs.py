"""What the lab tests of moving streams run inside hosts: much data both ways, whatever happens to the path.

The test and they speak by files of one directory: `listening`, `under-way` when part of it is through, and `go`.
"""

from __future__ import annotations

import hashlib
import random
import time
from dataclasses import dataclass
from pathlib import Path

import trio
from peer_programs import PATIENCE, PORT, wait_registered

from ntcpsock._config import Config
from ntcpsock._session.stream import NTCPStream
from ntcpsock.trio import open_node

BLOCK = 64 * 1024


@dataclass(frozen=True)
class Transfer:
    """One end's. sent, received: SHA-256 of each direction; bytes: received; pause: the longest time without a byte;
    moves: to which kinds of paths; pauses: seconds that the stream had none."""

    sent: str
    received: str
    bytes: int
    pause: float
    first: str
    moves: tuple[str, ...]
    reasons: tuple[str, ...]
    pauses: tuple[float, ...]
    seconds: float
    error: str = ""


async def exchange(stream: NTCPStream, size: int, seed: int, under_way: Path | None) -> Transfer:
    """Send `size` bytes and their end, and receive until the other end has."""
    source = random.Random(seed)
    sent, received = hashlib.sha256(), hashlib.sha256()
    first = stream.path.technique
    count, pause, last = 0, 0.0, time.monotonic()
    began = last
    error = ""

    async def send() -> None:
        left = size
        while left:
            block = source.randbytes(min(BLOCK, left))
            sent.update(block)
            left -= len(block)
            await stream.send_all(block)
        await stream.send_eof()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while data := await stream.receive_some():
                received.update(data)
                count += len(data)
                now = time.monotonic()
                pause, last = max(pause, now - last), now
                if under_way is not None and count > size // 4:
                    under_way.touch()
    except BaseException as failure:
        if isinstance(failure, KeyboardInterrupt | trio.Cancelled):
            raise
        error = repr(failure)
    moves = stream.report.moves
    return Transfer(
        sent.hexdigest(),
        received.hexdigest(),
        count,
        pause,
        first,
        tuple(move.path.technique for move in moves),
        tuple(move.reason for move in moves),
        tuple(move.pause for move in moves),
        time.monotonic() - began,
        error,
    )


def listen(config: Config, signals: Path, size: int, outcome: Path) -> None:
    """Take part in every transfer; the outcome of each one into a file. Until killed."""

    async def main() -> None:
        async with open_node(config) as node, await node.open_listener(PORT) as listener:
            (signals / "listening").touch()
            number = 0
            async with trio.open_nursery() as nursery:
                while True:
                    stream = await listener.accept()
                    number += 1
                    nursery.start_soon(serve, stream, number)

    async def serve(stream: NTCPStream, number: int) -> None:
        async with stream:
            transfer = await exchange(stream, size, 2, None)
        part = outcome.with_suffix(f".{number}.part")
        part.write_text(repr(transfer))
        part.rename(outcome.with_suffix(f".{number}"))

    trio.run(main)


def transfer(config: Config, name: str, signals: Path, size: int) -> Transfer:
    """Dial, and exchange; `under-way` appears when a quarter has come."""

    async def main() -> Transfer:
        async with open_node(config) as node:
            await wait_registered(node, name)
            await node.wait_warm()
            async with await node.open_stream(name, PORT) as stream:
                return await exchange(stream, size, 1, signals / "under-way")

    return trio.run(main)


def wait_for(path: Path, patience: float = PATIENCE) -> None:
    """Until a file is there."""
    deadline = time.monotonic() + patience
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} does not come")
        time.sleep(0.02)
