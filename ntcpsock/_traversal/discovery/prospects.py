"""What a discovery means for its user: what it is called, who can be reached, what would help (pure)."""

from __future__ import annotations

from ntcpsock._diagnosis import Allocation, Discovery, Finding, Prospect, TransportFindings, Verdict
from ntcpsock._traversal.discovery.findings import EIM
from ntcpsock._traversal.prediction import Prediction, expected_hits, plan_spray

# Expected meetings of one round (see `prediction.py`): from the first on it fails once in 20 rounds or less.
_ENOUGH_HITS, _SOME_HITS = 3.0, 0.3

_HOST = "192.0.2.1"
_EXACT = Prediction("exact", _HOST, 30000, 30000)
_SEQUENTIAL = Prediction("sequential", _HOST, 30000, 30014, 1)
_BLOCK = Prediction("band", _HOST, 30208, 30719)
_RANDOM = Prediction("band", _HOST, 1024, 65535)


PUBLIC = "a public host"
KEEPS = "a NAT that keeps its ports"
STEPS = "a NAT whose ports go up in steps"
BLOCK = "a NAT that draws from a block of 512 ports"
DRAWS = "a NAT that draws from all ports"
NO_UDP = "a host without UDP"

_PEERS = ((KEEPS, _EXACT), (STEPS, _SEQUENTIAL), (BLOCK, _BLOCK), (DRAWS, _RANDOM))


def prospects(discovery: Discovery, broker_over_tcp: bool = False) -> tuple[Prospect, ...]:
    """What will work to whom without a relay. It says what is to be expected; every attempt is made all the same.

    broker_over_tcp: the broker was reached so, and does without UDP."""
    udp, tcp = discovery.udp, discovery.tcp
    peers = (PUBLIC, *(peer for peer, _ in _PEERS), NO_UDP)
    if tcp.reachable.truth is not True:
        verdict: Verdict = "no" if tcp.reachable.truth is False else "unknown"
        return tuple(
            Prospect(peer, verdict, why="TCP does not get out to the servers that were asked")
            for peer in peers
        )
    if udp.reachable.truth is False and not broker_over_tcp:
        return tuple(
            Prospect(peer, "no", why="UDP gets no answer, and no broker was reached over TCP")
            for peer in peers
        )
    without_udp = Prospect(NO_UDP, "perhaps", why="such a host needs the broker's TCP port")
    if _lets_everybody_in(tcp):
        how = "public" if tcp.translated.truth is False else "tcp-open"
        reached = tuple(
            Prospect(peer, "yes", how, "whoever knows this endpoint gets in") for peer in peers[:-1]
        )
        return (*reached, without_udp)
    if discovery.port_mapping.truth and not discovery.double_nat.truth:
        mapped = tuple(Prospect(peer, "yes", "port-mapped", "the router maps a port") for peer in peers[1:-1])
        return (Prospect(PUBLIC, "yes", "public", "connections go out from here"), *mapped, without_udp)
    ours = our_prediction(tcp)
    first = Prospect(PUBLIC, "yes", "public", "connections go out from here")
    others = tuple(_through_nat(peer, theirs, ours, tcp) for peer, theirs in _PEERS)
    return (first, *others, without_udp)


def our_prediction(tcp: TransportFindings) -> Prediction | None:
    """Where connections to peers come from; None where that is not known."""
    if tcp.translated.truth is False or EIM in (tcp.mapping.value, *tcp.mapping.possible[:1]):
        return _EXACT
    allocation = tcp.allocation
    if not tcp.mapping.is_known and not tcp.mapping.possible:
        return None
    if allocation.value in ("preserving", "offset"):
        return _EXACT
    if allocation.value == "sequential":
        return _SEQUENTIAL
    if allocation.low is None or allocation.high is None:
        return None
    return Prediction("band", _HOST, allocation.low, allocation.high)


