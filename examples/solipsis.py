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
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import trio

import ntcpsock.trio
from ntcpsock import Config
from ntcpsock.cli.lab import open_lab_stage, why_no_namespaces
from ntcpsock.cli.stage import Stage, StageError, open_loopback_stage
from ntcpsock.testing.natlab import LabUnavailable
from solipsis_watcher import Meeting, Snapshot, Watcher, avatar
from solipsis_world import INTERVAL, Entity, Outgoing, Place

PORT = 6600
SPEED = 0.004  # worlds a second
SEND_PATIENCE = 0.2  # seconds that a datagram waits for room; the next one says more
MEETING_DEADLINE = 10.0
MAX_GREETING = 100_000  # bytes
MAX_MEETINGS = 100
START_PAUSE = 0.1  # seconds between two nodes: a broker lets one address register so many a second
START_DEADLINE = 30.0
END_DEADLINE = 10.0
LAB_DELAY = 0.025


@dataclass
class Life:
    """An entity, and the node that it lives by."""

    entity: Entity
    config: Config
    met: dict[str, Meeting] = field(default_factory=dict)
    ending: trio.Event = field(default_factory=trio.Event)
    sock: ntcpsock.trio.NTCPDatagramSocket | None = None

    async def live(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until `ending` is set. Started when others can reach it. Cancelled, it ends without a word."""
        async with (
            ntcpsock.trio.open_node(self.config) as node,
            await node.open_datagram_socket(PORT) as sock,
            await node.open_listener(PORT) as listener,
        ):
            self.sock = sock
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.listen, sock)
                nursery.start_soon(self.speak, sock)
                nursery.start_soon(self.go_and_meet, node)
                nursery.start_soon(trio.serve_listeners, self.be_met, [listener])
                task_status.started()
                await self.ending.wait()
                nursery.cancel_scope.cancel()
            await self.send(sock, self.entity.leave())

    async def listen(self, sock: ntcpsock.trio.NTCPDatagramSocket) -> None:
        while True:
            data, sender = await sock.receive_from()
            await self.send(sock, self.entity.receive(label(sender.host), data, trio.current_time()))

    async def speak(self, sock: ntcpsock.trio.NTCPDatagramSocket) -> None:
        while True:
            await self.send(sock, self.entity.tick(trio.current_time()))
            await trio.sleep(INTERVAL)

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
        paths = {name: self.sock.path(name) for name in sorted(entity.known)} if self.sock else {}
        knows = {name: "" if path is None else path.technique for name, path in paths.items()}
        return Snapshot(entity.name, entity.at, knows, dict(self.met), entity.received, entity.bad)


def label(host: str) -> str:
    return host.removesuffix(".ntcp")


async def receive_greeting(stream: trio.abc.ReceiveStream) -> bytes:
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
        for life in lives:
            with trio.fail_after(START_DEADLINE):
                await nursery.start(life.live)
            await trio.sleep(START_PAUSE)
        end = trio.current_time() + seconds
        while trio.current_time() < end:
            await trio.sleep(1)
            show([life.snapshot() for life in lives])
        nursery.cancel_scope.deadline = trio.current_time() + END_DEADLINE
        for life in lives:
            life.ending.set()


def run_here(options: argparse.Namespace, stage: Stage, watcher: Watcher) -> None:
    """`--nodes` entities over loopback, each with one of those before it as its entry."""
    chance = random.Random(options.seed)
    names = [f"e{number}" for number in range(options.nodes)]
    entries = [None, *(names[chance.randrange(index)] for index in range(1, len(names)))]
    entities = [
        newborn(name, entry, options.radius, options.seed) for name, entry in zip(names, entries, strict=True)
    ]

    def config(name: str) -> Config:
        return Config(broker=stage.broker, name=name, state_dir=stage.folder / name)

    trio.run(run_lives, entities, config, options.seconds, watcher.see)


def run_in_lab(options: argparse.Namespace, watcher: Watcher) -> None:
    """Two processes on hosts behind two NATs, each with half of the entities; `e0` is everybody's entry."""
    names = [f"e{number}" for number in range(options.nodes)]
    with open_lab_stage(options.nat_a, options.nat_b, LAB_DELAY) as (lab, stage):
        running = []
        for host, own in ((lab.host_a, names[::2]), (lab.host_b, names[1::2])):
            argv = [sys.executable, __file__, "--names", ",".join(own), "--entry", names[0], "--json"]
            # They outlive the last look at them: no side is to see the other one leave.
            argv += ["--seconds", str(options.seconds + END_DEADLINE)]
            argv += ["--seed", str(options.seed), "--radius", str(options.radius)]
            running.append(stage.start(host, f"world-{host.name}", argv))
        while watcher.seconds < options.seconds:
            events = [process.next(2 * START_DEADLINE) for process in running]
            if not all(events):
                raise StageError("\n".join(process.errors() for process in running))
            watcher.see(
                [msgspec.convert(one, Snapshot) for event in events if event for one in event["world"]]
            )


def run_named(options: argparse.Namespace) -> None:
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
            return
        for one in world:
            met = ", ".join(one.met)
            print(
                f"{one.name} at {one.at.x:.3f} {one.at.y:.3f} knows {', '.join(one.knows)}; has met {met}",
                flush=True,
            )

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
    status = 0
    try:
        run(options, watcher)
    except* KeyboardInterrupt:
        status = 130
    except* (StageError, LabUnavailable, OSError, trio.TooSlowError) as errors:
        print(f"solipsis: {first(errors)}", file=sys.stderr)
        status = 1
    if status or options.names:
        return status
    print(msgspec.json.encode(watcher.world).decode() if options.json else watcher.summary())
    if options.svg is not None:
        options.svg.write_text(watcher.picture("behind two NATs" if options.lab else "over loopback"))
    return 0 if watcher.has_settled() else 1


def run(options: argparse.Namespace, watcher: Watcher) -> None:
    if options.names:
        run_named(options)
    elif not options.lab:
        with open_loopback_stage() as stage:
            run_here(options, stage, watcher)
    elif (reason := why_no_namespaces()) is not None:
        raise StageError(reason)
    else:
        run_in_lab(options, watcher)


def first(error: BaseException) -> BaseException:
    """What went wrong, out of the groups of the nurseries around it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    sys.exit(main())
