"""One fault in the midst of a large transfer both ways, many times over: no byte lost, and how long nothing came.

`python -m benchmarks.moves_lab [--faults A,B] [--times 20] [--megabytes 200] [--seconds N] [--results FILE]`

Two hosts behind NATs of the lab send each other so many megabytes over one connection, SHA-256 at either end. When a
quarter has come, the fault does. The pause is the longest time without a byte at either end, less the outage itself. It
may last 3 s and 3 round trips of the path. What was measured is kept in FILE: with `--seconds` no run begins after so
long, and the next call goes on. Exit code 1 where a byte was lost, or a pause was longer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.lab_end import End
from benchmarks.lab_faults import add_rule, black_out, block, new_address, unblock
from ntcpsock.cli.lab import enter_namespaces
from ntcpsock.cli.stage import Stage, open_stage, stop
from ntcpsock.testing.natlab import Lab, open_lab

RESULTS = Path("build/moves_lab.json")
#: One-way seconds of each link; the path's round trip is four of them.
DELAY = 0.025
BLACK_OUT = 20.0
#: Seconds after which a transfer that has not ended is given up.
PATIENCE = 150.0
ENDS = "benchmarks.moves_ends"
RELAY = Path(__file__).parents[1] / "servers" / "relay.py"
RELAY_PORTS = (6061, 6062)


@dataclass
class Scene:
    """What a fault may act upon."""

    lab: Lab
    stage: Stage
    relays: dict[int, subprocess.Popen[Any]]

    def kill_broker(self) -> None:
        """With the STUN server and the relay in the same process."""
        self.lab.server.terminate()
        self.lab.server.reap()

    def kill_relay(self) -> None:
        """The one that carries the connection."""
        self.relays[self._used_relay()].kill()

    def cut_relay(self) -> None:
        """Its machine is gone: nothing says so to anybody."""
        for host in (self.lab.host_a, self.lab.host_b):
            add_rule(host, f"tcp dport {self._used_relay()} drop")

    def _used_relay(self) -> int:
        used = [port for port in self.relays if _is_connected(self.lab, port)]
        assert len(used) == 1, f"the connection is at the relays {used}"
        return used[0]


def _is_connected(lab: Lab, port: int) -> bool:
    """Whether both hosts have a connection to a port of the server's."""
    found = lab.server.run(
        ["ss", "-Htn", "state", "established", f"( sport = :{port} )"], capture_output=True, text=True
    )
    return len(found.stdout.splitlines()) >= 2


@dataclass(frozen=True)
class Fault:
    """happen: does it, and returns when it is over; outage: seconds for which no path can exist."""

    happen: Callable[[Scene], None]
    nats: tuple[str, str] = ("default", "default")
    settings: dict[str, str] = field(default_factory=dict)
    outage: float = 0.0
    relays: bool = False
    #: Whether the connection cannot have stayed where it was.
    moves: bool = True


def _change_a(scene: Scene) -> None:
    new_address(scene.lab.host_a, scene.lab.host_a.address, 77)


def _change_b(scene: Scene) -> None:
    new_address(scene.lab.host_b, scene.lab.host_b.address, 78)


def _change_both(scene: Scene) -> None:
    _change_a(scene)
    _change_b(scene)


def _black_out(scene: Scene) -> None:
    black_out(scene.lab)
    time.sleep(BLACK_OUT)
    unblock(scene.lab)


def _broker_then(change: Callable[[Scene], None]) -> Callable[[Scene], None]:
    def happen(scene: Scene) -> None:
        scene.kill_broker()
        change(scene)

    return happen


FAULTS: dict[str, Fault] = {
    "mappings of the dialler's router flushed": Fault(
        lambda scene: scene.lab.nat_a.flush_mappings(), moves=False
    ),
    "mappings of the listener's router flushed": Fault(
        lambda scene: scene.lab.nat_b.flush_mappings(), moves=False
    ),
    # A Linux router takes such a connection up again with the next packet from inside; these do not.
    "mappings of a carrier's NAT flushed": Fault(
        lambda scene: scene.lab.nat_a.flush_mappings(), nats=("cgn", "cgn")
    ),
    "mappings of a strict router flushed": Fault(
        lambda scene: scene.lab.nat_a.flush_mappings(), nats=("cisco", "default")
    ),
    "dialler's address changed": Fault(_change_a),
    "listener's address changed": Fault(_change_b),
    "both addresses changed": Fault(_change_both),
    "black-out": Fault(_black_out, outage=BLACK_OUT),
    "relay killed": Fault(Scene.kill_relay, settings={"NTCP_RELAY": "only"}, relays=True),
    "relay cut off": Fault(Scene.cut_relay, settings={"NTCP_RELAY": "only"}, relays=True),
    "broker killed, dialler's address changed": Fault(_broker_then(_change_a)),
    "broker killed, listener's address changed": Fault(_broker_then(_change_b)),
    "broker killed, both addresses changed": Fault(_broker_then(_change_both)),
    "UDP blocked": Fault(
        lambda scene: block(scene.lab, "meta l4proto udp drop"), settings={"NTCP_PREFER": "udp"}
    ),
    "TCP blocked": Fault(lambda scene: block(scene.lab, "meta l4proto tcp drop")),
}


@dataclass(frozen=True)
class Run:
    """One transfer. pause: seconds beyond the outage; after: seconds from the fault until it began; first: the path's
    technique before; moves: at the dialler, each with technique, reason and the seconds without a path; complaint: what
    went wrong, or ""."""

    fault: str
    megabytes: int
    intact: bool
    pause: float
    after: float
    seconds: float
    first: str
    moves: list[list[Any]]
    complaint: str = ""


