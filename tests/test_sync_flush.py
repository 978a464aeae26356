"""What a program wrote before it ended reaches the peer, through real nodes in two processes."""

from __future__ import annotations

import os
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
import os, sys, ntcpsock
def connect():
    return ntcpsock.create_connection(("flush.ntcp", int(sys.argv[1])))
{start}
connection.sendall(bytes(int(sys.argv[2])))
{end}
"""

# Every way out of a process that leaves its sockets to the kernel, which would deliver what they hold.
ENDS = {
    "end of program": ("connection = connect()", ""),
    "close": ("connection = connect()", "connection.close()"),
    "shutdown": ("connection = connect()", "connection.shutdown(1)"),
    "sys.exit": ("connection = connect()", "sys.exit(3)"),
    "os._exit": ("connection = connect()", "os._exit(3)"),
    "os._exit in a thread": (
        "connection = connect()",
        "import threading; threading.Thread(target=os._exit, args=(3,)).start(); threading.Event().wait()",
    ),
    # The child has an engine of its own.
    "os._exit in a child that connected": (
        "child = os.fork()\nif child: sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "connection = connect()",
        "os._exit(3)",
    ),
    "the same after the parent used its own": (
        "connect().close()\nchild = os.fork()\n"
        "if child: sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\nconnection = connect()",
        "os._exit(3)",
    ),
    # The connection is carried by the parent's engine.
    "os._exit in a child that inherited": (
        "connection = connect()\nchild = os.fork()\n"
        "if child: sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))",
        "os._exit(3)",
    ),
}


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


@pytest.mark.parametrize("way", ENDS)
def test_the_last_bytes_arrive(stage: Stage, server: socket.socket, way: str) -> None:
    start, end = ENDS[way]
    port = str(server.getsockname()[1])
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM.format(start=start, end=end), port, str(SIZE)],
        env=stage.environment("flush-client"),
        stderr=subprocess.PIPE,
    ) as program:
        received = 0
        while received == 0:  # a connection that was closed empty came before
            accepted, _ = server.accept()
            with accepted:
                accepted.settimeout(PATIENCE)
                received = len(receive_all(accepted))
        assert received == SIZE
        assert program.stderr is not None
        assert program.stderr.read() == b""
    assert program.returncode == (3 if "exit" in end else 0)


def test_os_exit_is_the_plain_one_where_no_engine_runs(stage: Stage, server: socket.socket) -> None:
    assert os._exit.__module__ == "ntcpsock._os_exit"
    with pytest.raises(TypeError):
        os._exit("3")  # type: ignore[arg-type]
    _portal.stop()
    assert os._exit.__module__ == "posix"
