"""What entities of solipsis.py look like, and a map of their world."""

from __future__ import annotations

import colorsys
import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from solipsis_world import Place

from ntcpsock.cli.svg import Svg

GRID = 5  # cells of a face, each way
MAP = 640  # pixels, each way
MARGIN = 28
HEAD = 52
FOOT = 66
INK, PALE, LINK, MET = "#1f2328", "#d1d9e0", "#8fa8c0", "#0969da"


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
        style = (
            {"stroke": MET, "stroke_width": 2.2} if pair in pairs_met else {"stroke": LINK, "stroke_width": 1}
        )
        # A line over the edge is drawn from both ends.
        for start, end in ((one, other), (other, one)):
            _line(svg, places[start], places[start].way_to(places[end]), **style)
    for name, trail in trails.items():
        red, green, blue = face(name)[0]
        for before, after in itertools.pairwise(trail):
            _line(
                svg,
                before,
                before.way_to(after),
                stroke=f"rgb({red},{green},{blue})",
                stroke_width=3,
                opacity=0.5,
            )
    for name, place in places.items():
        _entity(svg, name, place)
    _frame(svg)
    svg.text(MARGIN, 32, title, font_size=18, font_weight="bold", fill=INK)
    base = HEAD + MAP
    for x, label, style in (
        (0, "have met (a stream)", {"stroke": MET, "stroke_width": 2.2}),
        (190, "neighbours (datagrams)", {"stroke": LINK, "stroke_width": 1}),
        (400, "where it comes from", {"stroke": "#777777", "stroke_width": 3, "opacity": 0.5}),
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
    svg.line(x, y, x + way[0] * MAP, y - way[1] * MAP, stroke_linecap="round", **style)


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
    # Names stay within the frame.
    left = place.x > 0.9
    svg.text(
        x - 6 if left else x + GRID * cell + 6, y + 14, name, text_anchor="end" if left else None, fill=INK,
        font_weight="bold",
    )  # fmt: skip


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
