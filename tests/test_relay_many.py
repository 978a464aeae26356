"""Two thousand relayed connections at once, and what they cost the relay's process."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from ntcpsock._address import Endpoint
from ntcpsock._state import load_identity
from ntcpsock._traversal.http.message import encode_request, upgrade_request
from ntcpsock._traversal.relay.message import SESSION_LENGTH, TICKET_HEADER, UPGRADE, issue_pair, to_header

SERVERS = Path(__file__).parents[1] / "servers"
PATIENCE = 240.0
# One address may not take a seat for everybody, nor one node.
HOSTS, NODES = 20, 20
AT_ONCE = 50
WORD = b"a" * 65536

Pair = tuple[trio.SocketStream, trio.SocketStream]


class Relay:
    """The relay, a process of its own."""

    def __init__(self, address: Endpoint, process: int, secret: bytes) -> None:
        self.address, self.process, self.secret = address, process, secret
        self._sessions = 0

    @property
    def memory(self) -> int:
        """Bytes that are resident."""
        for line in Path(f"/proc/{self.process}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")

    @property
    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process}/fd").iterdir()))

    async def pair(self) -> Pair:
        """Both ends of a relayed connection."""
        self._sessions += 1
        number = self._sessions
        nodes = (bytes([number % NODES]) * 32, bytes([128 + number % NODES]) * 32)
        session = number.to_bytes(SESSION_LENGTH, "big")
        tickets = issue_pair(self.secret, session, *nodes, time.time())
        one, two = [await self._seat(ticket, f"127.0.1.{1 + number % HOSTS}") for ticket in tickets]
        for stream in (one, two):
            answer = b""
            while b"\r\n\r\n" not in answer:
                chunk = await stream.receive_some(1)
                assert chunk, answer
                answer += chunk
            assert b" 101 " in answer, answer
        return one, two

    async def _seat(self, ticket: bytes, source: str) -> trio.SocketStream:
        stream = await trio.open_tcp_stream(*self.address, local_address=source)
        header = {TICKET_HEADER: to_header(ticket).decode()}
        await stream.send_all(encode_request(upgrade_request("relay", "/relay", UPGRADE, header)))
        return stream

    async def pairs(self, count: int) -> list[Pair]:
        found: list[Pair] = []
        limit = trio.CapacityLimiter(AT_ONCE)

        async def open_one() -> None:
            async with limit:
                found.append(await self.pair())

        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(open_one)
        return found


@contextmanager
def running_relay(folder: Path) -> Iterator[Relay]:
    secret = load_identity(folder / "relay.key").seed
    command = [sys.executable, str(SERVERS / "relay.py"), "--listen", "127.0.0.1", "--port", "0"]
    command += ["--relay-key", str(folder / "relay.key"), "--drain", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            host, _, port = process.stdout.readline().split()[1].rpartition(":")
            yield Relay(Endpoint(host, int(port)), process.pid, secret)
        finally:
            process.send_signal(signal.SIGTERM)


async def talk(pairs: list[Pair]) -> None:
    """Each end of each sends a word, and gets the other's; all at the same time."""

    async def send(stream: trio.SocketStream) -> None:
        await stream.send_all(WORD)

    async def receive(stream: trio.SocketStream) -> None:
        left = len(WORD)
        while left:
            data = await stream.receive_some(left)
            assert data
            left -= len(data)

    async with trio.open_nursery() as nursery:
        for pair in pairs:
            for stream in pair:
                nursery.start_soon(send, stream)
                nursery.start_soon(receive, stream)


async def close(pairs: list[Pair]) -> None:
    for pair in pairs:
        for stream in pair:
            await stream.aclose()


async def wave(relay: Relay, count: int) -> tuple[int, int, int]:
    """The relay's memory with `count` connections: idle, after all have talked, and after they have again."""
    pairs = await relay.pairs(count)
    idle = relay.memory
    await talk(pairs)
    once = relay.memory
    await talk(pairs)
    again = relay.memory
    # Two ends of each connection are the relay's; a pipe, only as long as bytes are in it.
    await trio.sleep(0.1)
    assert relay.descriptors < 2 * count + 2 * 64 + 100
    await close(pairs)
    while relay.descriptors > 2 * 64 + 100:
        await trio.sleep(0.05)
    return idle, once, again


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 6000
    if soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            pytest.skip(f"needs {wanted} descriptors, and {hard} are allowed")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_memory_is_flat(tmp_path: Path, many_descriptors: None, count: int) -> None:
    """A connection costs its objects; what it carries costs nothing, and what has ended leaves nothing."""

    async def main(relay: Relay) -> None:
        with trio.fail_after(PATIENCE):
            await close(await relay.pairs(20))
            before = relay.memory
            first = await wave(relay, count)
            await wave(relay, count)
            third = await wave(relay, count)
        size = (first[0] - before) / count
        assert size < 40 * 1024
        slack = 4 * 1024 * 1024
        assert first[2] - first[1] < slack
        assert third[2] - first[2] < slack

    with running_relay(tmp_path) as relay:
        trio.run(partial(main, relay))
