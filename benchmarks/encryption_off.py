"""`encryption="off"` beside a plain TCP socket, over loopback between two processes: throughput, ping-pong, memory."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from benchmarks.harness import Series, alternate, save, show
from benchmarks.memory import FIRST, raise_limit, resident
from benchmarks.pairs import start_peer
from benchmarks.pingpong import measure as ping_pong
from benchmarks.throughput import SIZE
from benchmarks.throughput import measure as throughput
from ntcpsock.cli.stage import Stage, open_loopback_stage, stop

KINDS = ("plain TCP", 'encryption="off"')
ROUNDS = 11
CONNECTIONS = 500
NAME = "plain"


def enter(stage: Stage) -> None:
    """Make this process a node of the stage, without encryption. A process has one engine: it stays so."""
    settings = stage.environment("bench-client", NTCP_ENCRYPTION="off")
    os.environ.update({key: value for key, value in settings.items() if key.startswith("NTCP_")})


@contextmanager
def open_pairs(stage: Stage) -> Iterator[dict[str, socket.socket]]:
    """A connection to a peer process of each kind. Raises RuntimeError where one end is not the kernel's socket."""
    import ntcpsock

    with ExitStack() as stack:
        plain = start_peer(stack, ["plain", "127.0.0.1"], dict(os.environ))
        environment = stage.environment("bench-peer", NTCP_NAME=NAME, NTCP_ENCRYPTION="off")
        named = start_peer(stack, ["ntcp", f"{NAME}.ntcp"], environment)
        pairs = {
            KINDS[0]: socket.create_connection(("127.0.0.1", plain)),
            KINDS[1]: ntcpsock.create_connection((f"{NAME}.ntcp", named), timeout=60),
        }
        for connection in pairs.values():
            stack.enter_context(connection)
            connection.settimeout(None)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ours = pairs[KINDS[1]]
        assert isinstance(ours, ntcpsock.NTCPSocket)
        assert ours.path is not None
        if socket.socket.getpeername(ours) != tuple(ours.path.remote):
            raise RuntimeError("the connection is pumped: this would measure something else")
        yield pairs


def accept(kind: str, count: int) -> None:
    """The listening process of the memory benchmark: says its port, then its growth."""
    import ntcpsock

    raise_limit()
    with ExitStack() as stack:
        address = ("127.0.0.1", 0) if kind == KINDS[0] else (f"{NAME}.ntcp", 0)
        listener = stack.enter_context(ntcpsock.create_server(address))
        print(listener.getsockname()[1], flush=True)
        before = 0
        for number in range(count + FIRST):
            if number == FIRST:
                before = resident()
            connection, _ = listener.accept()
            stack.enter_context(connection)
            connection.sendall(connection.recv(1))
        print(resident() - before, flush=True)
        sys.stdin.readline()


def memory(stage: Stage, kind: str, count: int) -> tuple[float, float]:
    """KiB a connection, of this process and of the listening one."""
    import ntcpsock

    raise_limit()
    with ExitStack() as stack:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.encryption_off", "accept", kind, str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=stage.environment("bench-peer", NTCP_NAME=NAME, NTCP_ENCRYPTION="off"),
        )
        stack.callback(stop, process)
        assert process.stdin is not None
        assert process.stdout is not None
        stack.enter_context(process.stdin)
        stack.enter_context(process.stdout)
        port = int(process.stdout.readline())
        host = "127.0.0.1" if kind == KINDS[0] else f"{NAME}.ntcp"
        before = 0
        for number in range(count + FIRST):
            if number == FIRST:
                before = resident()
            connection: socket.socket = ntcpsock.create_connection((host, port), timeout=60)
            stack.enter_context(connection)
            connection.sendall(b"x")
            if connection.recv(1) != b"x":
                raise ConnectionError("the peer went away")
        grown = resident() - before
        return grown / count / 1024, int(process.stdout.readline()) / count / 1024


def measure_memory(stage: Stage, count: int = CONNECTIONS) -> list[Series]:
    series = []
    for kind in KINDS:
        for side, size in zip(("dialling", "listening"), memory(stage, kind, count), strict=True):
            series.append(Series(f"{kind}, {side}", "KiB", (size,)))
    return series


def main() -> None:
    if sys.argv[1:2] == ["accept"]:
        accept(sys.argv[2], int(sys.argv[3]))
        return
    with open_loopback_stage() as stage:
        enter(stage)
        with open_pairs(stage) as pairs:
            bulk = {name: partial(throughput, connection) for name, connection in pairs.items()}
            series = alternate(bulk, ROUNDS, "MB/s")
            show(f"Throughput, {SIZE >> 20} MiB a run", series, relative_to=KINDS[0])
            print(save("encryption_off-throughput", series))
            single = {name: partial(ping_pong, connection) for name, connection in pairs.items()}
            series = alternate(single, ROUNDS, "us")
            show("Ping-pong of one byte", series, relative_to=KINDS[0])
            print(save("encryption_off-pingpong", series))
        series = measure_memory(stage)
        show(f"Memory a connection, {CONNECTIONS} idle connections", series)
        print(save("encryption_off-memory", series))


if __name__ == "__main__":
    main()
