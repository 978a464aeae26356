"""trio's own functions by name, through its hooks: a program that opens a node, and libraries that know of none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from program_support import DEADLINE, PAYLOAD, environment, run, running

from ntcpsock.cli.stage import Stage, open_loopback_stage, stop

# What a library would do.
HANDLER = (
    PAYLOAD
    + """
import trio

async def handle(stream):
    digest = hashlib.sha256()
    async for chunk in stream:
        digest.update(chunk)
    await stream.send_all(digest.hexdigest().encode())
    await stream.aclose()

async def serve():
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            lambda task_status: trio.serve_tcp(handle, 8000, host="alice.ntcp", task_status=task_status)
        )
        print("ready", len(listeners), flush=True)
"""
)

ASK = (
    PAYLOAD
    + """
import trio

async def ask(data, answers):
    async with await trio.open_tcp_stream("alice.ntcp", 8000) as stream:
        with trio.fail_after(60):
            await stream.send_all(data)
            await stream.send_eof()
            answers.append(b"".join([chunk async for chunk in stream]).decode())

async def main():
    answers = []
    await ask(PAYLOAD, answers)
    assert answers == [DIGEST]
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(ask, bytes([number]), answers)
    print(len(set(answers)))
    try:
        await trio.open_tcp_stream("alice.ntcp", 8009)
    except OSError as error:
        print(*(type(reason).__name__ for reason in error.__cause__.exceptions))
"""
)

# What the program around it does.
WITH_HOOKS = """
import ntcpsock.trio

async def with_hooks(name, run):
    async with ntcpsock.trio.open_node(name=name):
        ntcpsock.trio.install()
        try:
            await run()
        finally:
            ntcpsock.trio.uninstall()
"""


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


def test_hooks_at_both_ends(stage: Stage, tmp_path: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", HANDLER + WITH_HOOKS + "trio.run(with_hooks, 'alice', serve)"],
        env=environment(stage, "alice"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        assert server.stdout.readline() == "ready 1\n"
        done = subprocess.run(
            [sys.executable, "-c", ASK + WITH_HOOKS + "trio.run(with_hooks, None, main)"],
            env=environment(stage, "bob"),
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
    finally:
        stop(server)
        server.stdout.close()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["21", "PeerRefused"]


def test_unchanged_under_run(stage: Stage, tmp_path: Path) -> None:
    with running(stage, tmp_path, "alice", HANDLER + "trio.run(serve)"):
        assert run(stage, tmp_path, "bob", ASK + "trio.run(main)") == ["21", "ConnectionRefusedError"]
