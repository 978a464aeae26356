"""Ordinary addresses under `ntcpsock.install()` beside `socket.socket`: what the patch costs programs that use no name.

One process makes both kinds of sockets in turn; the peer is a plain one in another process. Rounds alternate.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import ntcpsock
from benchmarks import pingpong, throughput
from benchmarks.harness import Series, alternate, save, show
from benchmarks.pairs import start_peer
from ntcpsock._patch import PatchWarning

KINDS = ("socket.socket", "patched")
CYCLES = 2000
PIECES = 20_000
ROUNDS = 9

SocketClass = type[socket.socket]


def connect_and_accept(kind: SocketClass, count: int = CYCLES) -> float:
    """Microseconds to connect, accept and close both ends, over loopback: the median of `count` times."""
    (times,) = _connect_and_accept([kind], count)
    return statistics.median(times)


def connect_in_turn(kinds: dict[str, SocketClass], rounds: int) -> list[Series]:
    """As `connect_and_accept`, each kind once in turn: a few microseconds' difference drowns in what a machine does
    between two rounds."""
    values: list[list[float]] = [[] for _ in kinds]
    for _ in range(rounds):
        for own, times in zip(values, _connect_and_accept(list(kinds.values()), CYCLES), strict=True):
            own.append(statistics.median(times))
    return [Series(name, "us", tuple(own)) for name, own in zip(kinds, values, strict=True)]


def _connect_and_accept(kinds: Sequence[SocketClass], count: int) -> list[list[float]]:
    """The times of each kind, in microseconds."""
    times: list[list[float]] = [[] for _ in kinds]
    with ExitStack() as stack:
        listeners = [stack.enter_context(kind()) for kind in kinds]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
        sides = list(zip(kinds, listeners, [one.getsockname() for one in listeners], times, strict=True))
        for _ in range(count):
            sides.reverse()
            for kind, listener, address, own in sides:
                started = time.perf_counter_ns()
                client = kind()
                client.connect(address)
                accepted, _ = listener.accept()
                client.close()
                accepted.close()
                own.append((time.perf_counter_ns() - started) / 1000)
    return times


def send_and_receive(kind: SocketClass, count: int = PIECES) -> float:
    """Microseconds for one send() and one recv() of 64 bytes within a process: calls, and no waiting."""
    with kind() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client = kind()
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
    data = bytes(64)
    with client, accepted:
        started = time.perf_counter()
        for _ in range(count):
            client.send(data)
            accepted.recv(64)
        return (time.perf_counter() - started) / count * 1e6


def kinds() -> dict[str, SocketClass]:
    """The class that programs get without the patch and the one that they get with it."""
    before = socket.socket
    with warnings.catch_warnings():
        # That it comes too late for this package is wanted: both kinds are used side by side.
        warnings.simplefilter("ignore", PatchWarning)
        with ntcpsock.patched():
            after = socket.socket
    return dict(zip(KINDS, (before, after), strict=True))


def to_peer(kind: SocketClass, port: int) -> socket.socket:
    connection = kind()
    connection.connect(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def main() -> None:
    calls = {name: partial(send_and_receive, kind) for name, kind in kinds().items()}
    for title, name, series in (
        ("Connect, accept, close both", "connect-and-accept", connect_in_turn(kinds(), ROUNDS)),
        ("send() and recv() of 64 bytes", "send-and-receive", alternate(calls, ROUNDS, "us")),
    ):
        show(f"{title}, plain addresses", series, relative_to=KINDS[0])
        print(save(f"patched-{name}", series))
    with ExitStack() as stack:
        connections = {}
        for name, kind in kinds().items():
            port = start_peer(stack, ["plain", "127.0.0.1"], dict(os.environ))
            connections[name] = stack.enter_context(to_peer(kind, port))
        for title, unit, measure in (
            ("Throughput", "MB/s", throughput.measure),
            ("Ping-pong of one byte", "us", pingpong.measure),
        ):
            series = alternate(
                {name: partial(measure, one) for name, one in connections.items()}, ROUNDS, unit
            )
            show(f"{title}, plain addresses", series, relative_to=KINDS[0])
            print(save("patched-" + title.split()[0].lower(), series))


if __name__ == "__main__":
    main()
