"""What one sees of the world of solipsis.py who sees all of it, as nobody in it does: figures, and a map."""

from __future__ import annotations

import colorsys
import hashlib
import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from ntcpsock.cli.svg import Svg
from solipsis_world import Place, neighbours

GRID = 5  # cells of a face, each way
MAP = 640  # pixels, each way
MARGIN = 28
HEAD = 52
FOOT = 66
INK, PALE = "#1f2328", "#d1d9e0"
MET: dict[str, Any] = {"stroke": "#0969da", "stroke_width": 2.2}
LINK: dict[str, Any] = {"stroke": "#8fa8c0", "stroke_width": 1}
TRAIL_PIECES = 6
TRAIL: dict[str, Any] = {"stroke_width": 3, "opacity": 0.5}


class Meeting(msgspec.Struct, frozen=True):
    """How somebody was met."""

    path: str
    milliseconds: float
    octets: int


class Snapshot(msgspec.Struct, frozen=True):
    """What an entity says of itself to whoever watches the world. knows: whom, and by which technique its datagrams
    travel there; received, bad: datagrams."""

    name: str
    at: Place
    knows: dict[str, str]
    met: dict[str, Meeting]
    received: int
    bad: int


class Watcher:
    """Is shown all entities once a second. quiet: prints nothing."""

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
        others = {other.name: other.at for other in self.world if other is not one}
        return neighbours(one.at, others, self.radius)

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
        header = ("entity", "knows", "nearest", "met", "datagrams", "how it met the nearest")
        lines = ["", _row(*header)]
        for one in self.world:
            true, nearest = self.true_neighbours(one), self.true_nearest(one) or ""
            how, meeting = "", one.met.get(nearest)
            if meeting is not None:
                how = f"{meeting.path}, {meeting.octets} bytes in {meeting.milliseconds:.0f} ms"
            known = f"{len(true & {*one.knows})} of {len(true)}"
            lines.append(_row(one.name, known, nearest, len(one.met), one.received, how))
        times = [meeting.milliseconds for one in self.world for meeting in one.met.values()]
        if times:
            lines.append(f"\n{len(times)} greetings, median {statistics.median(times):.0f} ms")
        ways = Counter(way for one in self.world for way in one.knows.values() if way)
        lines.append("datagrams by " + ", ".join(f"{way} ({count})" for way, count in ways.most_common()))
        return "\n".join([*lines, self.verdict()])

    def picture(self, where: str) -> str:
        shown = {one.name for one in self.world}
        links = [(one.name, name) for one in self.world for name in self.true_neighbours(one) & {*one.knows}]
        met = [(one.name, name) for one in self.world for name in one.met if name in shown]
        title = f"Solipsis: {len(self.world)} entities {where}"
        return world_map(title, self.verdict(), self.trails, links, met, self.radius)


def _row(name: str, known: str, nearest: str, met: object, received: object, how: str) -> str:
    return f"{name:12} {known:>9}  {nearest:12} {met:>4} {received:>10}  {how}"


# -- how they look


