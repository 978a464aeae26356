"""The two ends of the soak, a process each in a host of the lab: connections that echo numbered blocks, for ever.

Each prints a line of JSON every few seconds: what it holds (descriptors, tasks, private memory), what went wrong, how
often streams moved.

Memory is what is in use. What a process takes once is taken before anything is measured: the first attempt with raw
packets loads scapy, 25 MB, or 45 where scapy has yet to write its cache. And what the allocator keeps of a moment when
all connections had several carriers each (84 KiB for one over QUIC) is given back first.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import trio

from benchmarks.idle_ends import resident
from ntcpsock._config import Config
from ntcpsock._errors import BadMessage
from ntcpsock._raw.packet import parse_syn_untrusted
from ntcpsock._session.stream import NTCPStream
from ntcpsock.trio import open_node

PORT = 7000
BLOCK = 4096
#: Seconds between two blocks of one connection, and between two lines.
PAUSE = 0.2
TELL = 5.0


def load_what_comes_late() -> None:
    """And let it be: it is no garbage."""
    with suppress(BadMessage, ImportError):
        parse_syn_untrusted(b"", 12)
    gc.collect()
    gc.freeze()


def in_use() -> int:
    """Bytes of private memory, without garbage and without free pages of glibc's."""
    gc.collect()
    with suppress(AttributeError):  # another libc
        ctypes.CDLL(None).malloc_trim(0)
    return resident()


class Account:
    """rounds: blocks that came back whole; wrong: that did not; ended: connections that broke; moves: of all streams,
    whose reports keep the newest only."""

    def __init__(self) -> None:
        self.rounds = 0
        self.wrong = 0
        self.ended: list[str] = []
        self.moves = 0
        self.streams: list[NTCPStream] = []

    async def follow(self, stream: NTCPStream) -> None:
        self.streams.append(stream)
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                await stream.wait_moved()
                self.moves += 1

    async def tell(self) -> None:
        while True:
            await trio.sleep(TELL)
            tasks = trio.lowlevel.current_statistics().tasks_living
            print(
                json.dumps(
                    {
                        "rounds": self.rounds,
                        "wrong": self.wrong,
                        "ended": self.ended,
                        "moves": self.moves,
                        "over": Counter(stream.path.kind for stream in self.streams),
                        "descriptors": len(os.listdir("/proc/self/fd")),
                        "tasks": tasks,
                        "resident": resident(),
                        "memory": in_use(),
                    }
                ),
                flush=True,
            )


def block(connection: int, number: int) -> bytes:
    """What the listener expects to be sent back changed: every byte depends on both numbers."""
    seed = hashlib.sha256(f"{connection} {number}".encode()).digest()
    return seed * (BLOCK // len(seed))


async def receive_exactly(stream: NTCPStream, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = await stream.receive_some(length - len(data))
        if not part:
            raise EOFError("the peer has ended")
        data += part
    return data


async def listen(account: Account) -> None:
    async def serve(stream: NTCPStream) -> None:
        nursery.start_soon(account.follow, stream)
        try:
            async with stream:
                while data := await stream.receive_some():
                    await stream.send_all(data)
        except (OSError, trio.BrokenResourceError) as error:
            account.ended.append(repr(error.__cause__ or error))

    async with open_node(Config.load()) as node, await node.open_listener(PORT) as listener:
        print(json.dumps({"node": node.node_id}), flush=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(account.tell)
            await trio.serve_listeners(serve, [listener], handler_nursery=nursery)


async def dial(account: Account, name: str, count: int) -> None:
    async def keep(number: int) -> None:
        try:
            async with await node.open_stream(name, PORT, timeout=60) as stream:
                nursery.start_soon(account.follow, stream)
                turn = 0
                while True:
                    sent = block(number, turn)
                    await stream.send_all(sent)
                    if await receive_exactly(stream, len(sent)) == sent:
                        account.rounds += 1
                    else:
                        account.wrong += 1
                    turn += 1
                    await trio.sleep(PAUSE)
        except (OSError, EOFError, trio.BrokenResourceError) as error:
            account.ended.append(repr(error.__cause__ or error))

    async with open_node(Config.load()) as node:
        await node.wait_warm()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(account.tell)
            for number in range(count):
                nursery.start_soon(keep, number)


def main() -> None:
    load_what_comes_late()
    account = Account()
    match sys.argv[1:]:
        case ["listen"]:
            trio.run(listen, account)
        case ["dial", name, count]:
            trio.run(dial, account, name, int(count))
        case other:
            raise SystemExit(f"usage: listen | dial NAME COUNT, not {other}; in {Path.cwd()}")


if __name__ == "__main__":
    main()
