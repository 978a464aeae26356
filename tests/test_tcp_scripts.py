"""servers/tcp_broker.py and servers/relay.py as processes: two nodes that meet at a relay elsewhere."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trio

from ntcpsock._address import parse_broker, parse_host_port
from ntcpsock._config import Config
from ntcpsock._servers.descriptors import raise_descriptor_limit
from ntcpsock._state import load_identity
from ntcpsock._traversal.http.message import encode_request, upgrade_request
from ntcpsock._traversal.relay.message import SESSION_LENGTH, TICKET_HEADER, UPGRADE, issue_pair, to_header
from ntcpsock.trio import open_node

SERVERS = Path(__file__).parents[1] / "servers"
PATIENCE = 60.0


@contextmanager
def running(script: str, *arguments: str) -> Iterator[tuple[str, int]]:
    """The ready line's second word, and the process id; at the end SIGTERM and a clean exit."""
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
            yield where, process.pid
            process.send_signal(signal.SIGTERM)
            output, errors = process.communicate(timeout=PATIENCE)
            assert (process.returncode, errors) == (0, "")
            assert not [line for line in output.split("\n") if line and not line.startswith("admin ")]
        finally:
            process.kill()


async def test_nodes_meet_at_a_relay_elsewhere(tmp_path: Path) -> None:
    state = tmp_path / "broker"
    load_identity(state / "relay.key")
    with running("relay.py", "--relay-key", str(state / "relay.key")) as (relay, _):
        with running("tcp_broker.py", "--state-dir", str(state), "--relay", relay) as (uri, _):
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


@pytest.mark.slow
def test_two_thousand_connections_at_once_in_little_memory(tmp_path: Path) -> None:
    """Pipes belong to a direction while bytes are in it, so memory and descriptors do not grow with what has passed."""
    pairs = 2000
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    raise_descriptor_limit()
    secret = load_identity(tmp_path / "relay.key").seed
    arguments = ("--relay-key", str(tmp_path / "relay.key"), "--sessions-of-a-node", str(pairs))
    with running("relay.py", *arguments) as (where, process), ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        relay = parse_host_port(where, 0)
        empty = _memory(process)
        sockets = [
            stack.enter_context(seat) for number in range(pairs) for seat in _pair(relay, secret, number)
        ]
        full = _memory(process)
        assert (full - empty) / pairs < 100_000
        for one, two in zip(sockets[::2], sockets[1::2], strict=True):
            one.sendall(b"x" * 10_000)
            assert two.recv(1) == b"x"
        assert _memory(process) - full < 30_000_000
        assert len(os.listdir(f"/proc/{process}/fd")) < 2 * pairs + 200


def _pair(relay: tuple[str, int], secret: bytes, number: int) -> Iterator[socket.socket]:
    session = number.to_bytes(SESSION_LENGTH, "big")
    for ticket in issue_pair(secret, session, b"d" * 32, b"l" * 32, time.time()):
        sock = socket.create_connection(relay, PATIENCE)
        request = upgrade_request("relay", "/relay", UPGRADE, {TICKET_HEADER: to_header(ticket).decode()})
        sock.sendall(encode_request(request))
        assert sock.recv(1000).startswith(b"HTTP/1.1 101 ")
        yield sock


def _memory(process: int) -> int:
    text = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return int(next(line for line in text.splitlines() if line.startswith("VmRSS:")).split()[1]) * 1024
