"""servers/tcp_broker.py and servers/relay.py as processes: two nodes that meet at a relay elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from ntcpsock._address import parse_broker, parse_host_port
from ntcpsock._config import Config
from ntcpsock._state import load_identity
from ntcpsock.trio import open_node

SERVERS = Path(__file__).parents[1] / "servers"
PATIENCE = 60.0


@contextmanager
def running(script: str, *arguments: str) -> Iterator[str]:
    """The ready line's second word; at the end SIGTERM and a clean exit."""
    with subprocess.Popen(
        [sys.executable, str(SERVERS / script), "--listen", "127.0.0.1", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    ) as process:
        try:
            assert process.stdout is not None
            ready, _, where = process.stdout.readline().strip().partition(" ")
            assert ready == "ready"
            yield where
            process.send_signal(signal.SIGTERM)
            output, errors = process.communicate(timeout=PATIENCE)
            assert (process.returncode, output, errors) == (0, "", "")
        finally:
            process.kill()


async def test_nodes_meet_at_a_relay_elsewhere(tmp_path: Path) -> None:
    state = tmp_path / "broker"
    load_identity(state / "relay.key")
    with running("relay.py", "--key", str(state / "relay.key")) as relay:
        with running("tcp_broker.py", "--state-dir", str(state), "--relay", relay) as uri:
            assert parse_broker(uri).key is not None
            alice = Config(broker=uri, name="alice", state_dir=tmp_path / "alice")
            bob = Config(broker=uri, state_dir=tmp_path / "bob", relay="only")
            with trio.fail_after(PATIENCE):
                async with open_node(alice) as listening, open_node(bob) as dialling:
                    async with await listening.open_listener(8000) as listener:
                        async with await dialling.open_stream("alice", 8000) as mine:
                            assert mine.path.kind == "relay"
                            assert mine.path.remote == parse_host_port(relay, 0)
                            async with await listener.accept() as theirs:
                                await mine.send_all(b"through it")
                                assert await theirs.receive_some(100) == b"through it"


@pytest.mark.parametrize("script", ["tcp_broker.py", "relay.py"])
def test_what_cannot_work_is_said_in_a_line(script: str, tmp_path: Path) -> None:
    for place in (("--listen", "203.0.113.77", "--port", "0"), ("--listen", "127.0.0.1", "--port", "70000")):
        done = subprocess.run(
            [sys.executable, str(SERVERS / script), *place],
            capture_output=True,
            text=True,
            env={**os.environ, "NTCP_STATE": str(tmp_path)},
        )
        assert done.returncode == 1
        assert done.stderr.startswith(script.removesuffix(".py") + ": ")
        assert done.stderr.count("\n") == 1
