"""From the relay to a direct path: how long after one is possible, for all pairs of routers that have one.

    python -m benchmarks.climb --json FILE [--kinds A,B] [--tries N] [--blocked LOW-HIGH] [--jobs N] [--limit SECONDS]
                               [--throughput | --beyond]

Each pair has a lab of its own. Its routers let nothing pass between the two hosts, so the stream opens over the relay;
some seconds later, a random number of them, they do. Counted is from that moment until both ends have moved. With
`--beyond` it is the Internet between the routers that lets nothing pass, so what is tried in vain takes ports of the
NATs; the dialer opens another stream meanwhile, which needs one for the relay. The file is read first and what
it has is not measured again, so a long run goes in pieces of `--limit` seconds.

With `--throughput` the stream carries what it can before and after its move; after it in turns with another one, which
is opened then and so was direct from the start. One job at a time measures that best.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import trio
from rich.console import Console
from rich.table import Table

from benchmarks.harness import RESULTS
from ntcpsock._address import parse_node_address
from ntcpsock._config import Config
from ntcpsock.cli.lab import TARGET, enter_namespaces, open_lab_stage, start_echo
from ntcpsock.cli.matrix import EVERY_KIND
from ntcpsock.cli.matrix_topologies import direct_way
from ntcpsock.cli.stage import Events, StageError
from ntcpsock.testing.natlab import Host, Lab, Place, Router
from ntcpsock.trio import NTCPStream, open_node

DELAY = 0.025
#: What must hold, in seconds.
LONGEST_CLIMB = 3.0
#: Seconds after which a pair has failed to climb.
PATIENCE = 40.0
START_DEADLINE = 60.0
CARRIED_DEADLINE = 90.0
#: Questions a second over the stream: it is at work.
ASKING = 10.0
#: Seconds after which another stream is opened.
REOPEN_AFTER = 4.0
#: Seconds for which a stream carries what it can, how many of them do not count, and how often each of two does.
CARRYING = 2.0
STARTING = 0.5
TURNS = 3
BLOCK = 64 * 1024
CARRIED = ("relayed", "moved", "direct", "beside")
#: What must hold: throughput after the move, in parts of that of a stream that was direct from the start.
LEAST_SHARE = 0.9


@dataclass(frozen=True)
class Climb:
    """One try. way: why the pair has a direct path; blocked: seconds for which it had none; seconds: from then on until
    both ends had moved, None where they did not; pause: the longest wait for an answer over the stream meanwhile;
    lag: by which the dialer's loop was late at most: the machine is busy; packets, octets: a second, out of and into
    the dialer's host while it was blocked. relayed, moved, direct: MB/s there and back, over the relay, after the move,
    and of a stream that was direct from the start, by the technique beside; 0 where it was not measured. held: ports of
    one transport that one NAT had given at most when the time was over."""

    nat_a: str
    nat_b: str
    way: str
    blocked: float
    seconds: float | None
    technique: str = ""
    pause: float = 0.0
    lag: float = 0.0
    packets: float = 0.0
    octets: float = 0.0
    message: str = ""
    relayed: float = 0.0
    moved: float = 0.0
    direct: float = 0.0
    beside: str = ""
    held: int = 0

    @property
    def pair(self) -> tuple[str, str]:
        return self.nat_a, self.nat_b


# -- one pair


def block(router: Router, other: Router) -> None:
    """Let nothing pass between the hosts behind two routers; the NATs see nothing of it."""
    rules = [f"ip {end} {other.public_address} drop" for end in ("saddr", "daddr")]
    _block_at(router, rules)


def block_beyond(lab: Lab) -> None:
    """The same on the way between the routers: the NATs see what is tried."""
    ends = lab.public_address_a, lab.public_address_b
    _block_at(lab.public, [f"ip saddr {one} ip daddr {other} drop" for one, other in (ends, ends[::-1])])


def _block_at(place: Place, rules: Sequence[str]) -> None:
    begin = "add table ip blocked; add chain ip blocked pass { type filter hook forward priority -300; }"
    place.run(
        ["nft", "; ".join([begin, *(f"add rule ip blocked pass {rule}" for rule in rules)])], check=True
    )


def unblock(place: Place) -> None:
    place.run(["nft", "delete table ip blocked"], check=True)


def held(lab: Lab) -> int:
    """Ports of one transport that one NAT has given, at most; 0 where the kernel translates."""
    given = Counter(
        (router.name, mapping["protocol"])
        for router in (lab.nat_a, lab.nat_b)
        if router.engine == "userspace"
        for mapping in router.mappings()
    )
    return max(given.values(), default=0)


def traffic(host: Host) -> tuple[int, int]:
    """Packets and octets, both ways, of a host's own device."""
    told = host.run(["cat", "/proc/net/dev"], check=True, capture_output=True, text=True).stdout
    fields = next(line for line in told.splitlines() if "eth0" in line).partition(":")[2].split()
    return int(fields[1]) + int(fields[9]), int(fields[0]) + int(fields[8])


