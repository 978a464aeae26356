"""Memory of one process with many idle connections by name, in KiB a connection: dialling and listening side."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

from benchmarks.harness import Series, save, show
from ntcpsock.cli.stage import Stage, open_loopback_stage, stop

CONNECTIONS = 1000
FIRST = 50  # before the first measurement: the engine, its libraries, pools and ports
NAME = "memory"


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


def accept(count: int) -> None:
    """The listening process: says its port, then the growth from the first FIRST to all connections."""
    import ntcpsock

    raise_limit()
    with ExitStack() as stack:
        listener = stack.enter_context(ntcpsock.create_server((f"{NAME}.ntcp", 0)))
        print(listener.getsockname()[1], flush=True)
        before = 0
        for number in range(count + FIRST):
            if number == FIRST:
                before = resident()
            connection, _ = listener.accept()
            stack.enter_context(connection)
            connection.sendall(connection.recv(1))  # both ends are in use once
        print(resident() - before, flush=True)
        sys.stdin.readline()


def dial(port: int, count: int, stack: ExitStack) -> int:
    """Bytes by which this process grows with `count` connections."""
    import ntcpsock

    before = 0
    for number in range(count + FIRST):
        if number == FIRST:
            before = resident()
        connection: socket.socket = ntcpsock.create_connection((f"{NAME}.ntcp", port), timeout=60)
        stack.enter_context(connection)
        connection.sendall(b"x")
        if connection.recv(1) != b"x":
            raise ConnectionError("the peer went away")
    return resident() - before


def start(stack: ExitStack, stage: Stage, count: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.memory", "accept", str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=stage.environment("memory", NTCP_NAME=NAME),
    )
    stack.callback(stop, process)
    assert process.stdin is not None
    assert process.stdout is not None
    stack.enter_context(process.stdin)
    stack.enter_context(process.stdout)
    return process


def measure(count: int = CONNECTIONS) -> list[Series]:
    """KiB a connection, of the dialling and of the listening process."""
    raise_limit()
    with ExitStack() as stack:
        stage = stack.enter_context(open_loopback_stage())
        process = start(stack, stage, count)
        assert process.stdout is not None
        os.environ.update({"NTCP_BROKER": stage.broker, "NTCP_STATE": str(stage.folder / "bench-client")})
        ours = dial(int(process.stdout.readline()), count, stack)
        theirs = int(process.stdout.readline())
        return [
            Series(name, "KiB", (grown / count / 1024,))
            for name, grown in (("dialling process", ours), ("listening process", theirs))
        ]


def main() -> None:
    if sys.argv[1:2] == ["accept"]:
        accept(int(sys.argv[2]))
        return
    series = measure()
    show(f"Memory a connection, {CONNECTIONS} idle connections", series)
    print(save("memory", series))


if __name__ == "__main__":
    main()
