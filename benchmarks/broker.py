"""What a broker over UDP costs: bytes a node, CPU time a keep-alive and an introduction, from 1,000 to 1,000,000 nodes.

Real registrations with real keys, through a socket; each node has a name, an open port and a card of four candidates.
`python -m benchmarks.broker --nodes 1000000 --fill --plot docs/broker-cost.svg` fills the registry without them, and
takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from benchmarks import harness, hostile
from benchmarks.fleet import Fleet, Prepared, open_sockets
from benchmarks.good_clients import Introductions
from benchmarks.hostile import Tries, trying, undisturb
from ntcpsock._address import Endpoint, encode_node_id, parse_broker
from ntcpsock._traversal.broker.keep_alives import KEEP_ALIVE_LEAD

_SOCKETS = 200
#: Seconds between two keep-alives of a node, as `open_broker_session` has it.
KEEP_ALIVE_INTERVAL = 20.0 - KEEP_ALIVE_LEAD
#: Introductions a second of the full load.
INTRODUCTIONS = 30_000
# Each part of a measurement, in seconds.
_SPAN = 5.0
# The same for the last ones: every node has its turn.
_LONG_SPAN = KEEP_ALIVE_INTERVAL + 2.0


@dataclass
class MeasuredBroker:
    """A `benchmarks.measured_broker`, or what can be asked as it can, in a process of its own."""

    process: subprocess.Popen[str]
    address: Endpoint
    key: bytes

    def ask(self, word: str = "tell") -> dict[str, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        told: dict[str, float] = json.loads(self.process.stdout.readline())
        return told


@contextmanager
def measured_broker(*arguments: str, module: str = "benchmarks.measured_broker") -> Iterator[MeasuredBroker]:
    """One that runs meanwhile."""
    command = [sys.executable, "-m", module, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        uri = parse_broker(process.stdout.readline().split()[1])
        assert uri.key is not None
        for pid in (process.pid, os.getpid()):
            undisturb(pid)
        yield MeasuredBroker(process, Endpoint(uri.host, uri.port), uri.key)
        assert process.stdin is not None
        process.stdin.close()


@dataclass(frozen=True)
class Load:
    """What came of some seconds of it; rates a second."""

    keep_alives: float
    introductions: float
    answered: float  # of the introductions, as a fraction
    cpu: float  # of one core, as a fraction


def run_load(
    broker: MeasuredBroker, fleet: Fleet, keep_alives: float, introductions: float, seconds: float = _SPAN
) -> Load:
    prepared = fleet.prepare(seconds, keep_alives, introductions)
    return fire(broker, fleet, prepared)


def fire(broker: MeasuredBroker, fleet: Fleet, prepared: Prepared) -> Load:
    """Let a load go."""
    before, heard, sent = broker.ask(), fleet.heard, fleet.sent_keep_alives
    introduced, answered = fleet.sent_introductions, heard.introductions
    start = time.monotonic()
    fleet.load(prepared)
    elapsed = time.monotonic() - start
    # What is still in the queues.
    time.sleep(0.3)
    fleet.drain()
    after = broker.ask()
    sent, introduced = fleet.sent_keep_alives - sent, fleet.sent_introductions - introduced
    return Load(
        sent / elapsed,
        introduced / elapsed,
        (heard.introductions - answered) / (2 * introduced) if introduced else 1.0,
        (after["cpu"] - before["cpu"]) / elapsed,
    )


def cost(broker: MeasuredBroker, fleet: Fleet) -> tuple[float, float]:
    """CPU time of a keep-alive and of an introduction, in microseconds: each alone, at half of the load."""
    run_load(broker, fleet, 0, 2000, 1.0)
    alive = run_load(broker, fleet, 20_000, 0)
    introducing = run_load(broker, fleet, 0, INTRODUCTIONS / 2)
    return 1e6 * alive.cpu / alive.keep_alives, 1e6 * introducing.cpu / introducing.introductions


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.broker", description=__doc__)
    parser.add_argument("--nodes", type=int, default=10_000, help="as many at the end, in steps of ten")
    parser.add_argument("--plot", type=Path, help="an SVG file to write")
    parser.add_argument(
        "--fill",
        action="store_true",
        help="put the nodes into the registry instead of registering them, which takes a million half an hour here",
    )
    parser.add_argument("--nameless", action="store_true", help="nodes without names")
    parser.add_argument(
        "--undisturbed",
        action="store_true",
        help="all of this before all other programs (needs CAP_SYS_NICE)",
    )
    parser.add_argument("--only-last", action="store_true", help="no costs of smaller numbers of nodes")
    arguments = parser.parse_args(namespace=hostile._options)
    sizes = [size for size in (1000, 10_000, 100_000, 1_000_000) if size < arguments.nodes]
    sizes = [] if arguments.only_last else sizes
    sizes.append(arguments.nodes)
    rows: list[tuple[int, float, float, float]] = []
    with (
        measured_broker() as broker,
        closing(Fleet(broker.address, broker.key, open_sockets(_SOCKETS))) as fleet,
    ):
        if arguments.fill:
            fill(broker, fleet, _SOCKETS)
        else:
            fleet.grow(_SOCKETS, names=not arguments.nameless)
        base, base_nodes = broker.ask("collect")["resident"], len(fleet)
        for size in sizes:
            start, cpu = time.monotonic(), broker.ask()["cpu"]
            added = size - len(fleet)
            if arguments.fill:
                fill(broker, fleet, size)
            else:
                grow_alive(fleet, size, names=not arguments.nameless)
            now = broker.ask("collect")
            seconds = time.monotonic() - start
            node = (now["resident"] - base) / (now["nodes"] - base_nodes)
            alive, introduction = cost(broker, fleet)
            rows.append((size, node, alive, introduction))
            print(
                f"{now['nodes']:.0f} nodes: {node:.0f} bytes each, keep-alive {alive:.1f} us, introduction "
                f"{introduction:.1f} us; {added} registered in {seconds:.0f} s, "
                f"{1e6 * (now['cpu'] - cpu) / added:.0f} us of the broker's CPU each",
                flush=True,
            )
        with closing(Introductions(broker.address, encode_node_id(broker.key), 5.0)) as probe:
            keep_up(broker, fleet, probe)
        last = broker.ask()
        print({name: last[name] for name in ("nodes", "dropped", "unsent", "lost")})
        rate = len(fleet) / KEEP_ALIVE_INTERVAL
    bare = measure_bare(rate)
    print(
        f"yardstick: the same datagrams and boxes without a broker ({bare.keep_alives:.0f} keep-alives/s, "
        f"{bare.introductions:.0f} introductions/s): {bare.answered:.4f} answered, {bare.cpu:.2f} of a core",
        flush=True,
    )
    harness.save(
        "broker",
        [
            harness.Series(f"{size} nodes, {what}", unit, (value,))
            for size, *values in rows
            for value, what, unit in zip(
                values,
                ("memory", "keep-alive", "introduction"),
                ("bytes", "us CPU", "us CPU"),
                strict=True,
            )
        ],
    )
    if arguments.plot is not None:
        draw(rows, arguments.plot)


def keep_up(broker: MeasuredBroker, fleet: Fleet, probe: Introductions) -> None:
    """All nodes keep themselves alive; with no introductions beside that, with half of the load, with all of it."""
    probe.ask()
    with trying(probe.ask) as tries:
        time.sleep(_SPAN)
    print(f"nothing else: an introduction arrives after {told(tries)}", flush=True)
    rate = len(fleet) / KEEP_ALIVE_INTERVAL
    for fraction in (0.0, 0.5, 1.0):
        prepared = fleet.prepare(_LONG_SPAN, rate, fraction * INTRODUCTIONS)
        with trying(probe.ask) as tries:
            load = fire(broker, fleet, prepared)
        print(
            f"all kept alive ({load.keep_alives:.0f}/s), {load.introductions:.0f} introductions/s: "
            f"{load.answered:.4f} answered, {load.cpu:.2f} of a core; one arrives after {told(tries)}",
            flush=True,
        )


def measure_bare(keep_alives: float) -> Load:
    """What the full load takes of whoever only receives it, boxes it, and sends as much."""
    with (
        measured_broker(module="benchmarks.bare_broker") as bare,
        closing(Fleet(bare.address, bare.key, open_sockets(_SOCKETS))) as fleet,
    ):
        fleet.invent(10 * _SOCKETS)
        return run_load(bare, fleet, keep_alives, INTRODUCTIONS)


def fill(broker: MeasuredBroker, fleet: Fleet, size: int) -> None:
    """Nodes whose registrations nobody has made: with the same records, and from then on like all others."""
    places = [list(sock.getsockname()) for sock in fleet.sockets]
    broker.ask(f"fill {len(fleet)} {size} {json.dumps(places, separators=(',', ':'))}")
    fleet.invent(size)


def grow_alive(fleet: Fleet, size: int, *, names: bool) -> None:
    """Growing takes longer than a record lives, so those that are here are kept alive meanwhile."""
    last = time.monotonic()
    while len(fleet) < size:
        fleet.grow(min(size, len(fleet) + 4 * _SOCKETS), names=names)
        elapsed = time.monotonic() - last
        if elapsed > 0.5:
            last = time.monotonic()
            fleet.keep_alive(int(elapsed * len(fleet) / KEEP_ALIVE_INTERVAL))


def draw(rows: Sequence[tuple[int, float, float, float]], path: Path) -> None:
    """The costs over the number of nodes."""
    import_module("matplotlib").use("svg")
    pyplot = import_module("matplotlib.pyplot")
    pyplot.rcParams["svg.hashsalt"] = "ntcpsock"
    sizes = [row[0] for row in rows]
    figure, (memory, time_axis) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    memory.semilogx(sizes, [row[1] for row in rows], "o-", color="#1f5f99")
    memory.axhline(800, color="#999999", linewidth=0.8, linestyle="--")
    memory.set(title="memory of a registered node", xlabel="nodes", ylabel="bytes", ylim=(0, 900))
    time_axis.semilogx(sizes, [row[3] for row in rows], "o-", color="#1f5f99", label="introduction")
    time_axis.semilogx(sizes, [row[2] for row in rows], "s-", color="#c0582b", label="keep-alive")
    time_axis.set(title="CPU time of the broker", xlabel="nodes", ylabel="\N{MICRO SIGN}s")
    time_axis.set_ylim(bottom=0)
    time_axis.legend(frameon=False)
    for axes in (memory, time_axis):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def told(tries: Tries) -> str:
    """How long it took."""
    return f"{1e3 * tries.median:.2f} ms, p99 {1e3 * tries.p99:.2f} ms, {tries.success:.4f} of them"


if __name__ == "__main__":
    main()
