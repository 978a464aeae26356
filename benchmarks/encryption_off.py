"""`encryption="off"` beside a plain TCP socket, over loopback between two processes: throughput, ping-pong, memory."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from benchmarks import idle_ends
from benchmarks.harness import Series, alternate, save, show
from benchmarks.pairs import start_peer
from benchmarks.pingpong import measure as ping_pong
from benchmarks.throughput import SIZE
from benchmarks.throughput import measure as throughput
from ntcpsock.cli.stage import Stage, open_loopback_stage

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


def measure_memory(stage: Stage, count: int = CONNECTIONS) -> list[Series]:
    series = []
    for kind in KINDS:
        host = "127.0.0.1" if kind == KINDS[0] else "idle.ntcp"
        sizes = idle_ends.measure(stage, host, count, NTCP_ENCRYPTION="off")
        for side, size in zip(("dialling", "listening"), sizes, strict=True):
            series.append(Series(f"{kind}, {side}", "KiB", (size,)))
    return series


def main() -> None:
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
