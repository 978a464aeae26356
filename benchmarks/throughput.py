"""Bytes per second over one connection, sender and receiver in two processes, over loopback."""

from __future__ import annotations

import time
from functools import partial
from socket import socket

from benchmarks.harness import alternate, save, show
from benchmarks.pairs import KINDS, open_pairs, send_bulk

SIZE = 128 * 1024 * 1024
ROUNDS = 5


def measure(connection: socket, size: int = SIZE) -> float:
    """MB/s of one bulk transfer."""
    started = time.perf_counter()
    send_bulk(connection, size)
    return size / (time.perf_counter() - started) / 1e6


def main() -> None:
    with open_pairs() as pairs:
        cases = {name: partial(measure, connection) for name, connection in pairs.items()}
        series = alternate(cases, ROUNDS, "MB/s")
    show(f"Throughput, {SIZE >> 20} MiB a run", series, relative_to=KINDS[1])
    print(save("throughput", series))
