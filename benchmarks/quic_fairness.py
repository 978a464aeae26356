"""Two transfers side by side through one small queue: what share QUIC leaves to TCP, and what gets lost."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import quic, quic_ends
from benchmarks.harness import Series, save
from ntcpsock.cli.lab import enter_namespaces
from ntcpsock.testing.natlab import Lab, Link, open_lab

RATE = 2.5e6  # bytes a second of the bottleneck
QUEUES = (0.0125, 0.05)  # seconds of it: a quarter of the round trip, and all of it
ROUND_TRIP = 0.05
SECONDS = 15.0
ROUNDS = 3

Flow = tuple[Callable[..., float], Callable[..., Any], tuple[Any, ...]]


def flows(seconds: float) -> dict[str, Flow]:
    tcp = partial(quic_ends.tcp_receive, seconds=seconds)
    mine = partial(quic_ends.quic_receive, seconds=seconds, size=quic.DATAGRAM)
    return {
        "QUIC": (mine, quic_ends.quic_send, (quic.DATAGRAM,)),
        "TCP (cubic)": (tcp, quic_ends.tcp_send, ("cubic",)),
        "TCP (bbr)": (tcp, quic_ends.tcp_send, ("bbr",)),
    }


PAIRS = (
    ("QUIC", "TCP (cubic)"),
    ("QUIC", "TCP (bbr)"),
    ("QUIC", "QUIC"),
    ("TCP (bbr)", "TCP (cubic)"),
    ("TCP (cubic)", "TCP (cubic)"),
)


def side_by_side(lab: Lab, first: Flow, second: Flow) -> tuple[float, float]:
    """MB/s of each, started together."""
    running = []
    for receive, send, arguments in (first, second):
        quic.PORT += 1
        receiver = lab.host_b.start(receive, quic.PORT)
        running.append((receiver, lab.host_a.start(send, lab.host_b.address, quic.PORT, *arguments)))
    speeds = [receiver.result(quic.PATIENCE) for receiver, _ in running]
    for _, sender in running:
        sender.process.kill()
        sender.process.wait()
    return speeds[0], speeds[1]


def lost_share(lab: Lab, before: dict[str, float]) -> float:
    """Of the packets that came to the bottleneck since `before`."""
    now = bottleneck(lab)
    carried, dropped = (now[name] - before[name] for name in ("carried_packets", "dropped_packets"))
    return dropped / max(1.0, carried + dropped)


def bottleneck(lab: Lab) -> dict[str, float]:
    """What has left side A so far, and what its queue has dropped."""
    return lab.wire_counters()[0]


def measure(
    queue: float, seconds: float = SECONDS, rounds: int = ROUNDS
) -> list[tuple[str, str, Series, Series]]:
    kinds = flows(seconds)
    link = Link(ROUND_TRIP / 4, rate=RATE, buffer=queue)
    results = []
    with open_lab("none", "none", link_a=link, link_b=Link(ROUND_TRIP / 4)) as lab:
        for first, second in PAIRS:
            shares, losses = [], []
            for _ in range(rounds):
                before = bottleneck(lab)
                one, other = side_by_side(lab, kinds[first], kinds[second])
                shares.append(one / (one + other))
                losses.append(lost_share(lab, before))
            name = f"{first} beside {second}"
            results.append(
                (
                    first,
                    second,
                    Series(name, "share", tuple(shares)),
                    Series(f"{name}: lost", "", tuple(losses)),
                )
            )
    return results


def main() -> None:
    enter_namespaces()
    for queue in QUEUES:
        results = measure(queue)
        table = Table(title=f"{RATE / 1e6:g} MB/s, {ROUND_TRIP * 1000:g} ms, {queue * 1000:g} ms of queue")
        for heading in ("", "beside", "share", "min", "max", "lost"):
            table.add_column(heading)
        for first, second, share, lost in results:
            numbers = (share.median, min(share.values), max(share.values))
            texts = [f"{number:.2f}" for number in numbers]
            table.add_row(first, second, *texts, f"{statistics.median(lost.values):.1%}")
        Console().print(table)
        print(save("quic-fairness", [series for *_, share, lost in results for series in (share, lost)]))


if __name__ == "__main__":
    main()
