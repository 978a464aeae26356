"""Round-trip time of one byte, over loopback between two processes.

Beside the pairs: plain TCP through two forwarders, the least that bytes can take that an engine carries at both ends.
"""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from functools import partial
from socket import socket

from benchmarks.harness import alternate, save, show
from benchmarks.pairs import KINDS, open_pairs, open_three_hops
from benchmarks.peer import ORDER

COUNT = 2000
ROUNDS = 5


def measure(connection: socket, count: int = COUNT) -> float:
    """Median microseconds of `count` round trips."""
    connection.sendall(ORDER.pack(b"P", count))
    times = []
    for _ in range(count):
        started = time.perf_counter()
        connection.sendall(b"x")
        if connection.recv(1) != b"x":
            raise ConnectionError("the peer went away")
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


def main() -> None:
    with open_pairs() as pairs, ExitStack() as stack:
        cases = {name: partial(measure, connection) for name, connection in pairs.items()}
        cases["three plain hops"] = partial(measure, open_three_hops(stack))
        series = alternate(cases, ROUNDS, "us")
    show(f"Ping-pong of one byte, medians of {COUNT}", series, relative_to=KINDS[1])
    print(save("pingpong", series))
