"""Twenty connections through two NATs of the lab while faults come at random: nothing lost, nothing that grows.

`python -m benchmarks.soak --minutes 60 [--seed N]`: every 10 to 20 seconds an address changes, a router forgets its
mappings, or one transport or everything is blocked for a while. The seed that is printed repeats the faults.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.lab_end import End
from benchmarks.lab_faults import block, new_address, unblock
from ntcpsock.cli.lab import enter_namespaces, open_lab_stage
from ntcpsock.testing.natlab import Lab

ENDS = "benchmarks.soak_ends"
CONNECTIONS = 20
#: What may be held at the end, of what was held after the first fifth: memory and descriptors breathe.
GROWTH = 1.3
#: Of the memory in use, what may come to it in each fifth of the run: what is taken once shows in one of them.
STEADY_GROWTH = 0.005
#: Lines of an end below which no part of them tells anything: three minutes.
LONG = 36


class Faults:
    """What may happen to a lab."""

    def __init__(self, lab: Lab, chance: random.Random) -> None:
        self._lab = lab
        self._chance = chance
        self._leases = {lab.host_a.name: lab.host_a.address, lab.host_b.name: lab.host_b.address}

    def happen(self) -> str:
        """One of them, whole; its name."""
        kinds: list[Callable[[], None]] = [
            self.new_address,
            self.forgotten_mappings,
            self.blocked_tcp,
            self.blocked_udp,
            self.black_out,
        ]
        kind = self._chance.choice(kinds)
        kind()
        return kind.__name__

    def new_address(self) -> None:
        host = self._chance.choice([self._lab.host_a, self._lab.host_b])
        before = self._leases[host.name]
        last = self._chance.randrange(50, 200)
        if int(before.rpartition(".")[2]) != last:
            self._leases[host.name] = new_address(host, before, last)

    def forgotten_mappings(self) -> None:
        self._chance.choice([self._lab.nat_a, self._lab.nat_b]).flush_mappings()

    def blocked_tcp(self) -> None:
        self._blocked("meta l4proto tcp drop", 12)

    def blocked_udp(self) -> None:
        self._blocked("meta l4proto udp drop", 12)

    def black_out(self) -> None:
        self._blocked("drop", 6)

    def _blocked(self, rule: str, seconds: float) -> None:
        block(self._lab, rule)
        time.sleep(seconds)
        unblock(self._lab)


@contextmanager
def soaking(chance: random.Random, connections: int) -> Iterator[tuple[Faults, End, End]]:
    """A lab with both ends at work."""
    with ExitStack() as stack:
        lab, stage = stack.enter_context(open_lab_stage("default", "default", 0.01))
        listener = End(stack, lab.host_b, stage, "soak-b", ENDS, "listen")
        name = listener.first()["node"]
        dialler = End(stack, lab.host_a, stage, "soak-a", ENDS, "dial", name, str(connections))
        dialler.first()
        yield Faults(lab, chance), dialler, listener


def judge(what: str, told: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with what one end has told."""
    lines = [line for line in told if "memory" in line]
    complaints = [f"{what}: {error}" for error in lines[-1]["ended"]]
    if lines[-1]["wrong"]:
        complaints.append(f"{what}: {lines[-1]['wrong']} blocks came back changed")
    fifth = max(1, len(lines) // 5)
    for thing in ("descriptors", "tasks", "memory"):
        # A path over UDP has more sockets and tasks than one over TCP: what leaks raises the fewest of them.
        measure = statistics.median if thing == "memory" else fewest
        early = measure(line[thing] for line in lines[fifth : 2 * fifth] or lines[:1])
        late = measure(line[thing] for line in lines[-fifth:])
        print(f"{what}: {thing} {early:,.0f} -> {late:,.0f}")
        if late > GROWTH * early:
            complaints.append(f"{what}: {thing} grew from {early} to {late}")
    return complaints + leaks(what, [line["memory"] for line in lines])


def fewest(values: Iterable[float]) -> float:
    """But for a tenth: where all connections have just lost their carriers there are fewer for a moment."""
    ordered = sorted(values)
    return ordered[len(ordered) // 10]


def leaks(what: str, memory: Sequence[float]) -> list[str]:
    """Whether memory grows without an end: a leak adds to it in each part of the run, a step in one."""
    if len(memory) < LONG:
        return []
    fifth = len(memory) // 5
    levels = [statistics.median(memory[number * fifth : (number + 1) * fifth]) for number in range(5)]
    # In the first one everything happens for the first time.
    rises = [late - early for early, late in pairwise(levels[1:])]
    print(f"{what}: memory in fifths of the run, MB: {' '.join(f'{level / 1e6:.1f}' for level in levels)}")
    if min(rises) > STEADY_GROWTH * levels[1]:
        return [
            f"{what}: memory grows all the time, by {min(rises):,.0f} bytes in each fifth of the run and more"
        ]
    return []


def run(minutes: float, seed: int, connections: int = CONNECTIONS, lines: Path | None = None) -> list[str]:
    """So many minutes; the complaints. lines: where all is written that the ends have told."""
    chance = random.Random(seed)
    print(f"seed {seed}, {connections} connections, {minutes:g} minutes")
    deadline = time.monotonic() + 60 * minutes
    count: dict[str, int] = {}
    with soaking(chance, connections) as (faults, dialler, listener):
        while time.monotonic() < deadline:
            time.sleep(chance.uniform(10, 20))
            kind = faults.happen()
            count[kind] = count.get(kind, 0) + 1
        time.sleep(20)  # the last fault is over
        before = dialler.lines[-1]["rounds"]
        time.sleep(12)
        last = dialler.lines[-1]
        print(f"faults: {count}; {last['rounds']} blocks back whole, {last['moves']} moves at the dialler")
        if lines is not None:
            lines.write_text(json.dumps({"dialler": dialler.lines, "listener": listener.lines}))
        complaints = judge("dialler", dialler.lines) + judge("listener", listener.lines)
        if last["rounds"] - before < connections:
            complaints.append("nothing goes on after the last fault")
    return complaints


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--lines", type=Path, help="write there what the ends have told")
    arguments = parser.parse_args()
    enter_namespaces()
    complaints = run(arguments.minutes, arguments.seed, lines=arguments.lines)
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    raise SystemExit(bool(complaints))


if __name__ == "__main__":
    main()