def measure(
    nat_a: str,
    nat_b: str,
    blocked: float,
    settings: Sequence[str] = (),
    *,
    throughput: bool = False,
    beyond: bool = False,
) -> Climb:
    """One try in a lab of its own. settings: the dialer's, as `NTCP_X=Y`; beyond: as `--beyond`."""
    way = direct_way(nat_a, nat_b)
    climb = Climb(nat_a, nat_b, "beyond expectation" if way is None else way.name, blocked, None)
    try:
        with open_lab_stage(nat_a, nat_b, DELAY) as (lab, stage):
            if beyond:
                block_beyond(lab)
            else:
                block(lab.nat_a, lab.nat_b)
                block(lab.nat_b, lab.nat_a)
            start_echo(lab, stage, {})
            what = "carry" if throughput else "reopen" if beyond else "ask"
            argv = [sys.executable, "-m", "benchmarks.climb", what, TARGET]
            environment = stage.environment("a", **dict(word.split("=", 1) for word in settings))
            events = stage.start(lab.host_a, "a", argv, environment)
            climb = _watch(lab, events, climb, beyond=beyond)
            if throughput and climb.seconds is not None:
                carried = events.wait_for("carried", CARRIED_DEADLINE)
                climb = replace(climb, **{name: carried[name] for name in CARRIED})
            return climb
    except StageError as error:
        return replace(climb, message=str(error)[-2000:])


def _watch(lab: Lab, events: Events, climb: Climb, *, beyond: bool) -> Climb:
    first = events.wait_for("connected", START_DEADLINE)
    if first["kind"] != "relay":
        return replace(climb, message=f"it began on {first['technique']}")
    packets, octets = traffic(lab.host_a)
    began = time.monotonic()
    if beyond:
        again = events.wait_for("opened again", START_DEADLINE)
        if again["kind"] != "relay":
            return replace(climb, message=f"another one began on {again['technique']}")
    time.sleep(max(0.0, began + climb.blocked - time.monotonic()))
    more_packets, more_octets = traffic(lab.host_a)
    seconds = time.monotonic() - began
    climb = replace(
        climb,
        packets=(more_packets - packets) / seconds,
        octets=(more_octets - octets) / seconds,
        held=held(lab),
    )
    for place in (lab.public,) if beyond else (lab.nat_a, lab.nat_b):
        unblock(place)
    opened = time.monotonic()
    while (left := opened + PATIENCE - time.monotonic()) > 0:
        try:
            moved = events.wait_for("moved", left)
        except StageError as error:
            return replace(climb, message=str(error)[-2000:])
        if moved["kind"] != "relay":
            return replace(
                climb,
                seconds=moved["at"] - opened,
                technique=moved["technique"],
                pause=moved["pause"],
                lag=moved["lag"],
            )
    return replace(climb, message="it stays on the relay")