@contextmanager
def _scene(stack: ExitStack, fault: Fault) -> Iterator[Scene]:
    lab = stack.enter_context(open_lab(*fault.nats, delay=DELAY))
    options = [
        "--listen",
        lab.server_addresses[0],
        "--other-address",
        lab.server_addresses[1],
        "--drain",
        "0",
    ]
    if fault.relays:
        for port in RELAY_PORTS:
            options += ["--relay", f"{lab.server_addresses[0]}:{port}"]
    stage = stack.enter_context(open_stage(lab.server, *options))
    relays = {port: _start_relay(stack, lab, stage, port) for port in RELAY_PORTS * fault.relays}
    yield Scene(lab, stage, relays)


def _start_relay(stack: ExitStack, lab: Lab, stage: Stage, port: int) -> subprocess.Popen[Any]:
    key = stage.folder / "servers" / "relay.key"
    argv = [
        sys.executable,
        str(RELAY),
        "--listen",
        lab.server_addresses[0],
        "--port",
        str(port),
        "--relay-key",
        str(key),
    ]
    process = lab.server.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    stack.callback(process.stdout.close)
    stack.callback(stop, process)
    assert process.stdout.readline().startswith("ready")
    return process


def run_once(name: str, megabytes: int) -> Run:
    """One transfer with one fault. Raises AssertionError where the fault did not fall into it."""
    fault, size = FAULTS[name], megabytes * 1_000_000
    with ExitStack() as stack, _scene(stack, fault) as scene:
        lab, stage = scene.lab, scene.stage
        listener = End(stack, lab.host_b, stage, "b", ENDS, "listen", str(size), settings=fault.settings)
        node = listener.first("node")["node"]
        dialler = End(stack, lab.host_a, stage, "a", ENDS, "dial", node, str(size), settings=fault.settings)
        dialler.first("under_way")
        at = time.monotonic()
        fault.happen(scene)
        try:
            outcomes = [end.first("sent", PATIENCE) for end in (dialler, listener)]
        except TimeoutError as error:
            return Run(name, megabytes, False, PATIENCE, 0.0, PATIENCE, "", [], str(error))
    here, there = outcomes
    assert min(here["ended"], there["ended"]) > at, "the transfer was over before the fault"
    intact = (here["sent"], there["sent"]) == (there["received"], here["received"])
    begin, end = max((end["pause"] for end in outcomes), key=lambda pause: pause[1] - pause[0])
    pause = max(0.0, end - begin - fault.outage)
    complaint = here["error"] or there["error"]
    if fault.moves and not here["moves"] and not complaint:
        complaint = "it did not move"
    if not intact and not complaint:
        complaint = "bytes were changed"
    seconds = max(end["ended"] for end in outcomes) - here["began"]
    return Run(name, megabytes, intact, pause, begin - at, seconds, here["first"], here["moves"], complaint)


def limit(delay: float = DELAY) -> float:
    """Seconds that a pause may last."""
    return 3.0 + 3 * 4 * delay


def complaints(runs: Sequence[Run]) -> list[str]:
    found = []
    for run in runs:
        if run.complaint or not run.intact:
            found.append(f"{run.fault}: {run.complaint}")
        elif run.pause > limit():
            found.append(f"{run.fault}: a pause of {run.pause:.2f} s; moves {run.moves}")
    return found


def show(runs: Sequence[Run]) -> None:
    """A line for each fault."""
    title = f"Pause beyond the outage, in seconds; it may be {limit():.1f}"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for heading in ("fault", "runs", "intact", "median", "p90", "max", "transfer, s", "MB"):
        table.add_column(heading, justify="left" if heading == "fault" else "right")
    for name in FAULTS:
        some = [run for run in runs if run.fault == name]
        if not some:
            continue
        pauses = sorted(run.pause for run in some)
        p90 = pauses[min(len(pauses) - 1, int(0.9 * len(pauses)))]
        numbers = [statistics.median(pauses), p90, pauses[-1], statistics.median(run.seconds for run in some)]
        texts = [
            str(len(some)),
            str(sum(run.intact for run in some)),
            *(f"{number:.2f}" for number in numbers),
        ]
        table.add_row(name, *texts, str(max(run.megabytes for run in some)))
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.moves_lab", description=__doc__)
    words = ", ".join(name.replace(", ", " ") for name in FAULTS)
    parser.add_argument("--faults", help=f"some of: {words}")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no run after so long")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    arguments = parser.parse_args()
    names = list(FAULTS)
    if arguments.faults:
        names = [name for name in FAULTS if name.replace(", ", " ") in arguments.faults.split(",")]
    if not names:
        parser.error(f"no such fault: {arguments.faults}")
    enter_namespaces()
    runs: list[Run] = []
    if not arguments.fresh:
        with suppress(FileNotFoundError):
            runs = [Run(**entry) for entry in json.loads(arguments.results.read_text())]
    deadline = time.monotonic() + arguments.seconds
    arguments.results.parent.mkdir(parents=True, exist_ok=True)

    def done(name: str) -> int:
        return sum(run.fault == name and run.megabytes == arguments.megabytes for run in runs)

    while time.monotonic() < deadline:
        name = min(names, key=done)  # so that all have been seen as often, whenever it ends
        if done(name) >= arguments.times:
            break
        run = run_once(name, arguments.megabytes)
        print(
            f"{name}: {run.pause:.2f} s after {run.after:.2f} s, {run.seconds:.1f} s in all,"
            f" {run.first} {run.moves} {run.complaint}"
        )
        sys.stdout.flush()
        runs.append(run)
        arguments.results.write_text(json.dumps([asdict(each) for each in runs], indent=1) + "\n")
    show(runs)
    wrong = complaints(runs)
    for complaint in wrong:
        print(complaint, file=sys.stderr)
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
