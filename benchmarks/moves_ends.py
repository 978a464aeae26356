"""The two ends of `benchmarks.moves_lab`, a process each in a host of the lab: much data both ways over one connection.

Each prints lines of JSON: {"node"} of the listener, {"under_way"} when a quarter has come, {"sent"} with the outcome.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import time

import trio

from ntcpsock._config import Config
from ntcpsock._session.stream import NTCPStream
from ntcpsock.trio import open_node

PORT = 7000
BLOCK = 64 * 1024
#: Bytes of which every block is a piece, at another place each time.
_POOL = 16 * 1024 * 1024


def tell(**words: object) -> None:
    print(json.dumps(words), flush=True)


class Receipt:
    """What has come: `digest`, `count`; pause: the longest time without a byte, from and to when on the system's
    monotonic clock."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.count = 0
        self.began = self.last = time.monotonic()
        self.pause = (self.began, self.began)

    def take(self, data: bytes) -> None:
        """The next bytes; b"" at their end."""
        now = time.monotonic()
        if now - self.last > self.pause[1] - self.pause[0]:
            self.pause = (self.last, now)
        self.last = now
        self.digest.update(data)
        self.count += len(data)


async def exchange(stream: NTCPStream, size: int, seed: int) -> None:
    """Send `size` bytes and their end, receive until the other end has, and tell the outcome."""
    first = stream.path.technique
    source = random.Random(seed)
    pool = memoryview(source.randbytes(_POOL))
    sent, receipt = hashlib.sha256(), Receipt()
    error = ""

    async def send() -> None:
        left = size
        while left:
            start = source.randrange(_POOL - BLOCK)
            block = pool[start : start + min(BLOCK, left)]
            sent.update(block)
            left -= len(block)
            await stream.send_all(block)
        await stream.send_eof()

    async def receive() -> None:
        is_told = False
        while data := await stream.receive_some():
            receipt.take(data)
            if not is_told and receipt.count > size // 4:
                is_told = True
                tell(under_way=True)
        receipt.take(b"")

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            nursery.start_soon(receive)
    except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as failures:
        error = "; ".join(repr(failure.__cause__ or failure) for failure in failures.exceptions)
    tell(
        sent=sent.hexdigest(),
        received=receipt.digest.hexdigest(),
        bytes=receipt.count,
        began=receipt.began,
        ended=receipt.last,
        pause=receipt.pause,
        first=first,
        moves=[[move.path.technique, move.reason, round(move.pause, 3)] for move in stream.report.moves],
        error=error,
    )


async def listen(size: int) -> None:
    async with open_node(Config.load()) as node, await node.open_listener(PORT) as listener:
        tell(node=node.node_id)
        async with await listener.accept() as stream:
            await exchange(stream, size, 2)
        await trio.sleep_forever()  # the other end may still want to hear that all has come


async def dial(name: str, size: int) -> None:
    async with open_node(Config.load()) as node:
        await node.wait_warm()
        async with await node.open_stream(name, PORT, timeout=60) as stream:
            await exchange(stream, size, 1)
        await trio.sleep_forever()


def main() -> None:
    match sys.argv[1:]:
        case ["listen", size]:
            trio.run(listen, int(size))
        case ["dial", name, size]:
            trio.run(dial, name, int(size))
        case other:
            raise SystemExit(f"usage: listen BYTES | dial NAME BYTES, not {other}")


if __name__ == "__main__":
    main()
