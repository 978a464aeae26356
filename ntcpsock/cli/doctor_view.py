"""How `ntcp doctor` shows what it found to people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ntcpsock._config import Config
from ntcpsock._diagnosis import (
    Allocation,
    BrokerState,
    Diagnosis,
    Finding,
    Lifetime,
    Prospect,
    Survival,
    TransportFindings,
    Verdict,
)
from ntcpsock._lifetimes import keep_alive_interval
from ntcpsock.trio import diagnose

_MAPPING = {
    "endpoint-independent": "one public port for all peers",
    "address-dependent": "another port for each peer's address",
    "address-and-port-dependent": "another port for each peer",
    "session-dependent": "another port for each connection",
}
_FILTERING = {
    "endpoint-independent": "everybody gets in",
    "address-dependent": "hosts that were sent to get in",
    "address-and-port-dependent": "only answers get in",
}
_STRAY = {"drop": "dropped in silence", "reset": "answered with a RST", "icmp": "answered with ICMP"}
_STYLES = {"yes": "green", "no": "red", "perhaps": "yellow", "unknown": "yellow"}
_MARKS = {"yes": "✓", "no": "✗", "perhaps": "~", "unknown": "?"}


async def diagnose_and_show(config: Config, *, lifetime: bool, console: Console | None = None) -> Diagnosis:
    """Diagnose, and print what was found as soon as it is known."""
    console = console or Console()

    def found(early: Diagnosis) -> None:
        show_diagnosis(early, console)
        console.print(Text("\nHow long is an idle UDP mapping kept?", style="bold cyan"))

    def progress(seconds: float, alive: bool) -> None:
        console.print(f"{seconds:g} s: {'alive' if alive else 'gone'}", highlight=False)

    if not lifetime:
        diagnosis = await diagnose(config)
        show_diagnosis(diagnosis, console)
        return diagnosis
    diagnosis = await diagnose(config, lifetime=True, found=found, progress=progress)
    lifetime_found = diagnosis.discovery.udp.lifetime
    console.print(_lifetime_text(lifetime_found))
    return diagnosis


def show_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """The whole page."""
    discovery = diagnosis.discovery
    console.print(Text(diagnosis.summary, style="bold"))
    console.print()
    console.print(_nat_table(discovery.udp, discovery.tcp))
    console.print()
    console.print(_around_table(diagnosis))
    console.print()
    console.print(_prospect_table(diagnosis.prospects))
    console.print()
    console.print(_survival_table(diagnosis.survivals))
    _print_list(console, "What would help", [Text(line) for line in diagnosis.advice])
    unknown = [Text.assemble((f"{what}: ", "bold"), why) for what, why in diagnosis.unknown]
    _print_list(console, "What could not be found out", unknown)
    took = f"\n{discovery.seconds:.1f} s, servers {', '.join(map(str, discovery.servers))}"
    console.print(Text(took + (" (guessed)" if diagnosis.servers_guessed else ""), style="dim"))


def _lifetime_text(found: Lifetime) -> Text:
    if found.longest_alive is None:
        return Text(found.why, style="yellow")
    every = keep_alive_interval(found.longest_alive)
    return Text(f"{found.value}: nodes on this network send a keep-alive every {every:.0f} s from now on.")


def _nat_table(udp: TransportFindings, tcp: TransportFindings) -> Table:
    table = _table("this network", "UDP", "TCP")
    rows: list[tuple[str, Text, Text]] = [
        ("reaches servers", _word(udp.reachable), _word(tcp.reachable)),
        ("address here", Text(udp.local or "-"), Text(tcp.local or "-")),
        ("address outside", _hosts(udp), _hosts(tcp)),
        ("mapping", _word(udp.mapping, _MAPPING), _word(tcp.mapping, _MAPPING)),
        ("ports", _ports(udp.allocation), _ports(tcp.allocation)),
        ("filtering", _word(udp.filtering, _FILTERING), _word(tcp.filtering, _FILTERING)),
        ("a stranger's SYN", Text("-"), _word(tcp.stray, _STRAY)),
        ("hairpin", _word(udp.hairpin), _word(tcp.hairpin)),
        ("large datagrams", _word(udp.fragments, {"yes": "pass", "no": "are lost"}), Text("-")),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def _around_table(diagnosis: Diagnosis) -> Table:
    discovery = diagnosis.discovery
    table = _table("around it", "")
    table.add_row("broker", _broker(diagnosis.broker))
    table.add_row("a second NAT", _with_reason(discovery.double_nat))
    if discovery.tcp.translated.truth is not False:
        table.add_row("port mapping", _with_reason(discovery.port_mapping))
    table.add_row("IPv6", _with_reason(discovery.ipv6))
    if discovery.ipv6.truth:
        table.add_row("  filtering", _word(discovery.ipv6_filtering, _FILTERING))
    table.add_row("captive portal", _with_reason(discovery.captive_portal))
    if discovery.https.value != "unknown":
        table.add_row(
            "TCP to port 443", _word(discovery.https, {"yes": "gets out", "no": "no answer either"})
        )
    return table


def _prospect_table(rows: Sequence[Prospect]) -> Table:
    table = _table("connections to", "", "how")
    for row in rows:
        how = row.technique
        if row.connections > 1:
            how += f", up to {row.connections} connections at once"
        if row.why:
            how += f"{': ' if how else ''}{row.why}"
        table.add_row(row.peer, _mark(row.verdict), how)
    return table


def _survival_table(rows: Sequence[Survival]) -> Table:
    table = _table("open connections survive", "", "")
    for row in rows:
        table.add_row(row.event, _mark(row.verdict), row.why)
    return table


def _mark(verdict: Verdict) -> Text:
    return Text(f"{_MARKS[verdict]} {verdict}", style=_STYLES[verdict])


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold cyan")
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading)
    return table


def _word(finding: Finding, words: dict[str, str] | None = None) -> Text:
    if not finding.is_known:
        return Text("?", style="yellow")
    if finding.value == "none":
        return Text("-")
    style = _STYLES.get(finding.value, "") if words is None else ""
    return Text((words or {}).get(finding.value, finding.value), style=style)


def _with_reason(finding: Finding) -> Text:
    word = {"unknown": "?"}.get(finding.value, finding.value)
    return Text(f"{word}{f', {finding.why}' if finding.why else ''}")


def _hosts(found: TransportFindings) -> Text:
    if found.translated.truth is False:
        return Text("the same")
    return Text(", ".join(found.public) or "-")


def _ports(allocation: Allocation) -> Text:
    words = {
        "preserving": "the local one where it is free",
        "offset": f"the local one {allocation.offset or 0:+d}",
        "sequential": f"in steps of {allocation.step}",
        "band": f"random from about {allocation.low} to {allocation.high}",
        "random": "random",
    }
    return _word(allocation, words)


def _broker(state: BrokerState) -> Text:
    if state.address is None:
        return Text("none given: only the STUN servers were asked")
    if not state.reached:
        return Text(state.why, style="red")
    rtt = f", {state.rtt * 1000:.0f} ms" if state.rtt is not None else ""
    is_tls = state.address.startswith("wss://")
    how = " over TCP, where UDP does not get through" if state.transport == "tcp" and not is_tls else ""
    return Text(f"{state.address} answers{how}{rtt}")


def _print_list(console: Console, heading: str, lines: Sequence[Text]) -> None:
    if not lines:
        return
    console.print(Text(f"\n{heading}", style="bold cyan"))
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for line in lines:
        table.add_row("•", line)
    console.print(table)