def _lets_everybody_in(tcp: TransportFindings) -> bool:
    keeps = tcp.translated.truth is False or tcp.mapping.value == EIM
    return keeps and tcp.filtering.value == EIM


def _through_nat(peer: str, theirs: Prediction, ours: Prediction | None, tcp: TransportFindings) -> Prospect:
    if ours is None:
        return Prospect(peer, "unknown", why="how this NAT maps its ports was not found out")
    assumed = "" if tcp.mapping.is_known else "if the mapping is endpoint-independent"
    if ours.shape == theirs.shape == "exact" and _keeps(tcp):
        return Prospect(peer, "yes", "tcp-open", assumed)
    connections = _connections(ours, theirs)
    if "band" not in (ours.shape, theirs.shape):
        return Prospect(peer, "yes", "tcp-predict", assumed, connections)
    hits = expected_hits(ours, theirs) * _share_that_fits(ours, theirs) * _share_that_fits(theirs, ours)
    if hits >= _ENOUGH_HITS:
        return Prospect(peer, "yes", "tcp-predict", assumed, connections)
    if hits >= _SOME_HITS:
        return Prospect(peer, "perhaps", "tcp-predict", "some rounds will miss", connections)
    return Prospect(peer, "no", why="both sides would have to guess among too many ports")


def _keeps(tcp: TransportFindings) -> bool:
    return tcp.translated.truth is False or tcp.mapping.value == EIM or EIM in tcp.mapping.possible


def _share_that_fits(side: Prediction, other: Prediction) -> float:
    """Of the connections that `side` holds in a round: each takes a port of its own, and a band has only so many."""
    if side.shape != "band":
        return 1.0
    spray = plan_spray(side, other)
    return min(1.0, side.width / (spray.local_ports * len(spray.targets)))


def _connections(ours: Prediction, theirs: Prediction) -> int:
    spray = plan_spray(ours, theirs)
    back = plan_spray(theirs, ours)
    return spray.local_ports * len(spray.targets) + back.local_ports * len(back.targets)


def headline(discovery: Discovery) -> str:
    """What this network is, in one sentence."""
    udp, tcp = discovery.udp, discovery.tcp
    if tcp.reachable.truth is not True:
        if discovery.https.truth:
            return "This network lets TCP to port 443 out, and nothing else of what was tried."
        if discovery.https.value == "none":
            return "No STUN server is there: the connection was refused."
        if udp.reachable.truth:
            return "UDP gets out of this network, TCP to the STUN servers does not."
        return "No server was reached: neither over TCP nor over UDP."
    prefix = "UDP gets no answer. " if udp.reachable.truth is False else ""
    if tcp.translated.truth is False:
        return prefix + _without_nat(tcp)
    carrier = ", behind a carrier's NAT (CGN)" if discovery.double_nat.truth else ""
    return f"{prefix}{_nat(tcp)}{carrier}."


def _without_nat(tcp: TransportFindings) -> str:
    if tcp.filtering.value == EIM:
        return "A public host: no NAT, and no firewall that filters."
    if tcp.filtering.is_known:
        return "A public address behind a firewall, no NAT."
    return "A public address, no NAT; whether a firewall filters was not found out."


def _nat(tcp: TransportFindings) -> str:
    mapping = tcp.mapping
    if mapping.value == EIM:
        kind = {
            "endpoint-independent": ' ("full cone")',
            "address-dependent": ' ("restricted cone")',
            "address-and-port-dependent": ' ("port-restricted cone")',
        }.get(tcp.filtering.value, "")
        return f"A NAT that keeps one public port for one local port{kind}"
    if mapping.possible[:1] == (EIM,):
        return "A NAT that seems to keep its ports"
    if not mapping.is_known and not mapping.possible:
        return "A NAT; how it maps ports was not found out"
    return f'A NAT that gives each connection another port ("symmetric"), {_drawing(tcp.allocation)}'


