"""What it costs that a connection can move to another path: beside one that cannot (linger 0), over loopback."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from benchmarks import idle_ends
from benchmarks.harness import Series, alternate, save, show
from benchmarks.pairs import start_peer
from benchmarks.pingpong import measure as ping_pong
from benchmarks.throughput import SIZE
from benchmarks.throughput import measure as throughput
from ntcpsock.cli.stage import Stage, open_loopback_stage, stop

KINDS = {"stays": "0", "can move": "60"}
# Two rounds of throughput side by side differ by half on two cores, of which four threads share the work: of eleven the
# median is right by a tenth, of sixty by three hundredths.
ROUNDS = {"throughput": 60, "pingpong": 11}
CONNECTIONS = 500


class Dialler:
    """A process with a connection of one kind: a process has one engine, with one configuration."""

    def __init__(self, stack: ExitStack, stage: Stage, number: int, linger: str) -> None:
        name = f"moving{number}"
        listening = stage.environment(f"listener-{number}", NTCP_NAME=name, NTCP_LINGER=linger)
        port = start_peer(stack, ["ntcp", f"{name}.ntcp"], listening)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.moving", f"{name}.ntcp", str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=stage.environment(f"dialler-{number}", NTCP_LINGER=linger),
        )
        stack.callback(stop, self._process)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._orders = stack.enter_context(self._process.stdin)
        self._answers = stack.enter_context(self._process.stdout)

    def measure(self, what: str) -> float:
        """What "throughput" or "pingpong" gives over this connection."""
        print(what, file=self._orders, flush=True)
        return float(self._answers.readline())


def dial(host: str, port: int) -> None:
    """The process of a `Dialler`."""
    import ntcpsock

    with ntcpsock.create_connection((host, port), timeout=60) as connection:
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for line in sys.stdin:
            measure = {"throughput": throughput, "pingpong": ping_pong}[line.strip()]
            print(measure(connection), flush=True)


@contextmanager
def open_diallers(stage: Stage) -> Iterator[dict[str, Dialler]]:
    """One of each kind."""
    with ExitStack() as stack:
        yield {
            kind: Dialler(stack, stage, number, linger) for number, (kind, linger) in enumerate(KINDS.items())
        }


def measure_memory(stage: Stage, count: int = CONNECTIONS) -> list[Series]:
    """KiB of an idle connection at either end."""
    series = []
    for kind, linger in KINDS.items():
        sizes = idle_ends.measure(stage, "idle.ntcp", count, NTCP_LINGER=linger)
        for side, size in zip(("dialling", "listening"), sizes, strict=True):
            series.append(Series(f"{kind}, {side}", "KiB", (size,)))
    return series


def main() -> None:
    if len(sys.argv) == 3:
        dial(sys.argv[1], int(sys.argv[2]))
        return
    with open_loopback_stage() as stage:
        with open_diallers(stage) as diallers:
            for what, unit, title in (
                ("throughput", "MB/s", f"Throughput, {SIZE >> 20} MiB a run"),
                ("pingpong", "us", "Ping-pong of one byte"),
            ):
                cases = {kind: partial(dialler.measure, what) for kind, dialler in diallers.items()}
                series = alternate(cases, ROUNDS[what], unit)
                show(title, series, relative_to="stays")
                print(save(f"moving-{what}", series))
        series = measure_memory(stage)
        show(f"Memory a connection, {CONNECTIONS} idle connections", series)
        print(save("moving-memory", series))


if __name__ == "__main__":
    main()
