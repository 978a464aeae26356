"""Solipsis: nodes that live on a small world, find their neighbours through those they know, and talk.

    python examples/solipsis.py --nodes 24 --svg world.svg
    python examples/solipsis.py --lab          # half of them behind one NAT, half behind another

The world is a square whose edges are joined. At the beginning each inhabitant knows one other by name, and nobody knows
all. Each tells those around it, by datagrams, where it is and whom it sees; so it hears of nearer ones, and keeps the
nearest in each of six directions. With those that are new there it exchanges a few words over a stream. No server takes
part in this: the broker introduces two nodes, once.

Solipsis was the virtual world for which NTCP was made in 2005; its simulator did this with addresses.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import trio

import ntcpsock.trio
from ntcpsock import Config
from ntcpsock.cli.lab import open_lab_stage, why_no_namespaces
from ntcpsock.cli.stage import Runner, Stage, StageError, ThisMachine, open_loopback_stage
from ntcpsock.trio import Node, NTCPDatagramSocket, NTCPStream

PORT = 5683
SECTORS = 6
INTERVAL = 0.5  # seconds between two words to each neighbour
PATIENCE = 10.0  # seconds of silence after which somebody is forgotten
MOST_TOLD = 12  # inhabitants named in one datagram
SPEED = 0.004  # of the world's edge, in a second
LAB_DELAY = 0.025

Place = tuple[float, float]


# -- the world


def place_of(name: str) -> Place:
    """Where somebody begins to live."""
    chance = random.Random(name)
    return chance.random(), chance.random()


def way(here: Place, there: Place) -> Place:
    """The shortest way on a world whose edges are joined."""
    return (there[0] - here[0] + 0.5) % 1 - 0.5, (there[1] - here[1] + 0.5) % 1 - 0.5


def distance(here: Place, there: Place) -> float:
    return math.hypot(*way(here, there))


def around(here: Place, places: dict[str, Place]) -> set[str]:
    """The nearest of `places` in each direction."""
    nearest: dict[int, tuple[float, str]] = {}
    for name, there in places.items():
        east, north = way(here, there)
        sector = int((math.atan2(north, east) / math.tau + 0.5) * SECTORS) % SECTORS
        found = (math.hypot(east, north), name)
        nearest[sector] = min(nearest.get(sector, found), found)
    return {name for _, name in nearest.values()}


# -- an inhabitant


@dataclass
class Inhabitant:
    """known: where others said that they are, and when that was heard; met: with whom words were exchanged."""

    name: str
    friend: str | None
    place: Place
    heading: float
    known: dict[str, tuple[Place, float]] = field(default_factory=dict)
    neighbours: set[str] = field(default_factory=set)
    met: dict[str, str] = field(default_factory=dict)
    heard: int = 0

    def move(self, seconds: float) -> None:
        x, y = self.place
        step = SPEED * seconds
        self.place = (x + step * math.cos(self.heading)) % 1, (y + step * math.sin(self.heading)) % 1

    def look_around(self, now: float) -> set[str]:
        """Forget who is silent; who is around now."""
        self.known = {name: seen for name, seen in self.known.items() if now - seen[1] < PATIENCE}
        self.neighbours = around(self.place, {name: place for name, (place, _) in self.known.items()})
        return self.neighbours

    def tell(self, towards: Place, *, is_answer: bool = False) -> bytes:
        """Where this one is, and who lives near `towards`. Nobody answers an answer."""
        nearest = sorted(self.known.items(), key=lambda item: distance(towards, item[1][0]))[:MOST_TOLD]
        others = [[name, *place] for name, (place, _) in nearest]
        return json.dumps({"at": self.place, "near": others, "answer": is_answer}).encode()

    def hear_untrusted(self, sender: str, data: bytes, now: float) -> bytes | None:
        """What `sender`, whose name is proven, says, however little sense it makes. The answer, if it is to have one: a
        stranger looks for its place, and is told who lives there."""
        try:
            word = json.loads(data)
            there = _place_untrusted(word["at"])
            near = [(str(name), _place_untrusted(place)) for name, *place in word["near"][:MOST_TOLD]]
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        self.heard += 1
        self.known[sender] = there, now
        for name, place in near:
            if name != self.name and name not in self.known:
                # Hearsay: it has half of the time to say so itself.
                self.known[name] = place, now - PATIENCE / 2
        if word.get("answer") is not False or sender in self.neighbours:
            return None
        return self.tell(there, is_answer=True)


def _place_untrusted(value: Any) -> Place:
    x, y = value
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise ValueError("outside the world")
    return float(x), float(y)


async def live(one: Inhabitant, config: Config, seconds: float) -> dict[str, Any]:
    """An inhabitant's life; what it knows at its end."""
    async with (
        ntcpsock.trio.open_node(config) as node,
        await node.open_datagram_socket(PORT) as sock,
        await node.open_listener(PORT) as listener,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(listen, one, sock)
        nursery.start_soon(trio.serve_listeners, lambda stream: answer(one, stream), [listener])
        with trio.move_on_after(seconds):
            while True:
                one.move(INTERVAL)
                now = trio.current_time()
                to_tell = one.look_around(now)
                if one.friend is not None and len(to_tell) < 2:
                    to_tell = to_tell | {one.friend}
                for name in to_tell:
                    with contextlib.suppress(OSError):
                        await sock.send_to(one.tell(one.place), (name, PORT))
                    # The one with the lesser name begins.
                    if one.name < name and name in one.known and name not in one.met:
                        one.met[name] = "..."
                        nursery.start_soon(meet, one, node, name)
                await trio.sleep(INTERVAL)
        result = describe(one, sock)
        nursery.cancel_scope.cancel()
    return result


async def listen(one: Inhabitant, sock: NTCPDatagramSocket) -> None:
    while True:
        data, sender = await sock.receive_from()
        name = sender.host.removesuffix(".ntcp")
        word = one.hear_untrusted(name, data, trio.current_time())
        if word is not None:
            await sock.send_to(word, sender)


async def meet(one: Inhabitant, node: Node, name: str) -> None:
    """Exchange a few words with a new neighbour, over a stream."""
    try:
        async with await node.open_stream(name, PORT) as stream:
            await stream.send_all(f"I am {one.name}, who are you?\n".encode())
            await stream.send_eof()
            one.met[name] = b"".join([part async for part in stream]).decode(errors="replace").strip()
    except (OSError, trio.BrokenResourceError):
        one.met.pop(name, None)


async def answer(one: Inhabitant, stream: NTCPStream) -> None:
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError, trio.TooSlowError):
            with trio.fail_after(PATIENCE):
                words = await stream.receive_some(1000)
                one.met[stream.peer.name or stream.peer.node_id] = (
                    bytes(words).decode(errors="replace").strip()
                )
                await stream.send_all(f"I live at {one.place[0]:.2f}, {one.place[1]:.2f}".encode())
                await stream.send_eof()


