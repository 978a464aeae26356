"""A connect as a sequence diagram: places from left to right, time downwards (pure)."""

from __future__ import annotations

import itertools
import textwrap

from ntcpsock.cli.punch_drawing import Arrow, Drawing
from ntcpsock.cli.svg import Svg

_WIDTH = 1100
_TOP = 150
_LINE, _OUTCOME_LINES = 150, 2  # characters; lines
_LEFT, _RIGHT = 150, 980  # the outermost lifelines
_AXIS = 62
_SHORTEST, _TALLEST = 560.0, 1500.0
_PER_MILLISECOND = 2.6

_INK, _GREY, _RULE = "#1c2733", "#66717d", "#dfe4ea"
_RED, _GREEN = "#c62828", "#1a7f4b"
_COLOURS = {
    "broker": "#5b6673",
    "stun": "#9a7b1f",
    "syn": "#2563a8",
    "syn-ack": "#2563a8",
    "rst": _RED,
    "icmp": _RED,
    "tls": _GREEN,
    "data": _GREEN,
    "fin": "#9aa4af",
}
_OTHER = "#5b6673"
_WORDS = {
    "broker": "with the broker, sealed",
    "stun": "STUN",
    "syn": "SYN, SYN-ACK",
    "rst": "RST, ICMP",
    "tls": "TLS",
}

_LABEL_HEIGHT = 14.0
_SPOTS = (0.5, 0.3, 0.7, 0.16, 0.84)

_Box = tuple[float, float, float, float]


def sequence_diagram(drawing: Drawing) -> str:
    """The text of an SVG file."""
    end = max([drawing.seconds if drawing.connected else 0.0, *(arrow.ended for arrow in drawing.arrows)])
    height = min(max(end * 1000 * _PER_MILLISECOND, _SHORTEST), _TALLEST)
    scale = height / end if end else 0.0
    columns = _columns(drawing)
    svg = Svg(f"{drawing.title}: {drawing.outcome}")
    for kind, colour in _COLOURS.items():
        svg.arrow_head(kind, colour)
    svg.text(28, 36, drawing.title, font_size=18, font_weight="bold", fill=_INK)
    for number, line in enumerate(textwrap.wrap(drawing.outcome, _LINE)[:_OUTCOME_LINES]):
        svg.text(28, 58 + 17 * number, line, fill=_GREEN if drawing.connected else _RED)
    bottom = _TOP + height + 16
    _draw_axis(svg, end, scale)
    _draw_places(svg, drawing, columns, bottom)
    taken: list[_Box] = []
    if drawing.connected:
        _draw_end(svg, drawing, columns, scale, taken)
    for arrow in drawing.arrows:
        _draw_arrow(svg, arrow, columns, scale)
    for arrow in sorted(drawing.arrows, key=lambda arrow: arrow.kind not in ("syn", "rst", "tls")):
        _draw_label(svg, arrow, columns, scale, taken)
    return svg.render(_WIDTH, _draw_foot(svg, drawing, bottom + 26))


def _columns(drawing: Drawing) -> dict[str, float]:
    step = (_RIGHT - _LEFT) / max(1, len(drawing.places) - 1)
    return {name: _LEFT + number * step for number, (name, _, _) in enumerate(drawing.places)}


def _draw_axis(svg: Svg, end: float, scale: float) -> None:
    step = next(s for s in (5, 10, 25, 50, 100, 250, 500, 1000, 5000, 10**9) if s / 1000 * scale >= 40)
    for number in range(int(end * 1000 / step) + 1):
        y = _TOP + number * step / 1000 * scale
        svg.line(_AXIS, y, _RIGHT + 60, y, stroke=_RULE)
        svg.text(_AXIS - 8, y + 4, f"{number * step:g}", text_anchor="end", fill=_GREY, font_size=12)
    svg.text(_AXIS - 8, _TOP - 18, "ms", text_anchor="end", fill=_GREY, font_size=12)


def _draw_places(svg: Svg, drawing: Drawing, columns: dict[str, float], bottom: float) -> None:
    for name, title, address in drawing.places:
        x = columns[name]
        svg.text(x, _TOP - 40, title, text_anchor="middle", font_weight="bold", fill=_INK)
        svg.text(x, _TOP - 22, address, text_anchor="middle", fill=_GREY, font_size=12)
        if name.startswith("nat-"):
            svg.rect(x - 6, _TOP - 12, 12, bottom - _TOP + 12, fill="#eef1f5", stroke="#c3cad3")
        else:
            svg.line(x, _TOP - 12, x, bottom, stroke="#9aa4af", stroke_width=2)


