"""What `ntcp admin` shows to people: tables, and one line for what was done."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any


def _table(title: str, *columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in _NUMBERS else "left")
    return table


_NUMBERS = frozenset({"left", "ports", "load", "value"})


def _print(what: Any) -> None:
    from rich.console import Console

    # A name of a stranger's shall not be markup. A node id has 52 characters, and a pipe no width.
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 160
    console.print(what)


def _more(result: dict[str, Any], shown: int, what: str) -> None:
    if result["more"]:
        _print(f"{shown} shown; there are more, {result['total']} {what} in all: use --match, or --limit")


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "for ever"
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _value(value: Any) -> str:
    if value is None:
        return "no more"
    return f"{value:,}" if isinstance(value, int) else str(value)


def status(result: dict[str, Any]) -> None:
    for part, numbers in result.items():
        if isinstance(numbers, dict):
            table = _table(part, "what", "value")
            for name, value in numbers.items():
                table.add_row(name.replace("_", " "), _value(value))
            _print(table)
    if result.get("relays"):
        table = _table("relays that nodes are told", "place", "load")
        for relay in result["relays"]:
            place = "this one" if relay["place"].endswith(":0") else relay["place"]
            table.add_row(place, f"{relay['load']} %")
        _print(table)
    _print(f"{result['program']}, process {result['pid']}")


def nodes(result: dict[str, Any]) -> None:
    table = _table("", "names", "node", "at", "by", "ports", "left")
    for node in result["nodes"]:
        table.add_row(
            ", ".join(node["names"]) or "-",
            node["node_id"],
            f"{node['host']} {node['port']}" + (" hidden" if node["hidden"] else ""),
            node["transport"],
            ", ".join(map(str, node["ports"])) or ("-" if node["registered"] else "not registered"),
            _time(node["seconds_left"]),
        )
    _print(table)
    _print(f"{_count(result['total'], 'node')} connected")
    _more(result, len(result["nodes"]), "nodes")


def show(result: dict[str, Any]) -> None:
    _print(f"node   {result['node_id']}")
    _print(f"names  {', '.join(result['names']) or '-'}")
    if result["banned"]:
        _print("banned: see `ntcp admin bans`")
    if not result["instances"]:
        _print("not connected")
    for instance in result["instances"]:
        table = _table(f"instance {instance['instance']}", "what", "is")
        for name, value in instance.items():
            if name not in ("node_id", "names", "instance"):
                words = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
                table.add_row(name.replace("_", " "), words or "-")
        _print(table)


def _ended(result: dict[str, Any]) -> str:
    ended = [_count(result["sessions"], "session")]
    if result.get("relayed_connections"):
        ended.append(_count(result["relayed_connections"], "relayed connection"))
    return " and ".join(ended) + " ended"


def drop(result: dict[str, Any]) -> None:
    _print(_ended(result))


def bans(result: dict[str, Any]) -> None:
    if not result["bans"]:
        _print("nobody is banned")
        return
    table = _table("", "who", "left", "why")
    for entry in result["bans"]:
        why = entry["why"] or ("in the settings" if entry["in_settings"] else "-")
        table.add_row(entry["who"], _time(entry["seconds_left"]), why)
    _print(table)


def ban(result: dict[str, Any]) -> None:
    entry = result["ban"]
    _print(f"{entry['who']} is banned, {_time(entry['seconds_left'])}; {_ended(result)}")
    _warn(result)


def unban(result: dict[str, Any]) -> None:
    _print(f"{result['ban']['who']} is banned no more")
    _warn(result)


def _warn(result: dict[str, Any]) -> None:
    if "warning" in result:
        _print(f"but: {result['warning']}")


def names(result: dict[str, Any]) -> None:
    table = _table("", "name", "node", "since")
    for entry in result["names"]:
        since = datetime.fromtimestamp(entry["since"], UTC).strftime("%Y-%m-%d %H:%M")
        table.add_row(entry["name"], entry["node_id"], since)
    _print(table)
    _print(f"{_count(result['total'], 'name')} in all")
    _more(result, len(result["names"]), "names")


def give(result: dict[str, Any]) -> None:
    before = result["before"]
    whose = "" if before in (None, result["node_id"]) else f"; it was {before}'s"
    _print(f"{result['name']} is {result['node_id']}'s now{whose}")


def free(result: dict[str, Any]) -> None:
    _print(f"{result['name']} is free; it was {result['before']}'s")


def drain(result: dict[str, Any]) -> None:
    _print("the server takes no new work, and ends when its relayed connections have ended")
