"""`ntcp connect --draw`: what one host knows of a connect, as bars on a time axis (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ntcpsock.cli.svg import Svg
from ntcpsock.cli.timeline import short_outcome

_WIDTH, _LABELS, _MARGIN = 1000, 300, 28
_AXIS = _WIDTH - _LABELS - 2 * _MARGIN - 60
_TOP, _ROW, _NOTE = 104, 30, 17
_MOST_ROWS = 60

_INK, _GREY, _RULE = "#1c2733", "#66717d", "#dfe4ea"
_GREEN, _RED, _IDLE, _STAGE = "#2e9e5b", "#c62828", "#9aa4af", "#2f6db3"


def report_diagram(report: Mapping[str, Any]) -> str:
    """The text of an SVG file. report: `Report.to_dict()`."""
    entries = [*report["stages"], *report["attempts"]]
    moments = [entry["ended"] if entry["ended"] is not None else entry["started"] for entry in entries]
    total = max([report["seconds"] or 0.0, *moments]) or 0.001
    connected = report["seconds"] is not None
    svg = Svg(f"connect to {report['target']}")
    svg.text(_MARGIN, 36, f"connect to {report['target']}", font_size=18, font_weight="bold", fill=_INK)
    outcome = (
        f"connected after {report['seconds'] * 1000:.0f} ms" if connected else report["cause"] or "failed"
    )
    svg.text(_MARGIN, 60, outcome, fill=_GREEN if connected else _RED)
    rows = entries[:_MOST_ROWS]
    _draw_axis(svg, total, _TOP + sum(_row_height(entry) for entry in rows))
    y = float(_TOP)
    for entry in rows:
        _draw_row(svg, entry, y, total)
        y += _row_height(entry)
    if len(entries) > _MOST_ROWS:
        svg.text(_MARGIN, y + 14, f"and {len(entries) - _MOST_ROWS} more attempts", fill=_GREY)
        y += _ROW
    y += 10
    for name, words in (("local", "this side"), ("remote", "other side")):
        if profile := report["profiles"].get(name):
            y += 20
            seen = ", ".join(profile["seen"] or profile["own"])
            svg.text(_MARGIN, y, f"{words}: {seen}, mapping {profile['mapping']}", fill=_GREY, font_size=12)
    if report["advice"]:
        y += 22
        svg.text(_MARGIN, y, report["advice"], fill=_INK)
    return svg.render(_WIDTH, y + 28)


def _draw_axis(svg: Svg, total: float, bottom: float) -> None:
    milliseconds = total * 1000
    step = next(
        s for s in (0.1, 0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 5000, 10**9) if milliseconds / s <= 10
    )
    for number in range(int(milliseconds / step) + 1):
        x = _x(number * step / 1000, total)
        svg.line(x, _TOP - 8, x, bottom, stroke=_RULE)
        svg.text(x, _TOP - 14, f"{number * step:g}", text_anchor="middle", fill=_GREY, font_size=11.5)
    svg.text(_WIDTH - _MARGIN, _TOP - 14, "ms", text_anchor="end", fill=_GREY, font_size=11.5)


def _draw_row(svg: Svg, entry: Mapping[str, Any], y: float, total: float) -> None:
    """One stage or attempt."""
    started, ended = entry["started"], entry["ended"] if entry["ended"] is not None else total
    outcome = str(entry["outcome"])
    if "technique" in entry:
        label, colour, indent = f"{entry['technique']} → {_place(entry)}", _colour(outcome), 12
    else:
        label, colour, indent = str(entry["name"]), _STAGE if outcome == "ok" else _RED, 0
    svg.text(_MARGIN + indent, y + 14, label, fill=_INK, font_size=12.5)
    x = _x(started, total)
    svg.rect(x, y + 3, max(_x(ended, total) - x, 2.0), 14, rx=3, fill=colour, title=f"{label}: {outcome}")
    # To the right of where it began, or, near the end of the axis, to the left.
    late = x > _MARGIN + _LABELS + _AXIS * 0.5
    at, anchor = (_MARGIN + _LABELS + _AXIS, "end") if late else (x, "start")
    for number, note in enumerate(_notes(entry)):
        below = y + 31 + number * _NOTE
        svg.text(at, below, note, fill=_GREY, font_size=11.5, text_anchor=anchor)


def _row_height(entry: Mapping[str, Any]) -> float:
    return _ROW + len(_notes(entry)) * _NOTE


def _notes(entry: Mapping[str, Any]) -> list[str]:
    """What stands below a bar."""
    if "technique" not in entry:
        return [] if entry["outcome"] == "ok" else ["failed"]
    syns = f", {entry['tries']} SYNs" if entry["tries"] > 1 else ""
    return [short_outcome(entry) + syns, *(f"{name}: {text}" for name, text in entry["notes"].items())]


def _x(moment: float, total: float) -> float:
    return _MARGIN + _LABELS + moment / total * _AXIS


def _colour(outcome: str) -> str:
    if outcome in ("ok", "connected"):
        return _GREEN
    return _IDLE if outcome in ("cancelled", "running") or outcome.startswith("authenticated") else _RED


def _place(attempt: Mapping[str, Any]) -> str:
    if not attempt["remote"]:
        return "?"
    host, port = attempt["remote"]
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{port}" if port else shown