def _draw_end(svg: Svg, drawing: Drawing, columns: dict[str, float], scale: float, taken: list[_Box]) -> None:
    x, y = columns[drawing.places[0][0]], _TOP + drawing.seconds * scale
    svg.rect(x - 5, y - 5, 10, 10, rx=5, fill=_GREEN)
    svg.text(x - 12, y - 7, "connected", text_anchor="end", fill=_GREEN, font_size=12, font_weight="bold")
    taken.append((x - 80, y - 20, x, y))


def _draw_arrow(svg: Svg, arrow: Arrow, columns: dict[str, float], scale: float) -> None:
    colour = _COLOURS.get(arrow.kind, _OTHER)
    points = [(columns[place], _TOP + time * scale) for place, time in arrow.hops if place in columns]
    width = 1.2 if arrow.kind in ("broker", "stun", "fin") else 1.8
    for number, ((x1, y1), (x2, y2)) in enumerate(itertools.pairwise(points)):
        last = number == len(points) - 2 and arrow.fate == "arrived"
        marker = f"url(#{arrow.kind if arrow.kind in _COLOURS else 'broker'})" if last else None
        svg.line(x1, y1, x2, y2, stroke=colour, stroke_width=width, marker_end=marker)
    x, y = points[-1]
    if arrow.fate == "dropped":
        for slope in (1, -1):
            svg.line(x - 6, y - 6 * slope, x + 6, y + 6 * slope, stroke=_RED, stroke_width=2.2)
    elif arrow.fate != "arrived":
        svg.text(x, y - 5, arrow.fate, fill=_RED, font_size=11, text_anchor="middle")


def _draw_label(svg: Svg, arrow: Arrow, columns: dict[str, float], scale: float, taken: list[_Box]) -> None:
    """On the longest hop, where there is room; an arrow without room has none."""
    points = [(columns[place], _TOP + time * scale) for place, time in arrow.hops if place in columns]
    hops = list(itertools.pairwise(points))
    if not hops:
        return
    (x1, y1), (x2, y2) = max(hops, key=lambda hop: abs(hop[1][0] - hop[0][0]))
    width = 6.4 * len(arrow.label) + 6
    if width > abs(x2 - x1):
        return
    for spot in _SPOTS:
        x, y = x1 + (x2 - x1) * spot, y1 + (y2 - y1) * spot - 6
        box = (x - width / 2, y - _LABEL_HEIGHT + 3, x + width / 2, y + 3)
        if not any(_overlap(box, other) for other in taken):
            taken.append(box)
            svg.rect(box[0], box[1], width, _LABEL_HEIGHT, fill="#ffffff", fill_opacity=0.85)
            colour = _COLOURS.get(arrow.kind, _OTHER)
            svg.text(x, y, arrow.label, text_anchor="middle", fill=colour, font_size=11.5)
            return


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _draw_foot(svg: Svg, drawing: Drawing, y: float) -> float:
    """The legend and what was left out; where the picture ends."""
    x = 28.0
    kinds = {arrow.kind for arrow in drawing.arrows}
    for kind, words in _WORDS.items():
        if kind in kinds or (kind == "rst" and "icmp" in kinds):
            svg.line(x, y - 4, x + 22, y - 4, stroke=_COLOURS[kind], stroke_width=2)
            svg.text(x + 30, y, words, fill=_GREY, font_size=12)
            x += 56 + 6.6 * len(words)
    if any(arrow.fate == "dropped" for arrow in drawing.arrows):
        for slope in (1, -1):
            svg.line(x, y - 4 - 5 * slope, x + 10, y - 4 + 5 * slope, stroke=_RED, stroke_width=2)
        svg.text(x + 18, y, "not let through", fill=_GREY, font_size=12)
    left_out = f"Not drawn: {'; '.join(drawing.left_out)}." if drawing.left_out else ""
    for line in textwrap.wrap(left_out, _LINE):
        y += 18
        svg.text(28, y, line, fill=_GREY, font_size=12)
    return y + 24
