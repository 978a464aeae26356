"""Twenty connections through two NATs of the lab while faults come at random: nothing lost, nothing that grows.

`python -m benchmarks.soak --minutes 60 [--seed N]`: every 10 to 20 seconds an address changes, a router forgets its
mappings, or one transport or everything is blocked for a while. The seed that is printed repeats the faults.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ntcpsock.cli.lab import enter_namespaces, open_lab_stage
from ntcpsock.cli.stage import Stage
from ntcpsock.testing.natlab import Host, Lab, Router

CONNECTIONS = 20
#: What may be held at the end, of what was held after the first fifth: memory and descriptors breathe.
GROWTH = 1.3


class End:
    """One process of `benchmarks.soak_ends`, and what it has told."""

    def __init__(self, stack: ExitStack, host: Host, stage: Stage, name: str, *arguments: str) -> None:
        self.lines: list[dict[str, Any]] = []
        self._process = host.popen(
            [sys.executable, "-m", "benchmarks.soak_ends", *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=stage.environment(name),
        )
        stack.callback(self._end)
        threading.Thread(target=self._read, daemon=True).start()

    def _end(self) -> None:
        self._process.terminate()
        self._process.communicate()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(json.loads(line))

    def first(self) -> dict[str, Any]:
        """Its first line; TimeoutError after a minute."""
        deadline = time.monotonic() + 60
        while not self.lines:
            if time.monotonic() > deadline:
                raise TimeoutError("an end of the soak does not begin")
            time.sleep(0.05)
        return self.lines[0]


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
        network = before.rpartition(".")[0]
        after = f"{network}.{self._chance.randrange(50, 200)}"
        if after == before:
            return
        for command in (
            f"address add {after}/24 dev eth0",
            f"address del {before}/24 dev eth0",
            f"address replace {after}/24 dev eth0",
            f"route replace default via {network}.1",
        ):
            host.run(["ip", *command.split()], check=True)
        self._leases[host.name] = after

    def forgotten_mappings(self) -> None:
        self._chance.choice([self._lab.nat_a, self._lab.nat_b]).flush_mappings()

    def blocked_tcp(self) -> None:
        self._blocked("meta l4proto tcp drop", 12)

    def blocked_udp(self) -> None:
        self._blocked("meta l4proto udp drop", 12)

    def black_out(self) -> None:
        self._blocked("drop", 6)

    def _blocked(self, rule: str, seconds: float) -> None:
        """Between the two networks, not towards the server."""
        sides: list[tuple[Host, Router]] = [
            (self._lab.host_a, self._lab.nat_b),
            (self._lab.host_b, self._lab.nat_a),
        ]
        for host, router in sides:
            rules = (
                "add table ip soak; add chain ip soak out { type filter hook output priority 0; };"
                f" add rule ip soak out ip daddr {router.public_address} {rule}"
            )
            host.run(["nft", rules], check=True)
        time.sleep(seconds)
        for host, _ in sides:
            host.run(["nft", "delete table ip soak"], check=True)


@contextmanager
def soaking(chance: random.Random, connections: int) -> Iterator[tuple[Faults, End, End]]:
    """A lab with both ends at work."""
    with ExitStack() as stack:
        lab, stage = stack.enter_context(open_lab_stage("default", "default", 0.01))
        listener = End(stack, lab.host_b, stage, "soak-b", "listen")
        name = listener.first()["node"]
        dialler = End(stack, lab.host_a, stage, "soak-a", "dial", name, str(connections))
        dialler.first()
        yield Faults(lab, chance), dialler, listener


def judge(end: End, what: str) -> list[str]:
    """What is wrong with what one end has told."""
    lines = [line for line in end.lines if "memory" in line]
    complaints = [f"{what}: {error}" for error in lines[-1]["ended"]]
    if lines[-1]["wrong"]:
        complaints.append(f"{what}: {lines[-1]['wrong']} blocks came back changed")
    fifth = max(1, len(lines) // 5)
    for thing in ("descriptors", "tasks", "memory"):
        early = statistics.median(line[thing] for line in lines[fifth : 2 * fifth] or lines[:1])
        late = statistics.median(line[thing] for line in lines[-fifth:])
        print(f"{what}: {thing} {early:,.0f} -> {late:,.0f}")
        if late > GROWTH * early:
            complaints.append(f"{what}: {thing} grew from {early} to {late}")
    return complaints


def run(minutes: float, seed: int, connections: int = CONNECTIONS) -> list[str]:
    """So many minutes; the complaints."""
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
        complaints = judge(dialler, "dialler") + judge(listener, "listener")
        if last["rounds"] - before < connections:
            complaints.append("nothing goes on after the last fault")
    return complaints


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    enter_namespaces()
    complaints = run(arguments.minutes, arguments.seed)
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    raise SystemExit(bool(complaints))


if __name__ == "__main__":
    main()
