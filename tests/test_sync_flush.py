"""What a program wrote before it ended reaches the peer, through real nodes in two processes."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from sync_support import PATIENCE, receive_all

import ntcpsock
from ntcpsock import _portal
from ntcpsock.cli.stage import Stage, open_loopback_stage

SIZE = 3_000_000

PROGRAM = """
import sys, ntcpsock
connection = ntcpsock.create_connection(("flush.ntcp", int(sys.argv[1])))
connection.sendall(bytes(int(sys.argv[2])))
{end}
"""


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as stage:
        yield stage


@pytest.fixture
def server(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    _portal.stop()
    for name, value in stage.environment("flush", NTCP_NAME="flush").items():
        monkeypatch.setenv(name, value)
    with ntcpsock.create_server(("flush.ntcp", 0)) as server:
        server.settimeout(PATIENCE)
        yield server
    _portal.stop(2)


@pytest.mark.parametrize("end", ["", "connection.close()", "connection.shutdown(1)", "sys.exit(3)"])
def test_the_last_bytes_arrive(stage: Stage, server: socket.socket, end: str) -> None:
    port = str(server.getsockname()[1])
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(end=end), port, str(SIZE)],
        env=stage.environment("flush-client"),
        stderr=subprocess.PIPE,
    ) as program:
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(PATIENCE)
            assert len(receive_all(accepted)) == SIZE
        assert program.stderr is not None
        assert program.stderr.read() == b""
    assert program.returncode == (3 if "exit" in end else 0)
