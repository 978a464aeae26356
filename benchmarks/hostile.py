"""Hostile load on each server, while a good client goes on: how often it succeeds, how fast, and what memory grows.

`python -m benchmarks.hostile --datagrams 10000000 --connections 100000`: the servers are the scripts of `servers/`, on
loopback. Over UDP garbage comes first, then a flood of valid requests; coturn has the same in the same run, where it is
installed. Over TCP connections that are malformed, huge, out of order or reset half-way come beside a thousand that are
slow. Ends with 1 where a bound does not hold.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks import harness
from benchmarks.good_clients import BrokerNode, GoodClient, RelayedPair, StunClient, StunStream, WebSocketNode
from benchmarks.hostile_senders import flood_datagrams, garbage, hostile_connections, slow_connections
from benchmarks.stun import coturn
from ntcpsock._address import Endpoint
from ntcpsock._identity import Identity
from ntcpsock._servers.descriptors import raise_descriptor_limit
from ntcpsock._state import load_identity
from ntcpsock._traversal.broker.frame import Sealer, encode_key_request
from ntcpsock._traversal.broker.message import Hello, encode_from_node
from ntcpsock._traversal.stun.message import binding_request, encode_message

SERVERS = Path(__file__).parent.parent / "servers"
#: Tries a second, and seconds until one has failed. Nothing is sent twice.
GOOD_RATE = 50
PATIENCE = 1.0
#: Of garbage and of hostile connections, a second; the flood of valid requests comes as fast as it can be sent.
GARBAGE_RATE = 100_000
CONNECTION_RATE = 1000
#: What must hold.
LEAST_UNDER_FLOOD = 0.88
LONGEST_P99 = 0.005
MOST_GROWTH = 10_000_000
SLOW_CONNECTIONS = 1000
#: Seconds of nothing.
QUIET = 4.0


@dataclass
class Server:
    """A script that runs."""

    process: subprocess.Popen[str]
    address: Endpoint
    key: str
    log: Path
    state: Path

    def memory(self) -> int:
        """Its own bytes in memory."""
        return resident(self.process.pid)

    def complaints(self) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if "Traceback" in line or "Error" in line]


@dataclass
class Coturn:
    """Another server, to compare with."""

    pid: int

    def memory(self) -> int:
        return resident(self.pid)

    def complaints(self) -> list[str]:
        return []


def resident(pid: int) -> int:
    """A process's own bytes in memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError("the server has ended")


@contextmanager
def running(script: str) -> Iterator[Server]:
    """A server at a port of its own, in a state directory of its own."""
    with tempfile.TemporaryDirectory() as directory:
        log, state = Path(directory) / "log", Path(directory) / "state"
        arguments = {"relay.py": ["--relay-key", str(state / "relay.key")], "stun_server.py": []}
        options = arguments.get(script, ["--state-dir", str(state)])
        if script == "relay.py":
            state.mkdir()
        command = [sys.executable, str(SERVERS / script), "--listen", "127.0.0.1", "--port", "0", *options]
        with (
            log.open("w") as stderr,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
        ):
            assert process.stdout is not None
            place = process.stdout.readline().split()[1]
            uri, _, key = place.removeprefix("ntcp://").partition("?key=")
            host, _, port = uri.rpartition(":")
            undisturb(process.pid)
            try:
                yield Server(process, Endpoint(host, int(port)), key, log, state)
            finally:
                process.send_signal(signal.SIGINT)


def undisturb(pid: int) -> None:
    """It goes before whatever else this machine has to do, where we may ask for that."""
    if _options.undisturbed:
        # Not a real-time policy: of those Linux keeps a twentieth of each second from a core that is full.
        os.setpriority(os.PRIO_PROCESS, pid, -20)


_options = argparse.Namespace(undisturbed=False)


