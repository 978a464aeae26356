"""`ntcp connect --explain`: a report in words (pure)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ntcpsock._report import Budget
from ntcpsock.cli.timeline import short_outcome

_SIDES = (("local", "this side"), ("remote", "other side"))


def explanation(report: Mapping[str, Any]) -> str:
    """What was tried, what came of it, and why, as far as one side can know. report: `Report.to_dict()`."""
    return "\n".join(_lines(report))


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"connect to {report['target']}"
    for name, words in _SIDES:
        if profile := report["profiles"].get(name):
            yield f"  {words:<11} {_nat(profile)}"
            yield f"  {'':<11} own {_list(profile['own'])}; seen from outside as {_list(profile['seen'])}"
    yield "stages"
    for stage in report["stages"]:
        # A failed stage has the text of the whole error, which stands below.
        outcome = stage["outcome"] if stage["outcome"] in ("ok", "cancelled", "running") else "failed"
        yield f"  {_span(stage)}  {stage['name']}: {outcome}"
    if report["attempts"]:
        yield "attempts"
    for attempt in report["attempts"]:
        yield from _attempt(attempt)
    if report["cause"]:
        yield f"probable cause: {report['cause']}"
    if report["advice"]:
        yield f"what would help: {report['advice']}"


def _attempt(attempt: Mapping[str, Any]) -> Iterator[str]:
    yield f"  {_span(attempt)}  {attempt['technique']}: {_outcome(short_outcome(attempt))}"
    indent = " " * 22
    local, remote = _place(attempt["local"]), _place(attempt["remote"])
    if not attempt["tries"] and attempt["remote"] and attempt["remote"][1]:
        yield f"{indent}came in from {remote} to {local}"
    else:
        sent = _count(attempt["tries"], "check" if attempt["technique"].startswith("udp-") else "SYN")
        yield f"{indent}{sent} sent from {local} to {remote}"
    budget = attempt["budget"]
    if budget["sockets"] > 1:
        yield f"{indent}it may use {Budget(**budget)}"
    for name, text in attempt["notes"].items():
        yield f"{indent}{name}: {text}"


def _outcome(text: str) -> str:
    return "connected, and proved its key" if text == "ok" else text


def _count(number: int, word: str) -> str:
    return f"1 {word}" if number == 1 else f"{number or 'no'} {word}s"


def _nat(profile: Mapping[str, Any]) -> str:
    if profile["translated"] is False:
        return "no NAT: its own address is seen from outside"
    if profile["translated"] is None:
        return "no STUN server told anything of its NAT"
    known = [
        f"{profile[name]} {word}"
        for name, word in (("mapping", "mapping"), ("filtering", "filtering"))
        if profile[name] != "unknown"
    ]
    if profile["stray_syn"] != "unknown":
        known.append(f"{profile['stray_syn']} to a stray SYN")
    return "NAT with " + (", ".join(known) or "unknown behaviour")


def _list(endpoints: list[str]) -> str:
    return ", ".join(endpoints) or "nothing"


def _place(endpoint: list[Any] | None) -> str:
    if endpoint is None:
        return "?"
    host, port = endpoint
    shown = f"[{host}]" if ":" in host else host
    # A joint technique finds the ports on its way; a local 0.0.0.0 is whatever address the route has.
    if not port:
        return f"{shown}, ports as foreseen"
    return f"port {port}" if host == "0.0.0.0" else f"{shown}:{port}"


def _span(entry: Mapping[str, Any]) -> str:
    ended = "     ..." if entry["ended"] is None else f"{entry['ended'] * 1000:8.1f}"
    return f"{entry['started'] * 1000:8.1f} {ended}"
