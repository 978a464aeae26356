"""A report as a picture: each stage and each attempt as a bar on one time axis."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

NARROWEST, WIDEST = 16, 64  # characters of the time axis

_EIGHTHS = " ▏▎▍▌▋▊▉"


def timeline(report: Mapping[str, Any], *, title: str | None = None) -> Table:
    """`report` is `Report.to_dict()`, or what JSON made of it."""
    end = _last_moment(report)
    table = Table(
        title=title, title_style="bold", title_justify="left", box=None, pad_edge=False, padding=(0, 1)
    )
    table.add_column("", no_wrap=True, max_width=36)
    table.add_column("ms", justify="right", no_wrap=True, style="dim")
    table.add_column(_OnAxis("axis", end), min_width=NARROWEST)
    table.add_column("", overflow="fold", max_width=40)
    for stage in report["stages"]:
        outcome = str(stage["outcome"])
        # A stage fails with the text of the whole error, which stands elsewhere already.
        _add_row(table, Text(str(stage["name"])), stage, outcome if len(outcome) < 40 else "failed", end)
    for attempt in report["attempts"]:
        _add_row(table, _attempt_label(attempt), attempt, short_outcome(attempt), end)
    return table


def short_outcome(attempt: Mapping[str, Any]) -> str:
    """How an attempt ended, without its technique and endpoint, which its label says, and without a number."""
    outcome = str(attempt["outcome"]).removeprefix(f"{_place(attempt)}: ")
    return re.sub(r"^\[Errno \d+\] ", "", outcome)


@dataclass(frozen=True, slots=True)
class _OnAxis:
    """The axis itself, or a bar on it: as wide as the column comes out."""

    style: str
    total: float
    span: tuple[float, float] | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, WIDEST)
        if self.span is None:
            yield Text(axis(self.total, width), style="dim", no_wrap=True)
        else:
            yield Text(bar(*self.span, self.total, width), style=self.style, no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(NARROWEST, WIDEST).with_maximum(options.max_width)


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
    step = next((s for s in _STEPS if _marks_fit(s, milliseconds, width)), _STEPS[-1])
    line = [" "] * width
    taken = -1
    for number in range(int(milliseconds / step) + 1):
        position = round(number * step / milliseconds * width)
        label = f"{number * step:g}"
        if taken < position and position + len(label) <= width:
            line[position : position + len(label)] = label
            taken = position + len(label)
    return "".join(line).rstrip()


def _marks_fit(step: float, total: float, width: int) -> bool:
    widest = len(f"{int(total / step) * step:g}")
    return step / total * width >= widest + 4


_STEPS = [scale * factor for scale in (0.01, 0.1, 1, 10, 100, 1000, 10_000, 100_000) for factor in (1, 2, 5)]


def _last_moment(report: Mapping[str, Any]) -> float:
    entries = [*report["stages"], *report["attempts"]]
    moments = [entry["ended"] if entry["ended"] is not None else entry["started"] for entry in entries]
    return float(max([report.get("seconds") or 0.0, *moments]))


def _add_row(table: Table, label: Text, entry: Mapping[str, Any], outcome: str, total: float) -> None:
    ended = entry["ended"] if entry["ended"] is not None else total
    style = _outcome_style(outcome)
    drawn = _OnAxis(style, total, (entry["started"], ended))
    table.add_row(label, f"{(ended - entry['started']) * 1000:.1f}", drawn, Text(outcome, style=style))


def _attempt_label(attempt: Mapping[str, Any]) -> Text:
    technique, _, endpoint = _place(attempt).partition(" ")
    label = Text("  ").append(technique, style="bold").append(f" {endpoint}", style="dim")
    if attempt.get("tries", 0) > 1:
        label.append(f" x{attempt['tries']}", style="dim")
    return label


def _place(attempt: Mapping[str, Any]) -> str:
    if not attempt["remote"]:
        return str(attempt["technique"])
    host, port = attempt["remote"]
    shown = f"[{host}]" if ":" in host else host
    return f"{attempt['technique']} {shown}:{port}"


def _outcome_style(outcome: str) -> str:
    if outcome in ("ok", "connected"):
        return "green"
    # Neither good nor bad: another attempt was first, or it was still under way.
    if outcome in ("running", "cancelled") or outcome.startswith("authenticated"):
        return "bright_black"
    return "red"
