"""Who gets in from outside (RFC 4787 section 5), and what the others are answered (RFC 5382 section 4.3). Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ntcpsock._address import Endpoint
from ntcpsock._diagnosis import Finding
from ntcpsock._traversal.discovery.evidence import Outcome, Question
from ntcpsock._traversal.discovery.finding import known, undecided
from ntcpsock._traversal.stun.connect_back import ConnectBackOutcome

EIF, ADF, APDF = "endpoint-independent", "address-dependent", "address-and-port-dependent"
_ALL = (EIF, ADF, APDF)

_STRAY = {
    ConnectBackOutcome.RESET: "reset",
    ConnectBackOutcome.TIMED_OUT: "drop",
    ConnectBackOutcome.ICMP: "icmp",
}
_CONTRADICTION = "the server says that it got through, and nothing arrived here"


def conclude_udp(own: Sequence[Outcome]) -> Finding:
    """RFC 5780 section 4.4. Silence counts only where the server is known to have the other endpoint."""
    by_address = _first("filtering-address", own)
    by_port = _first("filtering-port", own)
    evidence = [item for item in (by_address, by_port) if item is not None]
    answering = {
        item.probe.server
        for item in own
        if item.mapped is not None and item.probe.question in ("mapping", "reach")
    }
    address: bool | None = None
    if by_address is not None:
        server = by_address.probe.server
        if by_address.source is not None and by_address.answer == "answered":
            address = True if by_address.source.host != server.host else None
        elif by_address.answer == "silence" and any(one.host != server.host for one in answering):
            address = False
    port: bool | None = None
    if by_port is not None:
        server = by_port.probe.server
        if by_port.source is not None and by_port.answer == "answered":
            changed = by_port.source.host == server.host and by_port.source.port != server.port
            port = True if changed else None
        elif by_port.answer == "silence" and (
            address is not None or _has_second_port(server.host, answering)
        ):
            port = False
    return _combine(address, port, _why_udp(by_address, by_port), evidence)


def conclude_tcp(own: Sequence[Outcome]) -> Finding:
    """The same by connections from the server. A success counts only with what arrived here."""
    by_address = _first("filtering-address", own)
    by_port = _first("filtering-port", own)
    evidence = [item for item in (by_address, by_port) if item is not None]
    if any(_contradicts(item) for item in evidence):
        return undecided(_CONTRADICTION, _ALL, evidence)
    texts = dict.fromkeys(item.text for item in evidence if item.text)
    why = ": ".join(["the server did not connect back", *texts])
    return _combine(_admitted(by_address), _admitted(by_port), why, evidence)


def conclude_stray(own: Sequence[Outcome], filtering: Finding) -> Finding:
    """What a SYN gets that is not let in: seen where the server's connection was refused."""
    evidence = [item for item in own if item.connect_back is not None]
    answers = {_STRAY[found] for item in evidence if (found := _outcome_of(item.connect_back)) in _STRAY}
    if len(answers) == 1 and not any(_contradicts(item) for item in evidence):
        return known(answers.pop(), evidence)
    if len(answers) > 1:
        return undecided(f"once {' and once '.join(sorted(answers))}", sorted(answers), evidence)
    if filtering.value == EIF:
        return Finding("none", why="everything is let in, so nothing is a stray")
    return undecided(
        "the server did not connect back" if not evidence else "the server could not try", evidence=evidence
    )


def _combine(address: bool | None, port: bool | None, why: str, evidence: Sequence[Outcome]) -> Finding:
    """address, port: whether another address, another port of the same address, got in; None: not known."""
    if address:
        return known(EIF, evidence)
    if port is False:
        return known(APDF, evidence)
    if address is False and port:
        return known(ADF, evidence)
    if port:
        why = "the server has one address: it cannot tell endpoint-independent from address-dependent"
        return undecided(why, (EIF, ADF), evidence)
    if address is False:
        return undecided(why, (ADF, APDF), evidence)
    return undecided(why, _ALL, evidence)


def _why_udp(by_address: Outcome | None, by_port: Outcome | None) -> str:
    if by_address is None and (by_port is None or by_port.answer != "answered"):
        return "the server has one address and one port"
    texts = [item.text for item in (by_address, by_port) if item is not None and item.text]
    return (
        "; ".join(dict.fromkeys(texts))
        or "the server does not answer from elsewhere, or its other address is silent"
    )


def _has_second_port(host: str, answering: set[Endpoint]) -> bool:
    return sum(one.host == host for one in answering) > 1


def _admitted(outcome: Outcome | None) -> bool | None:
    if outcome is None:
        return None
    found = _outcome_of(outcome.connect_back)
    if found is ConnectBackOutcome.CONNECTED:
        return True if outcome.arrived else None
    return False if found in _STRAY else None


def _contradicts(outcome: Outcome) -> bool:
    said = _outcome_of(outcome.connect_back)
    return (
        said is not None
        and said is not ConnectBackOutcome.NOT_TRIED
        and ((said is ConnectBackOutcome.CONNECTED) is not outcome.arrived)
    )


def _outcome_of(number: int | None) -> ConnectBackOutcome | None:
    try:
        return None if number is None else ConnectBackOutcome(number)
    except ValueError:
        return None


def _first(question: Question, own: Sequence[Outcome]) -> Outcome | None:
    return next((item for item in own if item.probe.question == question), None)
