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

WITH_ANYIO = (
    PAYLOAD
    + """
import anyio, trio

async def main():
    async with await anyio.connect_tcp("alice.ntcp", 8000) as stream:
        await stream.send(PAYLOAD)
        await stream.send_eof()
        assert b"".join([chunk async for chunk in stream]).decode() == DIGEST
    print("same")
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


@pytest.fixture
def server(stage: Stage) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-c", HANDLER + WITH_HOOKS + "trio.run(with_hooks, 'alice', serve)"],
        env=environment(stage, "alice"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready 1\n"
        yield
    finally:
        stop(process)
        process.stdout.close()


def client(stage: Stage, source: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", source + WITH_HOOKS + "trio.run(with_hooks, None, main)"],
        env=environment(stage, "bob"),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_hooks_at_both_ends(stage: Stage, server: None) -> None:
    assert client(stage, ASK) == ["21", "PeerRefused"]


def test_a_library_that_connects_through_the_hooks(stage: Stage, server: None) -> None:
    pytest.importorskip("anyio", reason="anyio is not installed")
    assert client(stage, WITH_ANYIO) == ["same"]


def test_unchanged_under_run(stage: Stage, tmp_path: Path) -> None:
    with running(stage, tmp_path, "alice", HANDLER + "trio.run(serve)"):
        assert run(stage, tmp_path, "bob", ASK + "trio.run(main)") == ["21", "ConnectionRefusedError"]
