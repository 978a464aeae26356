"""anyio on both its backends, at both ends: the same program, under `ntcp run`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from program_support import PAYLOAD, run, running

from ntcpsock.cli.stage import Stage, open_loopback_stage

pytest.importorskip("anyio", reason="anyio is not installed")

SERVER = (
    PAYLOAD
    + """
import anyio, sys

async def handle(stream):
    async with stream:
        digest = hashlib.sha256()
        async for chunk in stream:
            digest.update(chunk)
        await stream.send(digest.hexdigest().encode())

async def main():
    listener = await anyio.create_tcp_listener(local_host="alice.ntcp", local_port=8000)
    print("ready")
    await listener.serve(handle)

anyio.run(main, backend=sys.argv[1])
"""
)

CLIENT = (
    PAYLOAD
    + """
import anyio, sys

async def ask(data, answers):
    async with await anyio.connect_tcp("alice.ntcp", 8000) as stream:
        await stream.send(data)
        await stream.send_eof()
        answers.append(b"".join([chunk async for chunk in stream]).decode())

async def main():
    answers = []
    await ask(PAYLOAD, answers)
    assert answers == [DIGEST]
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(ask, bytes([number]), answers)
    print(len(set(answers)))
    try:
        await anyio.connect_tcp("alice.ntcp", 8009)
    except OSError as error:
        print(type(error.__cause__).__name__)
    print(*(await anyio.getaddrinfo("alice.ntcp", 80))[0][4][1:])

anyio.run(main, backend=sys.argv[1])
"""
)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


@pytest.mark.parametrize("server", ["asyncio", "trio"])
def test_backends(stage: Stage, tmp_path: Path, server: str) -> None:
    with running(stage, tmp_path, "alice", SERVER, server):
        for backend in ("asyncio", "trio"):
            told = run(stage, tmp_path, "bob", CLIENT, backend)
            assert told == ["21", "ConnectionRefusedError", "80"], backend