def face(name: str) -> tuple[tuple[int, int, int], list[tuple[int, int]]]:
    """A colour (red, green, blue), and the cells (column, row) of a symmetrical pattern."""
    digest = hashlib.sha256(name.encode()).digest()
    red, green, blue = colorsys.hls_to_rgb(digest[0] / 256, 0.36 + digest[1] / 2560, 0.65)
    half = [(x, y) for x in range(GRID // 2 + 1) for y in range(GRID) if digest[2 + x * GRID + y] % 2]
    cells = {cell for x, y in half for cell in ((x, y), (GRID - 1 - x, y))}
    return (round(red * 255), round(green * 255), round(blue * 255)), sorted(cells)


def avatar(name: str, scale: int = 20) -> bytes:
    """A picture of an entity, as it gives it to those it meets: 30 KB of PPM."""
    colour, cells = face(name)
    size = GRID * scale
    rows = [
        b"".join(bytes(colour if (x, y) in cells else (255, 255, 255)) * scale for x in range(GRID)) * scale
        for y in range(GRID)
    ]
    return b"P6 %d %d 255\n" % (size, size) + b"".join(rows)


def world_map(
    title: str,
    caption: str,
    trails: Mapping[str, Sequence[Place]],
    links: Iterable[tuple[str, str]],
    met: Iterable[tuple[str, str]],
    radius: float,
) -> str:
    """SVG. trails: where each has been, its place now last; links: who are neighbours; met: who have met."""
    svg = Svg(title)
    places = {name: trail[-1] for name, trail in trails.items()}
    svg.rect(MARGIN, HEAD, MAP, MAP, fill="#f6f8fa")
    for place in places.values():
        _over_the_edges(svg, place, radius)
    pairs_met = {frozenset(pair) for pair in met}
    for pair in sorted({frozenset(pair) for pair in links} | pairs_met, key=sorted):
        one, other = sorted(pair)
        style = MET if pair in pairs_met else LINK
        # A line over the edge is drawn from both ends.
        for start, end in ((one, other), (other, one)):
            _line(svg, places[start], places[start].way_to(places[end]), **style)
    for name, trail in trails.items():
        red, green, blue = face(name)[0]
        pieces = [*trail[: -1 : max(1, len(trail) // TRAIL_PIECES)], trail[-1]]
        for before, after in itertools.pairwise(pieces):
            _line(svg, before, before.way_to(after), stroke=f"rgb({red},{green},{blue})", **TRAIL)
    for name, place in places.items():
        _entity(svg, name, place)
    for name, place in places.items():
        _label(svg, name, place, places.values())
    _frame(svg)
    svg.text(MARGIN, 32, title, font_size=18, font_weight="bold", fill=INK)
    base = HEAD + MAP
    for x, label, style in (
        (0, "have met (a stream)", MET),
        (190, "neighbours (datagrams)", LINK),
        (400, "where it comes from", {"stroke": "#777777", **TRAIL}),
    ):
        svg.line(MARGIN + x, base + 22, MARGIN + x + 26, base + 22, **style)
        svg.text(MARGIN + x + 34, base + 26, label, fill=INK)
    svg.text(MARGIN, base + 50, caption, fill="#59636e")
    return svg.render(MAP + 2 * MARGIN, base + FOOT)


def _at(place: Place) -> tuple[float, float]:
    """North is up."""
    return MARGIN + place.x * MAP, HEAD + (1 - place.y) * MAP


def _line(svg: Svg, start: Place, way: tuple[float, float], **style: str | float) -> None:
    x, y = _at(start)
    svg.line(x, y, x + way[0] * MAP, y - way[1] * MAP, **style)


def _over_the_edges(svg: Svg, place: Place, radius: float) -> None:
    """The circle within which it wants to know everybody, on both sides of an edge."""
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            if all(-radius < at + shift < 1 + radius for at, shift in zip(place, (dx, dy), strict=True)):
                x, y = _at(Place(place.x + dx, place.y + dy))
                r = radius * MAP
                svg.rect(x - r, y - r, 2 * r, 2 * r, rx=r, fill="#0969da", fill_opacity="0.035", stroke=PALE)


def _entity(svg: Svg, name: str, place: Place) -> None:
    (red, green, blue), cells = face(name)
    cell = 4
    x, y = (at - GRID * cell / 2 for at in _at(place))
    svg.rect(x - 3, y - 3, GRID * cell + 6, GRID * cell + 6, rx=5, fill="#ffffff", stroke=INK, title=name)
    for column, row in cells:
        svg.rect(x + column * cell, y + row * cell, cell, cell, fill=f"rgb({red},{green},{blue})")


def _label(svg: Svg, name: str, place: Place, others: Iterable[Place]) -> None:
    """On the right, or on the left where that would be beyond the frame or on somebody."""
    ways = [place.way_to(other) for other in others]
    left = place.x > 0.9 or any(0 < dx < 0.08 and abs(dy) < 0.04 for dx, dy in ways)
    x, y = _at(place)
    anchor = "end" if left else "start"
    svg.text(x + (-16 if left else 16), y + 4, name, text_anchor=anchor, fill=INK, font_weight="bold")


def _frame(svg: Svg) -> None:
    """White around the map, over all that reaches beyond it."""
    far = math.ceil(MAP / 2)
    for x, y, width, height in (
        (0, HEAD - far, MAP + 2 * MARGIN, far),
        (0, HEAD + MAP, MAP + 2 * MARGIN, far),
        (MARGIN - far, HEAD - far, far, MAP + 2 * far),
        (MARGIN + MAP, HEAD - far, far, MAP + 2 * far),
    ):
        svg.rect(x, y, width, height, fill="#ffffff")
    svg.rect(MARGIN, HEAD, MAP, MAP, fill="none", stroke=INK)
