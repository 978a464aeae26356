"""What all benchmarks share: alternating rounds, medians, a JSON file and a table."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Series:
    """The values of one case, in the order in which they were measured."""

    name: str
    unit: str
    values: tuple[float, ...]
    failures: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def alternate(cases: Mapping[str, Callable[[], float]], rounds: int, unit: str) -> list[Series]:
    """Measure the cases in turn, `rounds` times over.

    In turn, because a machine's speed drifts within minutes: what is compared is measured side by side.
    The first round warms everything up and does not count.
    """
    values: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, measure in cases.items():
            value = measure()
            if number:
                values[name].append(value)
    return [Series(name, unit, tuple(found)) for name, found in values.items()]


def show(title: str, series: Sequence[Series], *, relative_to: str | None = None) -> None:
    """A table of medians and extremes on stdout; `relative_to` names the series that counts as 1."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("")
    for heading in ("median", "min", "max"):
        table.add_column(heading, justify="right")
    table.add_column("", style="dim")
    table.add_column(f"of {relative_to}" if relative_to else "", justify="right")
    table.add_column("n", justify="right", style="dim")
    base = next((entry for entry in series if entry.name == relative_to and entry.values), None)
    for entry in series:
        numbers = (entry.median, min(entry.values), max(entry.values)) if entry.values else ()
        texts = [f"{number:.4g}" for number in numbers] or ["-"] * 3
        ratio = f"{_ratio(entry, base):.2f}" if base is not None and entry.values else ""
        failed = f"{entry.failures} failed" if entry.failures else ""
        count = ", ".join(filter(None, [str(len(entry.values)), failed]))
        table.add_row(entry.name, *texts, entry.unit, ratio, count)
    Console().print(table)


def _ratio(entry: Series, base: Series) -> float:
    """The median of the rounds' ratios: each compares what was measured side by side."""
    if len(entry.values) != len(base.values):
        return entry.median / base.median
    return statistics.median(value / other for value, other in zip(entry.values, base.values, strict=True))


def save(name: str, series: Sequence[Series]) -> Path:
    """Write `results/NAME-TIME.json`."""
    RESULTS.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    path = RESULTS / f"{name}-{now:%Y%m%dT%H%M%S}.json"
    document = {
        "benchmark": name,
        "time": now.isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "series": [{**asdict(entry), "median": entry.median if entry.values else None} for entry in series],
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path
