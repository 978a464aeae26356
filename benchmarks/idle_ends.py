"""The two ends of many idle connections, a process each: what a connection costs in memory.

Both are new processes: one that did other things before has garbage that goes away while this is measured.
"""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import ntcpsock
from ntcpsock._session.quic.dormancy import REST_AFTER
from ntcpsock.cli.stage import Stage, stop

FIRST = 50  # before the first measurement: the engine, its libraries, pools and ports
SETTLED = 2 * REST_AFTER + 10.0  # seconds after which an unused connection is idle


def resident() -> int:
    """Bytes of this process in memory that are its own (Linux)."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) * 1024
    raise OSError("smaps_rollup tells no Private_Dirty")


def raise_limit() -> None:
    """Two descriptors a connection on each side of the hop."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def growth(connections: Iterator[socket.socket], stack: ExitStack) -> int:
    """Bytes by which this process grows from the first FIRST to all connections, all of which stay open."""
    before = 0
    for number, connection in enumerate(connections, 1):
        stack.enter_context(connection)
        if number == FIRST:
            time.sleep(SETTLED)
            before = resident()
    time.sleep(SETTLED)
    return resident() - before


def accepted(listener: socket.socket, count: int) -> Iterator[socket.socket]:
    for _ in range(FIRST + count):
        connection, _ = listener.accept()
        connection.sendall(connection.recv(1))  # both ends are in use once
        yield connection


def dialled(host: str, port: int, count: int) -> Iterator[socket.socket]:
    for _ in range(FIRST + count):
        connection: socket.socket = ntcpsock.create_connection((host, port), timeout=60)
        connection.sendall(b"x")
        if connection.recv(1) != b"x":
            raise ConnectionError("the peer went away")
        yield connection


@contextmanager
def start(
    stage: Stage, state: str, arguments: list[str], settings: dict[str, str]
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.idle_ends", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=stage.environment(state, **settings),
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin, process.stdout:
            yield process
    finally:
        stop(process)


def measure(stage: Stage, host: str, count: int, **settings: str) -> tuple[float, float]:
    """KiB a connection, of the dialling and of the listening process. `settings`: NTCP_* of both."""
    name = {"NTCP_NAME": host.removesuffix(".ntcp")} if host.endswith(".ntcp") else {}
    with start(stage, "idle-listener", ["accept", host, str(count)], {**settings, **name}) as listening:
        assert listening.stdout is not None
        port = listening.stdout.readline().strip()
        with start(stage, "idle-dialer", ["dial", host, port, str(count)], settings) as dialling:
            assert dialling.stdout is not None
            ours = int(dialling.stdout.readline())
            theirs = int(listening.stdout.readline())
            return ours / count / 1024, theirs / count / 1024


def main() -> None:
    raise_limit()
    with ExitStack() as stack:
        match sys.argv[1:]:
            case ["accept", host, count]:
                listener = stack.enter_context(ntcpsock.create_server((host, 0)))
                print(listener.getsockname()[1], flush=True)
                connections = accepted(listener, int(count))
            case ["dial", host, port, count]:
                connections = dialled(host, int(port), int(count))
            case other:
                raise SystemExit(f"usage: accept HOST COUNT | dial HOST PORT COUNT, not {other}")
        print(growth(connections, stack), flush=True)
        sys.stdin.readline()  # until the other end is measured as well


if __name__ == "__main__":
    main()
