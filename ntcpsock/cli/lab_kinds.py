"""`ntcp lab list`: the kinds of routers."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

_LINUX = {
    "default": "real Linux masquerade, ports kept, silent",
    "random": "real Linux masquerade, random ports: symmetric",
    "fully-random": "the same from a better source of randomness",
    "firewall": "no translation, a stateful firewall",
    "none": "no translation and no filter: a public host",
}
_ANSWERS = "also with -reject (answers strays with RST) or -accept (its kernel answers, and remembers)"


def kinds() -> list[dict[str, Any]]:
    """Each kind: its name, who translates, whom it stands for, and its words where it is exact."""
    from ntcpsock.testing.natlab import PRESETS

    rows: list[dict[str, Any]] = [
        {"kind": name, "engine": "linux", "about": about, "words": None} for name, about in _LINUX.items()
    ]
    rows += [
        {"kind": name, "engine": "userspace", "about": preset.about, "words": preset.words}
        for name, preset in PRESETS.items()
    ]
    return rows


def show_kinds(*, as_json: bool, console: Console | None = None) -> None:
    """Print all kinds, as JSON lines or for people."""
    if as_json:
        for row in kinds():
            print(json.dumps(row))
        return
    from ntcpsock.testing.natlab.router.words import WORDS

    console = console or Console()
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("kind", style="bold", no_wrap=True)
    table.add_column("what it is")
    for row in kinds():
        table.add_row(row["kind"], row["about"])
        if row["words"]:
            table.add_row("", f"[dim]{row['words'].replace('+', ' ')}[/]")
    console.print(table)
    console.print(f"\nThe first {len(_LINUX)} are real Linux routers, {_ANSWERS}.")
    console.print("The others are exact; + and words change them (cgn+tcp:rst), and words alone make a kind:")
    console.print(WORDS, style="dim", highlight=False)
