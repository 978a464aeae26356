"""What the lab tests of UDP paths run inside hosts."""

from __future__ import annotations

import hashlib
import socket
import time
from pathlib import Path
from typing import Any

import peer_programs as programs
import trio

from ntcpsock._config import Config
from ntcpsock._traversal.follower_attempts import FollowerAttempts
from ntcpsock.trio import open_node


def stay(config: Config, name: str, flag: Path, silences: int) -> tuple[str, tuple[tuple[str, int], ...]]:
    """Open a stream and echo a byte, be silent until the file `flag`.N is there, echo another one, and so on.

    The path's technique, and where its far end was after each echo.
    """

    async def main() -> tuple[str, tuple[tuple[str, int], ...]]:
        remotes = []
        async with open_node(config) as node:
            await programs.wait_registered(node, name)
            await node.wait_warm()
            async with await node.open_stream(name, programs.PORT) as stream:
                await stream.send_all(b"e")
                for number in range(silences + 1):
                    if number:
                        with trio.fail_after(programs.PATIENCE):
                            while not flag.with_suffix(f".{number}").exists():
                                await trio.sleep(0.02)
                    await stream.send_all(b"%d" % number)
                    with trio.fail_after(programs.PATIENCE):
                        assert await stream.receive_some() == b"%d" % number
                    remotes.append((stream.carrier.remote.host, stream.carrier.remote.port))
                    flag.with_suffix(f".{number}.done").touch()
                return stream.path.technique, tuple(remotes)

    return trio.run(main)


def listen_late(config: Config) -> None:
    """As `run_listener`, with checks of each first round that begin when the dialer's have long been there: what a
    busy machine, or a broker's round trip that was measured wrong, brings now and then."""
    in_time = FollowerAttempts.run

    async def late(self: FollowerAttempts, offered: Any, planned: Any, *further: Any) -> None:
        if offered.offer.round == 1:
            await trio.sleep(0.3)
        await in_time(self, offered, planned, *further)

    FollowerAttempts.run = late  # type: ignore[method-assign,assignment]
    programs.run_listener(config)


def wait_for(path: Path) -> None:
    """Until a file is there."""
    deadline = time.monotonic() + programs.PATIENCE
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} does not come")
        time.sleep(0.02)


def be_silent(seconds: float) -> None:
    """For so long that NATs forget."""
    time.sleep(seconds)


def try_often(config: Config, name: str, count: int) -> list[tuple[float, str]]:
    """The seconds of each connect, and its technique, or why it failed."""

    async def main() -> list[tuple[float, str]]:
        outcomes = []
        async with open_node(config) as node:
            await programs.wait_registered(node, name)
            for _ in range(count):
                await node.wait_warm()
                begin = trio.current_time()
                try:
                    stream = await node.open_stream(name, programs.PORT)
                except OSError as error:
                    report = getattr(error, "report", None)
                    why = (
                        [f"{entry.technique}: {entry.outcome}" for entry in report.attempts] if report else []
                    )
                    outcomes.append((trio.current_time() - begin, f"{error} {why}"))
                    continue
                async with stream:
                    outcomes.append((trio.current_time() - begin, stream.path.technique))
                    await stream.send_all(b"e")
                    await stream.send_eof()
                    await programs.read_all(stream)
        return outcomes

    return trio.run(main)


def exchange(config: Config, name: str, blocks: int) -> tuple[str, str, str]:
    """Send blocks to an echo and read them at once: what was sent and came back (sha256), and the technique."""

    async def main() -> tuple[str, str, str]:
        async with open_node(config) as node:
            await programs.wait_registered(node, name)
            async with await node.open_stream(name, programs.PORT) as stream:
                sent, back = hashlib.sha256(), hashlib.sha256()
                await stream.send_all(b"e")

                async def send() -> None:
                    for number in range(blocks):
                        block = bytes([number % 256]) + programs.BLOCK[1:]
                        sent.update(block)
                        await stream.send_all(block)
                    await stream.send_eof()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send)
                    missing = blocks * len(programs.BLOCK)
                    async for data in stream:
                        back.update(data[:missing])
                        missing -= min(missing, len(data))
                return sent.hexdigest(), back.hexdigest(), stream.path.technique

    return trio.run(main)


def send_datagrams(target: tuple[str, int], count: int) -> None:
    """Strangers' datagrams."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number in range(count):
            sock.sendto(b"\x40%d" % number, target)