@dataclass
class Tries:
    """Of the good client; delays in seconds, of those that succeeded."""

    delays: list[float] = field(default_factory=list)
    failures: int = 0

    @property
    def success(self) -> float:
        return len(self.delays) / max(1, len(self.delays) + self.failures)

    @property
    def p99(self) -> float:
        if len(self.delays) < 2:
            return float("inf")
        return statistics.quantiles(self.delays, n=100, method="inclusive")[98]

    @property
    def median(self) -> float:
        return statistics.median(self.delays) if self.delays else float("inf")


@contextmanager
def trying(ask: Callable[[], bool]) -> Iterator[Tries]:
    """A good client in a process of its own: `ask` once every 20 ms, True for an answer."""
    tries = Tries()
    here, there = _FORK.Pipe()
    process = _FORK.Process(target=_try, args=(ask, there))
    process.start()
    here.recv()
    try:
        yield tries
    finally:
        here.send(None)
        tries.delays, tries.failures = here.recv()
        process.join()


def _try(ask: Callable[[], bool], pipe: Connection) -> None:
    undisturb(os.getpid())
    delays, failures = [], 0
    pipe.send(None)
    due = time.monotonic()
    while not pipe.poll(max(0.0, due - time.monotonic())):
        start = time.monotonic()
        if ask():
            delays.append(time.monotonic() - start)
        else:
            failures += 1
        due = max(due + 1 / GOOD_RATE, time.monotonic() - 1)
    pipe.recv()
    pipe.send((delays, failures))


_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Outcome:
    """Of one kind of load on one server. count: of datagrams or connections; growth: of memory, in bytes."""

    server: str
    load: str
    count: int
    seconds: float
    tries: Tries
    growth: int
    complaints: Sequence[str]
    least: float

    @property
    def holds(self) -> bool:
        if not self.least:
            return True
        fast = self.least < 1 or self.tries.p99 <= LONGEST_P99
        return self.tries.success >= self.least and fast and self.growth < MOST_GROWTH and not self.complaints

    def __str__(self) -> str:
        return (
            f"{self.server}, {self.load}: {self.count} in {self.seconds:.0f} s; good client "
            f"{self.tries.success:.4f} of {len(self.tries.delays) + self.tries.failures}, median "
            f"{1e3 * self.tries.median:.2f} ms, p99 {1e3 * self.tries.p99:.2f} ms; memory {self.growth / 1e6:+.1f} MB; "
            f"{len(self.complaints)} complaints{'' if self.holds else '  <-- does not hold'}"
        )


def measure(
    server: Server | Coturn,
    name: str,
    load: str,
    ask: Callable[[], bool],
    attack: Callable[[], int],
    least: float,
) -> Outcome:
    """One load, between two looks at the memory."""
    for _ in range(50):
        ask()
    before, start = server.memory(), time.monotonic()
    with trying(ask) as tries:
        count = attack()
        seconds = time.monotonic() - start
    outcome = Outcome(name, load, count, seconds, tries, server.memory() - before, server.complaints(), least)
    print(outcome, flush=True)
    return outcome


def stun_over_udp(datagrams: int) -> list[Outcome]:
    request = encode_message(binding_request(bytes(12)))
    reference = coturn_over_udp(request, datagrams) if shutil.which("turnserver") is not None else []
    with running("stun_server.py") as server, closing(StunClient(server.address, PATIENCE)) as client:
        ask = client.ask
        kinds = garbage([request])
        return [
            *reference,
            measure(
                server, "stun", "garbage", ask,
                lambda: flood_datagrams(server.address, kinds, datagrams, GARBAGE_RATE), 1,
            ),
            measure(
                server, "stun", "flood", ask, lambda: flood_datagrams(server.address, [request], datagrams),
                LEAST_UNDER_FLOOD,
            ),
        ]  # fmt: skip


def coturn_over_udp(request: bytes, datagrams: int) -> list[Outcome]:
    """The same loads at coturn, in the same run, a million of each. Nothing is asked of it."""
    datagrams = min(datagrams, 1_000_000)
    with coturn() as (address, (pid, *_)), closing(StunClient(address, PATIENCE)) as client:
        undisturb(pid)
        kinds = garbage([request])
        return [
            measure(
                Coturn(pid), "coturn", "garbage", client.ask,
                lambda: flood_datagrams(address, kinds, datagrams, GARBAGE_RATE), 0,
            ),
            measure(
                Coturn(pid), "coturn", "flood", client.ask,
                lambda: flood_datagrams(address, [request], datagrams), 0,
            ),
        ]  # fmt: skip


