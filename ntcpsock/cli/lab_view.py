"""How `ntcp lab pair` shows its tries to people."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ntcpsock._address import Endpoint
from ntcpsock.cli.timeline import timeline

if TYPE_CHECKING:
    from ntcpsock.testing.natlab import Lab, Router


def show_pair(lab: Lab, events: Sequence[dict[str, Any]], console: Console | None = None) -> None:
    """The way, then one try as a timeline, or many as a table with the slowest one's timeline."""
    console = console or Console()
    sides = [
        _side(*side) for side in zip((lab.nat_a, lab.nat_b), (lab.cgn_a, lab.cgn_b), lab.ipv6, strict=True)
    ]
    console.print(picture(sides[0], sides[1], lab.delay))
    if not events:
        console.print("[red]nothing was tried[/]")
        return
    if len(events) > 1:
        console.print(_summary(lab, events))
        console.print()
    shown = max(events, key=lambda event: (event["event"] == "error", event.get("seconds") or 0.0))
    console.print(_headline(lab, shown, slowest=len(events) > 1))
    if shown.get("report"):
        console.print()
        console.print(timeline(shown["report"]))
    if shown.get("advice") and shown["advice"] not in shown["message"]:
        console.print(f"\nadvice: {shown['advice']}")


def picture(nat_a: str, nat_b: str, delay: float) -> Text:
    """One line: host A, its router, the public segment, the other router, host B."""
    line = Text()
    for words, style in (
        ("host A", "bold"),
        (" ── ", "dim"),
        (f"NAT {nat_a}", "cyan"),
        (f" ══ {delay * 1000:g} ms ══ ", "dim"),
        ("ntcp serve", "bold"),
        (f" ══ {delay * 1000:g} ms ══ ", "dim"),
        (f"NAT {nat_b}", "cyan"),
        (" ── ", "dim"),
        ("host B\n", "bold"),
    ):
        line.append(words, style)
    return line


def _side(nat: Router, cgn: Router | None, ipv6: str) -> str:
    words = str(nat.kind) if cgn is None else f"{nat.kind} behind {cgn.kind}"
    return words if ipv6 == "none" else f"{words}, IPv6 {ipv6}"


def _headline(lab: Lab, event: dict[str, Any], *, slowest: bool) -> Text:
    line = Text("slowest: " if slowest else "")
    seconds = float(event.get("seconds") or 0.0)
    if event["event"] != "connected":
        return line.append(f"failed after {seconds * 1000:.0f} ms: {event['message']}", "red")
    line.append("connected", "bold green")
    line.append(
        f" in {seconds * 1000:.0f} ms{_in_rtts(lab, seconds)}: {event['kind']} path by {event['technique']}, "
    )
    line.append(f"{_place(event['local'])} → {_place(event['remote'])}", "cyan")
    if event.get("round_trip") is not None:
        line.append(f", echo in {event['round_trip'] * 1000:.0f} ms")
    return line


def _in_rtts(lab: Lab, seconds: float) -> str:
    return f" ({seconds / lab.path_rtt:.2f} path RTT)" if lab.path_rtt else ""


def _summary(lab: Lab, events: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("tries", "connected", "median", "fastest", "slowest", "paths"):
        table.add_column(heading, justify="right" if heading != "paths" else "left")
    seconds = [float(event["seconds"]) for event in events if event["event"] == "connected"]
    ways = sorted({f"{e['kind']} by {e['technique']}" for e in events if e["event"] == "connected"})
    spread = [_time(lab, pick(seconds)) for pick in (statistics.median, min, max)] if seconds else ["-"] * 3
    table.add_row(str(len(events)), str(len(seconds)), *spread, ", ".join(ways))
    return table


def _time(lab: Lab, seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" + (f" ({seconds / lab.path_rtt:.2f} RTT)" if lab.path_rtt else "")


def _place(endpoint: Sequence[Any]) -> str:
    return str(Endpoint(*endpoint))
