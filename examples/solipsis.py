"""Solipsis: entities on a small world that find those around them through the ones they know, and meet.

    python examples/solipsis.py --nodes 12 --svg world.svg    all here, over loopback
    python examples/solipsis.py --lab                         half of them behind one NAT, half behind another
    NTCP_BROKER=ntcp://HOST:6060 python examples/solipsis.py --names alice --entry bob --seconds 3600

Each entity is a node of its own. At first it knows the name of one other; a datagram goes to each neighbour twice a
second (solipsis_world.py says what is in it), and with the nearest it exchanges a greeting and an avatar over a stream.
No server takes part: the broker introduces two nodes once. NTCP was made for such a world, in 2005.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import trio
from solipsis_picture import avatar, world_map
from solipsis_world import INTERVAL, Entity, Outgoing, Place, neighbours

import ntcpsock.trio
from ntcpsock import Config
from ntcpsock.cli.lab import open_lab_stage, why_no_namespaces
from ntcpsock.cli.stage import Stage, StageError, open_loopback_stage
from ntcpsock.testing.natlab import LabUnavailable

PORT = 6600
SPEED = 0.004  # worlds a second
SEND_PATIENCE = 0.2  # seconds that a datagram waits for room; the next one says more
MEETING_DEADLINE = 10.0
MAX_GREETING = 100_000  # bytes
MAX_MEETINGS = 100
START_PAUSE = 0.1  # seconds between two nodes: a broker lets one address register so many a second
START_DEADLINE = 30.0
LAB_DELAY = 0.025


class Meeting(msgspec.Struct, frozen=True):
    """How somebody was met."""

    path: str
    milliseconds: float
    octets: int


class Snapshot(msgspec.Struct, frozen=True):
    """What an entity says of itself to whoever watches the world."""

    name: str
    at: Place
    knows: list[str]
    met: dict[str, Meeting]
    received: int
    bad: int


@dataclass
class Life:
    """An entity, and the node that it lives by."""

    entity: Entity
    config: Config
    met: dict[str, Meeting] = field(default_factory=dict)

    async def live(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Started when others can reach it."""
        async with (
            ntcpsock.trio.open_node(self.config) as node,
            await node.open_datagram_socket(PORT) as sock,
            await node.open_listener(PORT) as listener,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(self.listen, sock)
            nursery.start_soon(self.speak, sock)
            nursery.start_soon(self.go_and_meet, node)
            nursery.start_soon(trio.serve_listeners, self.be_met, [listener])
            task_status.started()

    async def listen(self, sock: ntcpsock.trio.NTCPDatagramSocket) -> None:
        while True:
            data, sender = await sock.receive_from()
            await self.send(sock, self.entity.receive(label(sender.host), data, trio.current_time()))

    async def speak(self, sock: ntcpsock.trio.NTCPDatagramSocket) -> None:
        try:
            while True:
                await self.send(sock, self.entity.tick(trio.current_time()))
                await trio.sleep(INTERVAL)
        finally:
            with trio.move_on_after(SEND_PATIENCE, shield=True):
                await self.send(sock, self.entity.leave())

    async def send(self, sock: ntcpsock.trio.NTCPDatagramSocket, outgoing: Outgoing) -> None:
        for name, data in outgoing:
            # OSError: nobody is called so, or not any more. Silence will tell.
            with trio.move_on_after(SEND_PATIENCE), contextlib.suppress(OSError):
                await sock.send_to(data, (name, PORT))

    async def go_and_meet(self, node: ntcpsock.trio.Node) -> None:
        """Introduce itself to whoever is the nearest now."""
        while True:
            name = self.entity.nearest()
            if name is not None and name not in self.met:
                await self.meet(node, name)
            await trio.sleep(INTERVAL)

    async def meet(self, node: ntcpsock.trio.Node, name: str) -> None:
        begin = trio.current_time()
        try:
            with trio.fail_after(MEETING_DEADLINE):
                async with await node.open_stream(name, PORT) as stream:
                    await self.introduce(stream)
                    greeting = await receive_greeting(stream)
        except (OSError, trio.TooSlowError, trio.BrokenResourceError, ValueError):
            return  # the next round tries again, if it is the nearest still
        self.remember(name, stream, trio.current_time() - begin, greeting)

    async def be_met(self, stream: ntcpsock.trio.NTCPStream) -> None:
        begin = trio.current_time()
        try:
            with trio.fail_after(MEETING_DEADLINE):
                async with stream:
                    greeting = await receive_greeting(stream)
                    await self.introduce(stream)
        except (OSError, trio.TooSlowError, trio.BrokenResourceError, ValueError):
            return
        self.remember(stream.peer.name or stream.peer.node_id, stream, trio.current_time() - begin, greeting)

    async def introduce(self, stream: ntcpsock.trio.NTCPStream) -> None:
        at = self.entity.at
        await stream.send_all(f"Hello, I am {self.entity.name}, at {at.x:.3f} {at.y:.3f}\n".encode())
        await stream.send_all(avatar(self.entity.name))
        await stream.send_eof()

    def remember(self, name: str, stream: ntcpsock.trio.NTCPStream, seconds: float, greeting: bytes) -> None:
        if len(self.met) < MAX_MEETINGS:
            path = f"{stream.path.kind} by {stream.path.technique}"
            self.met.setdefault(name, Meeting(path, round(seconds * 1000, 1), len(greeting)))

    def snapshot(self) -> Snapshot:
        entity = self.entity
        return Snapshot(
            entity.name, entity.at, sorted(entity.known), dict(self.met), entity.received, entity.bad
        )


def label(host: str) -> str:
    return host.removesuffix(".ntcp")


async def receive_greeting(stream: ntcpsock.trio.NTCPStream) -> bytes:
    """A line and an avatar. Raises ValueError for anything else."""
    data = bytearray()
    async for part in stream:
        data += part
        if len(data) > MAX_GREETING:
            raise ValueError("nobody talks that long")
    words, _, picture = data.partition(b"\n")
    if not words.startswith(b"Hello, I am ") or not picture.startswith(b"P6 "):
        raise ValueError("not a greeting")
    return bytes(data)


# -- worlds


def newborn(name: str, entry: str | None, radius: float, seed: int) -> Entity:
    """Somewhere, on its way to somewhere."""
    chance = random.Random(f"{seed} {name}")
    at, heading = Place(chance.random(), chance.random()), chance.uniform(0, math.tau)
    return Entity(name, at, entry, radius, (SPEED * math.cos(heading), SPEED * math.sin(heading)))


async def run_lives(
    entities: Sequence[Entity],
    config: Callable[[str], Config],
    seconds: float,
    show: Callable[[list[Snapshot]], None],
) -> None:
    """All of them in this process; `show` is called once a second."""
    lives = [Life(entity, config(entity.name)) for entity in entities]
    async with trio.open_nursery() as nursery:
        with trio.fail_after(START_DEADLINE):
            for life in lives:
                await nursery.start(life.live)
                await trio.sleep(START_PAUSE)
        end = trio.current_time() + seconds
        while trio.current_time() < end:
            await trio.sleep(1)
            show([life.snapshot() for life in lives])
        nursery.cancel_scope.cancel()


class Watcher:
    """Sees the whole world, as nobody in it does."""

    def __init__(self, radius: float, quiet: bool = False) -> None:
        self.radius = radius
        self.quiet = quiet
        self.seconds = 0
        self.world: list[Snapshot] = []
        self.trails: dict[str, list[Place]] = {}

    def see(self, world: list[Snapshot]) -> None:
        self.world = world
        self.seconds += 1
        for one in world:
            self.trails.setdefault(one.name, []).append(one.at)
        if not self.quiet:
            print(f"{self.seconds:3} s  {self.verdict()}", flush=True)

    def true_neighbours(self, one: Snapshot) -> set[str]:
        return neighbours(
            one.at, {other.name: other.at for other in self.world if other is not one}, self.radius
        )

    def true_nearest(self, one: Snapshot) -> str | None:
        others = [other for other in self.world if other is not one]
        return min(others, key=lambda other: one.at.distance(other.at)).name if others else None

    def verdict(self) -> str:
        true = sum(len(self.true_neighbours(one)) for one in self.world)
        found = sum(len(self.true_neighbours(one) & {*one.knows}) for one in self.world)
        near = sum(self.true_nearest(one) in one.knows for one in self.world)
        greeted = sum(bool(one.met) for one in self.world)
        count = len(self.world)
        share = 100 * found / true if true else 100
        return (
            f"{count} entities know {found} of {true} neighbours ({share:.0f} %), {near} their nearest; "
            f"{greeted} have met somebody"
        )

    def has_settled(self) -> bool:
        """Everybody knows who is nearest, and has met somebody."""
        return bool(self.world) and all(self.true_nearest(one) in one.knows and one.met for one in self.world)

    def summary(self) -> str:
        lines = [
            f"\n{'entity':12} {'knows':>12}  {'nearest':12} {'met':>4}  {'datagrams':>9}  how it met the nearest"
        ]
        for one in self.world:
            true, nearest = self.true_neighbours(one), self.true_nearest(one)
            meeting = one.met.get(nearest) if nearest is not None else None
            how = (
                ""
                if meeting is None
                else f"{meeting.path}, {meeting.octets} bytes in {meeting.milliseconds:.0f} ms"
            )
            known = f"{len(true & {*one.knows})} of {len(true)}"
            lines.append(
                f"{one.name:12} {known:>12}  {nearest or '':12} {len(one.met):4}  {one.received:9}  {how}"
            )
        times = [meeting.milliseconds for one in self.world for meeting in one.met.values()]
        if times:
            lines.append(f"\n{len(times)} greetings, median {statistics.median(times):.0f} ms")
        return "\n".join([*lines, self.verdict()])

    def picture(self, where: str) -> str:
        shown = {one.name for one in self.world}
        links = [(one.name, name) for one in self.world for name in self.true_neighbours(one) & {*one.knows}]
        met = [(one.name, name) for one in self.world for name in one.met if name in shown]
        title = f"Solipsis: {len(self.world)} entities {where}"
        return world_map(title, self.verdict(), self.trails, links, met, self.radius)


def run_here(options: argparse.Namespace, stage: Stage, watcher: Watcher) -> None:
    """`--nodes` entities over loopback, each with one of those before it as its entry."""
    chance = random.Random(options.seed)
    names = [f"e{number}" for number in range(options.nodes)]
    entries = [None, *(names[chance.randrange(index)] for index in range(1, len(names)))]
    entities = [
        newborn(name, entry, options.radius, options.seed) for name, entry in zip(names, entries, strict=True)
    ]

    def config(name: str) -> Config:
        return Config(broker=stage.broker, name=name, state_dir=stage.folder / name, relay="never")

    trio.run(run_lives, entities, config, options.seconds, watcher.see)


def run_in_lab(options: argparse.Namespace, watcher: Watcher) -> None:
    """Two processes on hosts behind two NATs, each with half of the entities; `e0` is everybody's entry."""
    names = [f"e{number}" for number in range(options.nodes)]
    with open_lab_stage(options.nat_a, options.nat_b, LAB_DELAY) as (lab, stage):
        running = []
        for host, own in ((lab.host_a, names[::2]), (lab.host_b, names[1::2])):
            argv = [sys.executable, __file__, "--names", ",".join(own), "--entry", names[0], "--json"]
            for option in ("seconds", "seed", "radius"):
                argv += [f"--{option}", str(getattr(options, option))]
            running.append(stage.start(host, f"world-{host.name}", argv))
        while True:
            events = [process.next(2 * START_DEADLINE) for process in running]
            if any(event is None for event in events):
                break
            watcher.see(
                [msgspec.convert(one, Snapshot) for event in events if event for one in event["world"]]
            )
        if watcher.seconds < options.seconds / 2:
            raise StageError("\n".join(process.errors() for process in running))


def run_named(options: argparse.Namespace, watcher: Watcher) -> None:
    """The entities of `--names` by the broker of the environment, among others that may be anywhere."""
    base = Config.load()
    entities = [
        newborn(name, options.entry if options.entry != name else None, options.radius, options.seed)
        for name in options.names.split(",")
    ]

    def config(name: str) -> Config:
        return Config.load(name=name, state_dir=base.state_dir / name)

    def show(world: list[Snapshot]) -> None:
        if options.json:
            print(msgspec.json.encode({"event": "world", "world": world}).decode(), flush=True)
        else:
            watcher.see(world)

    trio.run(run_lives, entities, config, options.seconds, show)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=15.0, help="how long they live")
    parser.add_argument("--radius", type=float, default=0.2, help="within which everybody is to be known")
    parser.add_argument("--seed", type=int, default=1, help="another world")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="where a map of it goes")
    parser.add_argument(
        "--json", action="store_true", help="what each knows, at the end (with --names: each second)"
    )
    parser.add_argument("--lab", action="store_true", help="behind two NATs, in network namespaces")
    parser.add_argument("--nat-a", default="default", metavar="KIND", help="one of `ntcp lab list`")
    parser.add_argument("--nat-b", default="default", metavar="KIND")
    parser.add_argument("--names", help="live under these names, by the broker of NTCP_BROKER")
    parser.add_argument("--entry", help="the name of one that is there")
    options = parser.parse_args()
    watcher = Watcher(options.radius, quiet=options.json)
    try:
        if options.names:
            run_named(options, watcher)
            return 0
        if options.lab:
            if (reason := why_no_namespaces()) is not None:
                raise StageError(reason)
            run_in_lab(options, watcher)
        else:
            with open_loopback_stage() as stage:
                run_here(options, stage, watcher)
    except (StageError, LabUnavailable, OSError) as error:
        print(f"solipsis: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(msgspec.json.encode(watcher.world).decode() if options.json else watcher.summary())
    if options.svg is not None:
        options.svg.write_text(watcher.picture("behind two NATs" if options.lab else "over loopback"))
    return 0 if watcher.has_settled() else 1


if __name__ == "__main__":
    sys.exit(main())