def _drawing(allocation: Allocation) -> str:
    return {
        "preserving": "the same as the local one where that is free",
        "offset": "at a fixed distance from the local one",
        "sequential": f"in steps of {allocation.step}",
        "band": "out of a block of ports",
        "random": "out of all ports",
    }.get(allocation.value, "and which one is not known")


def advice(discovery: Discovery, broker_over_tcp: bool = False) -> tuple[str, ...]:
    """What would help, the most useful first; empty where all is well."""
    udp, tcp = discovery.udp, discovery.tcp
    if discovery.captive_portal.truth:
        return ("Something answers in the servers' place: open a web page and log in to this network.",)
    if tcp.reachable.truth is False and udp.reachable.truth is False:
        if discovery.https.truth:
            return (
                "Only TCP to port 443 gets out: run the broker and STUN on a network that lets more through.",
            )
        return ("Is this host online, and are the servers up? Name others with NTCP_BROKER and NTCP_STUN.",)
    found: list[str] = []
    meets = udp.reachable.truth is not False or broker_over_tcp
    if not meets:
        found.append("Let UDP or TCP out to the broker's port (6060 by default): without it nobody is met.")
    if tcp.reachable.truth is False:
        found.append(
            "Let TCP out to the STUN servers' port (3478 by default): without it no port is known outside."
        )
    weak = meets and any(
        one.verdict in ("no", "perhaps") and one.peer != NO_UDP
        for one in prospects(discovery, broker_over_tcp)
    )
    if tcp.translated.truth and weak:
        found.append(_reachable_by_mapping(discovery))
    if tcp.stray.value == "reset":
        found.append(
            "The router answers strangers with a RST, so that a connection may take a second try: have it drop them "
            "(OpenWrt: zone wan, input DROP)."
        )
    if tcp.hairpin.truth is False:
        found.append(
            "Hosts behind this router meet by their local addresses only: keep `lan` among the techniques."
        )
    return tuple(found)


def _reachable_by_mapping(discovery: Discovery) -> str:
    if discovery.double_nat.truth:
        return (
            "This is a CGN: your router cannot map a port of the carrier's. Ask the provider for a public IPv4 "
            "address, or use IPv6."
        )
    return "Turn on NAT-PMP, PCP or UPnP on the router, or forward a TCP port: then everybody gets through to you."


# What people call the findings, and of which transports they are.
_ASKED: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("mapping", "mapping", ("udp", "tcp")),
    ("allocation", "ports", ("udp", "tcp")),
    ("filtering", "filtering", ("udp", "tcp")),
    ("stray", "answer to a stray SYN", ("tcp",)),
    ("hairpin", "hairpin", ("udp", "tcp")),
    ("fragments", "large datagrams", ("udp",)),
)


def unknowns(discovery: Discovery) -> tuple[tuple[str, str], ...]:
    """What could not be found out, with the reason; what a missing transport makes unknown is said once."""
    found: list[tuple[str, str]] = []
    for transport, findings in (("udp", discovery.udp), ("tcp", discovery.tcp)):
        if findings.reachable.truth is not True:
            found.append((f"{transport.upper()}: everything", findings.reachable.why))
            continue
        for name, words, transports in _ASKED:
            finding: Finding = getattr(findings, name)
            if transport in transports and not finding.is_known:
                found.append((f"{transport.upper()}: {words}", _reason(finding)))
    for words, finding in (
        ("a second NAT", discovery.double_nat),
        ("port mapping", discovery.port_mapping),
        ("IPv6", discovery.ipv6_filtering if discovery.ipv6.truth else discovery.ipv6),
        ("captive portal", discovery.captive_portal),
    ):
        if not finding.is_known:
            found.append((words, _reason(finding)))
    return tuple(found)


def _reason(finding: Finding) -> str:
    possible = f"{' or '.join(finding.possible)}: " if 0 < len(finding.possible) < 3 else ""
    return possible + (finding.why or "no answer")
