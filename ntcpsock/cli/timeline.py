"""A report as a picture: each stage and each attempt as a bar on one time axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

BAR_WIDTH = 44

_EIGHTHS = " ▏▎▍▌▋▊▉"


def timeline(report: Mapping[str, Any], *, title: str | None = None, width: int = BAR_WIDTH) -> Table:
    """`report` is `Report.to_dict()`, or what JSON made of it. `width`: characters of the longest bar."""
    end = _last_moment(report)
    table = Table(
        title=title, title_style="bold", title_justify="left", box=None, pad_edge=False, padding=(0, 1)
    )
    table.add_column("", no_wrap=True)
    table.add_column("ms", justify="right", no_wrap=True, style="dim")
    table.add_column(axis(end, width), no_wrap=True, width=width + 1)
    table.add_column("")
    for stage in report["stages"]:
        _add_row(table, Text(str(stage["name"])), stage, end, width, "blue")
    for attempt in report["attempts"]:
        _add_row(table, _attempt_label(attempt), attempt, end, width, "cyan")
    return table


def bar(started: float, ended: float, total: float, width: int) -> str:
    """A bar from `started` to `ended` on an axis of `total` seconds, exact to an eighth of a character.

    Something that happened is never invisible: the shortest bar is one eighth.
    """
    scale = width * 8 / total if total > 0 else 0.0
    first = min(round(started * scale), width * 8 - 1)
    last = max(min(round(ended * scale), width * 8), first + 1)
    cells = []
    for cell in range(width):
        left, right = max(first - cell * 8, 0), min(last - cell * 8, 8)
        if right <= 0 or left >= 8:
            cells.append(" ")
        elif left == 0:
            cells.append("█" if right == 8 else _EIGHTHS[right])
        else:
            # There are no right-aligned eighths; half a block is the nearest that every font has.
            cells.append("▐" if right == 8 else _EIGHTHS[max(right - left, 1)])
    return "".join(cells).rstrip()


def axis(total: float, width: int) -> str:
    """`0        100        200 ms`, in steps that a person would choose."""
    milliseconds = total * 1000
    if milliseconds <= 0:
        return "0 ms"
    step = next((s for s in _STEPS if milliseconds / s <= 5), _STEPS[-1])
    line = [" "] * (width + 12)
    mark = 0.0
    while mark <= milliseconds:
        position = round(mark / milliseconds * width)
        label = f"{mark:g}"
        if position + len(label) <= width:
            line[position : position + len(label)] = label
        mark += step
    return "".join(line[:width]).rstrip()


_STEPS = [scale * factor for scale in (0.01, 0.1, 1, 10, 100, 1000, 10_000) for factor in (1, 2, 5)]


def _last_moment(report: Mapping[str, Any]) -> float:
    entries = [*report["stages"], *report["attempts"]]
    moments = [entry["ended"] if entry["ended"] is not None else entry["started"] for entry in entries]
    return float(max([report.get("seconds") or 0.0, *moments]))


def _add_row(
    table: Table, label: Text, entry: Mapping[str, Any], total: float, width: int, colour: str
) -> None:
    ended = entry["ended"] if entry["ended"] is not None else total
    outcome = str(entry["outcome"])
    style = _outcome_style(outcome, colour)
    drawn = Text(bar(entry["started"], ended, total, width), style=style)
    table.add_row(label, f"{(ended - entry['started']) * 1000:.1f}", drawn, Text(outcome, style=style))


def _attempt_label(attempt: Mapping[str, Any]) -> Text:
    label = Text("  ")
    label.append(str(attempt["technique"]), style="bold")
    if attempt["remote"]:
        host, port = attempt["remote"]
        label.append(f" {_host(host)}:{port}", style="dim")
    if attempt.get("tries", 0) > 1:
        label.append(f" x{attempt['tries']}", style="dim")
    return label


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _outcome_style(outcome: str, colour: str) -> str:
    word = outcome.split(":")[0].strip().lower()
    if word in ("ok", "won", "selected", "nominated"):
        return "green"
    if word in ("running", "cancelled", "lost", "not needed", "superseded"):
        return "bright_black"
    return "red" if word else colour
