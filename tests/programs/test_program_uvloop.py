"""uvloop at both ends, and against asyncio's own loop, under `ntcp run`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from program_support import PAYLOAD, run, running

from ntcpsock.cli.stage import Stage, open_loopback_stage

pytest.importorskip("uvloop", reason="uvloop is not installed")

START = """
import asyncio, sys

if sys.argv[1] == "uvloop":
    from uvloop import new_event_loop
else:
    from asyncio import new_event_loop

def start(main):
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())
"""

SERVER = (
    PAYLOAD
    + START
    + """
async def handle(reader, writer):
    digest = hashlib.sha256()
    while data := await reader.read(65536):
        digest.update(data)
    writer.write(digest.hexdigest().encode())
    writer.close()

async def main():
    async with await asyncio.start_server(handle, "alice.ntcp", 8000) as server:
        print("ready")
        await server.serve_forever()

start(main)
"""
)

CLIENT = (
    PAYLOAD
    + START
    + """
async def ask(data):
    reader, writer = await asyncio.open_connection("alice.ntcp", 8000)
    writer.write(data)
    writer.write_eof()
    answer = (await reader.read()).decode()
    writer.close()
    return answer

async def main():
    assert await ask(PAYLOAD) == DIGEST
    print(len(set(await asyncio.gather(*(ask(bytes([number])) for number in range(20))))))
    try:
        await asyncio.open_connection("alice.ntcp", 8009)
    except OSError as error:
        print(type(error).__name__)

start(main)
"""
)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


@pytest.mark.parametrize("server", ["uvloop", "asyncio"])
def test_loops(stage: Stage, tmp_path: Path, server: str) -> None:
    with running(stage, tmp_path, "alice", SERVER, server):
        for client in ("uvloop", "asyncio"):
            told = run(stage, tmp_path, "bob", CLIENT, client)
            assert told[0] == "20", client
            assert told[1] in ("ConnectionRefusedError", "PeerRefused"), client