def broker_over_udp(datagrams: int) -> list[Outcome]:
    with (
        running("udp_broker.py") as server,
        closing(BrokerNode(server.address, server.key, PATIENCE)) as node,
    ):
        sealer = Sealer(Identity.generate())
        hello = sealer.seal(node.broker_key, encode_from_node(bytes(8), 1, 1, Hello(bytes(8))))
        valid = [encode_key_request(bytes(24)), hello]
        kinds = garbage([*valid, *node.recorded])
        return [
            measure(
                server, "UDP broker", "garbage", node.ask,
                lambda: flood_datagrams(server.address, kinds, datagrams, GARBAGE_RATE), 1,
            ),
            measure(
                server, "UDP broker", "flood", node.ask,
                lambda: flood_datagrams(server.address, valid, datagrams), LEAST_UNDER_FLOOD,
            ),
        ]  # fmt: skip


def over_tcp(
    name: str, script: str, make_client: Callable[[Server], GoodClient], connections: int
) -> list[Outcome]:
    with running(script) as server, closing(make_client(server)) as client:
        ask = client.ask
        outcomes = [measure(server, name, "nothing", ask, _nothing, 0)]
        with slow_connections(server.address, SLOW_CONNECTIONS) as held:
            time.sleep(QUIET / 2)  # they are new once, and slow from then on
            outcomes.append(measure(server, name, f"{held} slow", ask, _nothing, 1))
            outcomes.append(
                measure(
                    server,
                    name,
                    "hostile",
                    ask,
                    lambda: hostile_connections(server.address, connections, CONNECTION_RATE),
                    1,
                )
            )  # fmt: skip
        return outcomes


def _nothing() -> int:
    time.sleep(QUIET)
    return 0


def relayed(server: Server) -> GoodClient:
    return RelayedPair(server.address, load_identity(server.state / "relay.key").seed, PATIENCE)


TARGETS: dict[str, Callable[[int, int], list[Outcome]]] = {
    "stun-udp": lambda datagrams, _: stun_over_udp(datagrams),
    "broker-udp": lambda datagrams, _: broker_over_udp(datagrams),
    "stun-tcp": lambda _, connections: over_tcp(
        "stun over TCP",
        "stun_server.py",
        lambda server: StunStream(server.address, PATIENCE),
        connections,
    ),
    "broker-tcp": lambda _, connections: over_tcp(
        "TCP broker",
        "tcp_broker.py",
        lambda server: WebSocketNode(server.address, server.key, PATIENCE),
        connections,
    ),
    "relay": lambda _, connections: over_tcp("relay", "relay.py", relayed, connections),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile", description=__doc__)
    parser.add_argument("--datagrams", type=int, default=200_000, help="of each load over UDP")
    parser.add_argument("--connections", type=int, default=2000, help="at each server over TCP")
    parser.add_argument(
        "--undisturbed",
        action="store_true",
        help="servers and good clients before all other programs (needs CAP_SYS_NICE)",
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    arguments = parser.parse_args(namespace=_options)
    if unknown := sorted(set(arguments.targets) - set(TARGETS)):
        parser.error(f"unknown: {', '.join(unknown)}")
    raise_descriptor_limit()
    outcomes: list[Outcome] = []
    for target in arguments.targets or TARGETS:
        outcomes += TARGETS[target](arguments.datagrams, arguments.connections)
    harness.save(
        "hostile",
        [
            harness.Series(
                f"{outcome.server}, {outcome.load}", "s", tuple(outcome.tries.delays), outcome.tries.failures
            )
            for outcome in outcomes
        ],
    )
    sys.exit(0 if all(outcome.holds for outcome in outcomes) else 1)


if __name__ == "__main__":
    main()