def describe(one: Inhabitant, sock: NTCPDatagramSocket) -> dict[str, Any]:
    paths = {}
    for name in one.neighbours:
        path = sock.path(name)
        if path is not None:
            paths[name] = path.technique
    return {
        "name": one.name,
        "place": one.place,
        "neighbours": sorted(one.neighbours),
        "paths": paths,
        "met": sorted(name for name, words in one.met.items() if words != "..."),
        "heard": one.heard,
    }


def run_here(names: Sequence[str], first: str, broker: str, folder: Path, seconds: float) -> None:
    """Some inhabitants in this process; a line of JSON for each at the end."""

    async def run_all() -> None:
        async def run_one(name: str) -> None:
            friend = None if name == first else first
            one = Inhabitant(
                name, friend, place_of(name), random.Random(name + "'s way").uniform(0, math.tau)
            )
            config = Config(broker=broker, name=name, state_dir=folder / name, warm_ports=0)
            results.append(await live(one, config, seconds))

        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(run_one, name)
                await trio.sleep(0.05)  # a broker lets one address register so many a second

    results: list[dict[str, Any]] = []
    trio.run(run_all)
    for result in results:
        print(json.dumps({"event": "lived", **result}), flush=True)


# -- the picture


def svg(people: Sequence[dict[str, Any]], title: str, *, size: int = 640) -> str:
    """The world: everybody, and a line to each neighbour."""
    margin = 24
    places = {
        person["name"]: (person["place"][0] * size, (1 - person["place"][1]) * size) for person in people
    }
    lines, dots = [], []
    for pair in sorted(
        {tuple(sorted((p["name"], n))) for p in people for n in p["neighbours"] if n in places}
    ):
        (x1, y1), (x2, y2) = places[pair[0]], places[pair[1]]
        paths = [person["paths"].get(other) for person, other in _both(people, pair)]
        colour = "#c0392b" if "relay" in paths else "#2e86c1" if any(paths) else "#b0b0b0"
        # Over the edge: the line is drawn at both ends, and the frame cuts it.
        dx = size * round((x1 - x2) / size)
        dy = size * round((y1 - y2) / size)
        for ox, oy in dict.fromkeys([(0, 0), (-dx, -dy)]):
            lines.append(
                f'<line x1="{x1 + ox:.1f}" y1="{y1 + oy:.1f}" x2="{x2 + dx + ox:.1f}" y2="{y2 + dy + oy:.1f}"'
                f' stroke="{colour}" stroke-width="1.2" opacity="0.7"/>'
            )
    for name, (x, y) in places.items():
        dots.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="#1b4f72"/>')
        # Names keep inside the frame.
        anchor, shift = ("end", -8) if x > size - 50 else ("start", 8)
        dots.append(
            f'<text x="{x + shift:.1f}" y="{max(12.0, y - 6):.1f}" text-anchor="{anchor}">{escape(name)}</text>'
        )
    width, height = size + 2 * margin, size + 2 * margin + 24
    head = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
    return f"""<svg {head} font-family="sans-serif" font-size="12">
<rect width="{width}" height="{height}" fill="white"/>
<text x="{margin}" y="26" font-size="15">{escape(title)}</text>
<svg x="{margin}" y="{margin + 16}" width="{size}" height="{size}" viewBox="0 0 {size} {size}">
<rect width="{size}" height="{size}" fill="#f4f8fb" stroke="#1b4f72"/>
{chr(10).join(lines)}
{chr(10).join(dots)}
</svg>
</svg>
"""