def _say(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


async def ask(name: str, port: int, throughput: bool, reopen: bool = False) -> None:
    """The dialer: ask and be answered without end, or until the stream is on a direct path, where the throughput is
    wanted; say to which paths it moves. reopen: open another one some seconds later."""
    async with open_node(Config.load()) as node:
        await node.wait_warm()
        stream = await node.open_stream(name, port)
        longest = lag = 0.0
        is_direct = trio.Event()

        async def tell() -> None:
            _say("connected", kind=stream.path.kind, technique=stream.path.technique, at=time.monotonic())
            while True:
                path = await stream.wait_moved()
                _say(
                    "moved",
                    kind=path.kind,
                    technique=path.technique,
                    at=time.monotonic(),
                    pause=longest,
                    lag=lag,
                )
                if path.kind != "relay":
                    is_direct.set()

        async def open_again() -> None:
            await trio.sleep(REOPEN_AFTER)
            async with await node.open_stream(name, port) as other:
                _say("opened again", kind=other.path.kind, technique=other.path.technique)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            if reopen:
                nursery.start_soon(open_again)
            relayed = await carry(stream, CARRYING) if throughput else 0.0
            while not (throughput and is_direct.is_set()):
                asked = trio.current_time()
                await _round_trip(stream)
                longest = max(longest, trio.current_time() - asked)
                due = trio.current_time() + 1 / ASKING
                await trio.sleep_until(due)
                lag = max(lag, trio.current_time() - due)
            _say("carried", relayed=relayed, **await _beside(stream, await node.open_stream(name, port)))


async def _beside(moved: NTCPStream, direct: NTCPStream) -> dict[str, object]:
    """What two streams carry, in turns: how busy the machine is then changes for both."""
    rates: tuple[list[float], list[float]] = ([], [])
    for turn in range(2 * TURNS):
        stream, of_it = ((moved, rates[0]), (direct, rates[1]))[(turn + turn // 2) % 2]
        of_it.append(await carry(stream, CARRYING))
    moved_rate, direct_rate = map(statistics.median, rates)
    return {"moved": moved_rate, "direct": direct_rate, "beside": direct.path.technique}


async def carry(stream: NTCPStream, seconds: float) -> float:
    """MB/s that the echo sends back, once it is under way."""
    begin = trio.current_time()
    sent = received = in_time = 0
    has_sent = False

    async def send() -> None:
        nonlocal sent, has_sent
        block = bytes(BLOCK)
        while trio.current_time() < begin + seconds:
            sent += len(block)
            await stream.send_all(block)
        has_sent = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while received < sent or not has_sent:
            data = await stream.receive_some()
            if not data:
                raise OSError("the listener has gone")
            received += len(data)
            if begin + STARTING <= trio.current_time() < begin + seconds:
                in_time += len(data)
    return in_time / (seconds - STARTING) / 1e6


async def _round_trip(stream: NTCPStream) -> None:
    await stream.send_all(b"x")
    if not await stream.receive_some():
        raise OSError("the listener has gone")


# -- many


def cells(kinds: Sequence[str]) -> list[tuple[str, str]]:
    """The ordered pairs that have a direct path."""
    return [(nat_a, nat_b) for nat_a in kinds for nat_b in kinds if direct_way(nat_a, nat_b)]


def read(file: Path) -> list[Climb]:
    return [Climb(**entry) for entry in json.loads(file.read_text())] if file.exists() else []


def write(file: Path, climbs: Iterable[Climb]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps([asdict(climb) for climb in climbs], indent=1) + "\n")
    part.replace(file)


def in_a_process(pair: tuple[str, str], blocked: float, what: str = "pair") -> Climb:
    """What breaks one pair breaks no other. what: "throughput", "beyond", or neither."""
    argv = [sys.executable, "-m", "benchmarks.climb", what, *pair, f"{blocked:g}"]
    done = subprocess.run(argv, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    if not lines:
        return Climb(*pair, "", blocked, None, message=done.stderr[-2000:])
    return Climb(**json.loads(lines[-1]))


def run(options: argparse.Namespace, file: Path) -> list[Climb]:
    """What is not in the file yet, as long as there is time; everything then."""
    climbs = read(file)
    low, high = map(float, options.blocked.split("-"))
    wanted = cells(options.kinds.split(","))
    if options.pairs:
        wanted = [(pair.partition(":")[0], pair.partition(":")[2]) for pair in options.pairs.split(",")]
    wanted *= options.tries
    for climb in climbs:
        if climb.pair in wanted:
            wanted.remove(climb.pair)
    random.Random(options.seed).shuffle(wanted)
    deadline, left = time.monotonic() + options.limit, 0
    what = "throughput" if options.throughput else "beyond" if options.beyond else "pair"
    with ThreadPoolExecutor(options.jobs) as pool:

        def one(pair: tuple[str, str]) -> Climb | None:
            if time.monotonic() > deadline:
                return None
            return in_a_process(pair, round(random.uniform(low, high), 2), what)

        for done in as_completed([pool.submit(one, pair) for pair in wanted]):
            if (found := done.result()) is None:
                left += 1
            else:
                climbs.append(found)
                write(file, climbs)
                print(_line(found), flush=True)
    print(f"{left} are left")
    return climbs


def _line(climb: Climb) -> str:
    if climb.seconds is None:
        outcome = (climb.message.splitlines() or ["it ended without a word"])[-1]
    else:
        outcome = f"{climb.seconds:.2f} s, {climb.technique}, {climb.lag:.2f} s lag"
    if climb.held:
        outcome += f", {climb.held} ports of a NAT"
    return f"{climb.nat_a} -> {climb.nat_b}, blocked for {climb.blocked:.1f} s: {outcome}"


def show(climbs: Sequence[Climb]) -> bool:
    """A table; whether all climbed in time."""
    table = Table(title="From the relay to a direct path", title_justify="left", box=None, pad_edge=False)
    for heading in ("", "pairs", "tries", "median s", "95 %", "max", "late", "failed"):
        table.add_column(heading, justify="left" if not heading else "right")
    for way in [*dict.fromkeys(climb.way for climb in climbs), ""]:
        chosen = [climb for climb in climbs if way in ("", climb.way)]
        seconds = sorted(climb.seconds for climb in chosen if climb.seconds is not None)
        late = sum(second > LONGEST_CLIMB for second in seconds)
        pairs = len({climb.pair for climb in chosen})
        figures = ["-"] * 3
        if seconds:
            rank = seconds[min(len(seconds) - 1, round(0.95 * (len(seconds) - 1)))]
            figures = [f"{figure:.2f}" for figure in (statistics.median(seconds), rank, seconds[-1])]
        failed = len(chosen) - len(seconds)
        table.add_row(way.lower() or "all", str(pairs), str(len(chosen)), *figures, str(late), str(failed))
    Console().print(table)
    for climb in climbs:
        if climb.seconds is None or climb.seconds > LONGEST_CLIMB:
            print(_line(climb))
    lags = sorted(climb.lag for climb in climbs if climb.seconds is not None)
    if lags:
        print(f"the dialer's loop was late by {statistics.median(lags):.2f} s at most, {lags[-1]:.2f} once")
    blocked = [climb for climb in climbs if climb.packets]
    if blocked:
        packets, octets = (
            statistics.median(getattr(climb, name) for climb in blocked) for name in ("packets", "octets")
        )
        print(f"while blocked, at the dialer's host: {packets:.0f} packets, {octets / 1000:.1f} kB a second")
    in_time = all(climb.seconds is not None and climb.seconds <= LONGEST_CLIMB for climb in climbs)
    return _show_throughput(climbs) and in_time


def _show_throughput(climbs: Sequence[Climb]) -> bool:
    """Whether it is the direct path's after the move, in the median of the pairs. What took other ways is left out: TCP
    and UDP differ by themselves."""
    measured = [climb for climb in climbs if climb.direct]
    alike = [
        climb for climb in measured if climb.beside.startswith("udp-") == climb.technique.startswith("udp-")
    ]
    if not alike:
        return True
    relayed, moved, direct = (
        statistics.median(getattr(climb, name) for climb in alike) for name in CARRIED[:3]
    )
    shares = sorted(climb.moved / climb.direct for climb in alike)
    share = statistics.median(shares)
    print(
        f"throughput in {len(alike)} tries, MB/s there and back, medians: {relayed:.1f} over the relay, "
        f"{moved:.1f} after the move, {direct:.1f} where it was direct from the start; ratio {share:.2f}, from "
        f"{shares[0]:.2f} to {shares[-1]:.2f}; {len(measured) - len(alike)} more had TCP and UDP"
    )
    return share >= LEAST_SHARE


def main() -> None:
    if sys.argv[1:2] in (["ask"], ["carry"], ["reopen"]):
        trio.run(ask, *parse_node_address(sys.argv[2]), sys.argv[1] == "carry", sys.argv[1] == "reopen")
        return
    if sys.argv[1:2] in (["pair"], ["throughput"], ["beyond"]):
        enter_namespaces()
        what, nat_a, nat_b, blocked, *settings = sys.argv[1:]
        chosen = {what: True} if what != "pair" else {}
        print(json.dumps(asdict(measure(nat_a, nat_b, float(blocked), settings, **chosen))))
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks.climb", description=__doc__)
    parser.add_argument("--json", type=Path, default=RESULTS / "climb.json", metavar="FILE")
    parser.add_argument("--kinds", default=",".join(EVERY_KIND))
    parser.add_argument("--pairs", default="", help="A:B,C:D in place of kinds")
    parser.add_argument("--tries", type=int, default=1)
    parser.add_argument("--blocked", default="2-12", metavar="LOW-HIGH", help="seconds")
    parser.add_argument("--jobs", type=int, default=3)
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds; what is under way ends")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--throughput", action="store_true", help="MB/s, too, before and after the move")
    parser.add_argument("--beyond", action="store_true", help="blocked beyond both NATs")
    options = parser.parse_args()
    enter_namespaces()
    if not show(run(options, options.json)):
        sys.exit(1)


if __name__ == "__main__":
    main()
