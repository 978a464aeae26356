"""The heat maps of `ntcp lab matrix`: success, technique and time of every pair, in one picture (pure)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ntcpsock.cli.matrix import EXPECTED_MEDIAN, EXPECTED_P95, Matrix, PairResult
from ntcpsock.cli.matrix_topologies import TOPOLOGIES
from ntcpsock.cli.svg import Svg
from ntcpsock.testing.natlab import Way

_CELL_WIDTH, _CELL_HEIGHT = 46, 26
_FONT = 11.5
_LETTER = 0.62  # width of one, of the font's size
_LABELS = 190  # width of the row labels
_MARGIN = 28
_HEADING = 92  # title, explanation and legend of a panel
_SLANT = 110  # height of the column labels
_STRIP = 30  # what stands between the square and the strip of other networks

_INK, _GREY, _PALE = "#1c2733", "#66717d", "#eef1f5"
_RED = "#c62828"
_TECHNIQUES = {
    "public": "#2e7d4f",
    "tcp-open": "#2f6db3",
    "tcp-predict": "#8a4fb0",
    "lan": "#7a8794",
    "ipv6": "#00838f",
    "port-mapped": "#b26a00",
    "udp-punch": "#3a9fd0",
    "udp-predict": "#b48ad6",
    "udp-birthday": "#c05fa5",
    "relay": "#9a7b4f",
}
_OTHER_TECHNIQUE = "#5d6b33"


_ROW_LABEL: dict[str, Any] = {"fill": _INK, "font_size": 12, "text_anchor": "end"}


@dataclass(frozen=True, slots=True)
class _Panel:
    """title, note: what stands above; cell: fill, ink and word of a pair; legend: fills and words."""

    title: str
    note: str
    cell: Callable[[PairResult], tuple[str, str, str]]
    legend: tuple[tuple[str, str], ...]


def heat_maps(matrix: Matrix) -> str:
    """The picture as the text of an SVG file. Rows dial, columns listen."""
    settings = matrix.settings
    rtt = f"{4 * settings.delay_ms:g} ms"
    techniques = sorted({cell.technique for cell in matrix.cells.values() if cell.technique is not None})
    panels = (
        _Panel(
            "Connected",
            f"of {_tries(matrix)}. The row's host dials, the column's listens.",
            _success,
            (("#2e9e5b", "all"), ("#e8b93a", "some"), (_PALE, "none: no direct path can be expected")),
        ),
        _Panel(
            "Technique",
            "that connected most of the tries.",
            _technique,
            tuple((_TECHNIQUES.get(name, _OTHER_TECHNIQUE), name) for name in techniques),
        ),
        _Panel(
            "Time to connect",
            f"authenticated and encrypted: median in path round trips of {rtt}.",
            _time,
            tuple((_heat(value), f"{value:g}") for value in (2.5, EXPECTED_MEDIAN, 4, EXPECTED_P95, 8, 16)),
        ),
    )
    svg = Svg("ntcp lab matrix")
    width = _MARGIN * 2 + _LABELS + len(matrix.kinds) * _CELL_WIDTH + _SLANT // 2
    y = float(_MARGIN)
    for panel in panels:
        y = _draw(svg, matrix, panel, y)
    return svg.render(width, y)


def _tries(matrix: Matrix) -> str:
    if matrix.settings.port_mapping:
        count = 2 * matrix.settings.tries
        return f"{count} tries, half with the dialer's router mapping ports, half with the listener's"
    return f"{matrix.settings.tries} tries"


def _draw(svg: Svg, matrix: Matrix, panel: _Panel, top: float) -> float:
    """Paint one panel; where the next one begins."""
    svg.text(_MARGIN, top + 18, panel.title, font_size=20, font_weight="bold", fill=_INK)
    svg.text(_MARGIN, top + 40, panel.note, fill=_GREY)
    _draw_legend(svg, panel, top + 54, bool(matrix.below_expectation))
    left, first = _MARGIN + _LABELS, top + _HEADING + _SLANT
    for number, kind in enumerate(matrix.kinds):
        middle = left + (number + 0.5) * _CELL_WIDTH
        svg.text(
            middle,
            first - 8,
            kind,
            fill=_INK,
            font_size=12,
            transform=f"rotate(-38 {middle:g} {first - 8:g})",
        )
    columns = {kind: left + number * _CELL_WIDTH for number, kind in enumerate(matrix.kinds)}
    rows = list(matrix.kinds) if matrix.pairs else []
    for number, kind in enumerate(rows):
        svg.text(left - 10, first + (number + 0.5) * _CELL_HEIGHT + 4, kind, **_ROW_LABEL)
    for pair in matrix.pairs:
        y = first + rows.index(pair.nat_a) * _CELL_HEIGHT
        _draw_cell(svg, panel, pair, columns[pair.nat_b], y)
    bottom = first + len(rows) * _CELL_HEIGHT
    if matrix.topologies:
        bottom = _draw_strip(svg, matrix, panel, columns, bottom)
    return bottom + _MARGIN


def _draw_strip(svg: Svg, matrix: Matrix, panel: _Panel, columns: Mapping[str, float], top: float) -> float:
    """Paint the networks that are more than a router for each host; where they end."""
    names = [name for name in TOPOLOGIES if any(cell.topology == name for cell in matrix.topologies)]
    first = top + _STRIP
    svg.text(_MARGIN + _LABELS, first - 8, "Other networks, with the column's kind of router:", fill=_GREY)
    for number, name in enumerate(names):
        y = first + (number + 0.5) * _CELL_HEIGHT + 4
        svg.text(_MARGIN + _LABELS - 10, y, name, **_ROW_LABEL)
    for cell in matrix.topologies:
        assert cell.topology is not None
        y = first + names.index(cell.topology) * _CELL_HEIGHT
        _draw_cell(svg, panel, cell, columns[cell.nat_a], y)
    return first + len(names) * _CELL_HEIGHT


def _draw_cell(svg: Svg, panel: _Panel, pair: PairResult, x: float, y: float) -> None:
    fill, ink, word = panel.cell(pair)
    missed = pair.below_expectation
    svg.rect(
        x + 1,
        y + 1,
        _CELL_WIDTH - 2,
        _CELL_HEIGHT - 2,
        title=describe(pair),
        rx=3,
        fill=fill,
        stroke=_RED if missed else None,
        stroke_width=2.5 if missed else None,
    )
    if word:
        # The cell under it has the words for a pointer.
        svg.text(
            x + _CELL_WIDTH / 2,
            y + _CELL_HEIGHT / 2 + 4,
            word,
            fill=ink,
            font_size=min(_FONT, _CELL_WIDTH / (_LETTER * len(word))),
            text_anchor="middle",
            pointer_events="none",
        )


def _draw_legend(svg: Svg, panel: _Panel, y: float, any_missed: bool) -> None:
    entries: list[tuple[str, str, str | None]] = [(fill, word, None) for fill, word in panel.legend]
    if any_missed:
        entries.append(("#ffffff", "less than can be expected", _RED))
    x = float(_MARGIN)
    for fill, word, stroke in entries:
        svg.rect(x, y, 18, 14, rx=3, fill=fill, stroke=stroke, stroke_width=2 if stroke else None)
        svg.text(x + 24, y + 12, word, fill=_GREY, font_size=12)
        x += 44 + 6.6 * len(word)


def describe(pair: PairResult) -> str:
    """One pair in a sentence."""
    text = f"{pair.cell}: {len(pair.connected)} of {len(pair.tries)}"
    if pair.technique is not None:
        text += f" by {pair.technique}"
    if pair.median_rtts is not None:
        text += f", median {pair.median_rtts:.2f} path RTT"
    if pair.topology is not None:
        text += f" ({TOPOLOGIES[pair.topology].about})"
    if pair.everything and pair.expected not in (None, Way.RELAYED):
        assert pair.expected is not None
        return f"{text}. A direct path is to be expected: {pair.expected.value}."
    if pair.expected is not None:
        return f"{text}. To be expected: {pair.expected.value}."
    return f"{text}. No direct path can be expected."


def _success(pair: PairResult) -> tuple[str, str, str]:
    word = f"{len(pair.connected)}/{len(pair.tries)}"
    if pair.share == 1:
        return "#2e9e5b", "#ffffff", word
    if pair.connected:
        return "#e8b93a", _INK, word
    return (_PALE, _GREY, word) if pair.expected is None else ("#f6d5d5", _RED, word)


def _technique(pair: PairResult) -> tuple[str, str, str]:
    if pair.technique is None:
        return _PALE, _GREY, ""
    word = pair.technique.removeprefix("tcp-").removeprefix("udp-").removeprefix("port-")
    return _TECHNIQUES.get(pair.technique, _OTHER_TECHNIQUE), "#ffffff", word


def _time(pair: PairResult) -> tuple[str, str, str]:
    if (rtts := pair.median_rtts) is None:
        return _PALE, _GREY, ""
    return _heat(rtts), _INK if rtts < _DARK_FROM else "#ffffff", f"{rtts:.1f}"


# Path round trips and the colours of them; between two, a mixture.
_SCALE = (
    (2.5, (0xD5, 0xEF, 0xDC)),
    (EXPECTED_MEDIAN, (0x9F, 0xD9, 0xB0)),
    (EXPECTED_P95, (0xF5, 0xD8, 0x7E)),
    (8.0, (0xE6, 0x8A, 0x4A)),
    (16.0, (0xA8, 0x32, 0x32)),
)
_DARK_FROM = 9.0


def _heat(rtts: float) -> str:
    low, high = _SCALE[0], _SCALE[-1]
    for below, above in itertools.pairwise(_SCALE):
        if below[0] <= rtts <= above[0]:
            low, high = below, above
            break
    else:
        low = high = _SCALE[0] if rtts < _SCALE[0][0] else _SCALE[-1]
    share = 0.0 if high[0] == low[0] else (rtts - low[0]) / (high[0] - low[0])
    mixed = (round(a + (b - a) * share) for a, b in zip(low[1], high[1], strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)