def _both(people: Sequence[dict[str, Any]], pair: Sequence[str]) -> Iterator[tuple[dict[str, Any], str]]:
    for person in people:
        if person["name"] in pair:
            yield person, pair[1] if person["name"] == pair[0] else pair[0]


# -- the scene


def judge(people: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What one who sees everything says: how many of the true neighbours were found."""
    places: dict[str, Place] = {person["name"]: tuple(person["place"]) for person in people}
    true = found = 0
    for person in people:
        others = {name: place for name, place in places.items() if name != person["name"]}
        expected = around(places[person["name"]], others)
        true += len(expected)
        found += len(expected & set(person["neighbours"]))
    return {
        "inhabitants": len(people),
        "neighbours": found,
        "of": true,
        "meetings": sum(len(person["met"]) for person in people) // 2,
        "datagrams": sum(person["heard"] for person in people),
        "techniques": sorted({technique for person in people for technique in person["paths"].values()}),
    }


def run_world(stage: Stage, hosts: Sequence[Runner], count: int, seconds: float) -> list[dict[str, Any]]:
    """`count` inhabitants, on `hosts` in turns; what each knows at the end."""
    names = [f"n{number}" for number in range(count)]
    running = []
    for index, host in enumerate(hosts):
        argv = [sys.executable, __file__, "--live", ",".join(names[index :: len(hosts)]), "--first", names[0]]
        argv += ["--broker", stage.broker, "--folder", str(stage.folder), "--seconds", str(seconds)]
        running.append(stage.start(host, f"world{index}", argv))
    people = []
    for events in running:
        while (event := events.next(seconds + 60)) is not None:
            people.append(event)
    if len(people) != count:
        raise StageError("\n".join(events.errors() for events in running))
    return people


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=12.0, help="how long they live")
    parser.add_argument("--svg", type=Path, help="where the picture goes")
    parser.add_argument("--lab", action="store_true", help="behind two NATs, in network namespaces")
    for inner in ("--live", "--first", "--broker", "--folder"):
        parser.add_argument(inner, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.live:
        names = options.live.split(",")
        run_here(names, options.first, options.broker, Path(options.folder), options.seconds)
        return 0
    try:
        with ExitStack() as stack:
            hosts: list[Runner] = [ThisMachine()]
            if options.lab:
                reason = why_no_namespaces()
                if reason is not None:
                    raise StageError(reason)
                lab, stage = stack.enter_context(open_lab_stage("default", "default", LAB_DELAY))
                hosts = [lab.host_a, lab.host_b]
            else:
                stage = stack.enter_context(open_loopback_stage())
            people = run_world(stage, hosts, options.nodes, options.seconds)
    except StageError as error:
        print(error, file=sys.stderr)
        return 1
    verdict = judge(people)
    print(json.dumps(verdict))
    if options.svg is not None:
        title = (
            "{inhabitants} inhabitants, {neighbours} of {of} neighbours found, {meetings} meetings".format(
                **verdict
            )
        )
        options.svg.write_text(svg(people, title))
    return 0


if __name__ == "__main__":
    sys.exit(main())
