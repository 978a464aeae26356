"""Conclusions out of the outcomes of a discovery (pure). What they do not tell is said to be unknown, and why.

Nothing is concluded from one word of a server that could be checked and was not confirmed: a server that contradicts
itself, or what arrives here, leaves unknowns.
"""

from __future__ import annotations

from collections.abc import Sequence

from ntcpsock._address import Endpoint, is_private_address
from ntcpsock._diagnosis import Allocation, Discovery, Finding, TransportFindings
from ntcpsock._traversal.discovery.evidence import Answer, Outcome, Question
from ntcpsock._traversal.discovery.filtering import conclude_stray, conclude_tcp, conclude_udp
from ntcpsock._traversal.discovery.finding import UNKNOWN, known, no, texts, undecided, yes
from ntcpsock._traversal.prediction import Observation, predict
from ntcpsock._traversal.punch.message import NATProfile, Transport

# A NAT that draws its ports from more than this is as good as one that draws from all: two sides that both do would
# need thousands of connections to meet.
WIDEST_BAND = 4096
_FEWEST_SAMPLES = 3

EIM, ADM, APDM = "endpoint-independent", "address-dependent", "address-and-port-dependent"
SESSION = "session-dependent"
_MAPPINGS = (EIM, ADM, APDM, SESSION)

_PADDING_OF_TWO_PACKETS = 1400
_CARRIER_RANGE = "100.64.0.0/10"


def tcp_profile(tcp: TransportFindings) -> NATProfile:
    """The words of the wire for what is known of TCP."""
    mapping = tcp.mapping.value
    if mapping == "unknown" and tcp.mapping.possible and EIM not in tcp.mapping.possible:
        mapping = "endpoint-dependent"
    return NATProfile(
        tcp.translated.truth,
        mapping,  # type: ignore[arg-type]
        tcp.filtering.value,  # type: ignore[arg-type]
        tcp.stray.value if tcp.stray.value != "none" else "unknown",  # type: ignore[arg-type]
        tcp.hairpin.truth,
    )


def conclude(
    outcomes: Sequence[Outcome],
    *,
    servers: Sequence[Endpoint] = (),
    over_ipv6: Sequence[Outcome] = (),
    ipv6: Finding = UNKNOWN,
    seconds: float = 0.0,
) -> Discovery:
    """The findings. over_ipv6: the outcomes there, of which `ipv6` is the sum."""
    udp, tcp = conclude_transport("udp", outcomes), conclude_transport("tcp", outcomes)
    return Discovery(
        udp,
        tcp,
        _double_nat(udp, tcp, outcomes),
        ipv6,
        conclude_tcp([item for item in over_ipv6 if item.probe.transport == "tcp"])
        if ipv6.truth
        else Finding(why="not asked"),
        _captive_portal(outcomes),
        _https(outcomes),
        texts([*outcomes, *over_ipv6]),
        tuple(servers),
        seconds,
    )


def conclude_transport(transport: Transport, outcomes: Sequence[Outcome]) -> TransportFindings:
    """What the outcomes of one transport say."""
    own = [item for item in outcomes if item.probe.transport == transport and item.probe.question != "hops"]
    reach = _of("reach", own)
    usable = [item for item in own if item.answer == "answered" and item.mapped and item.local]
    if not usable:
        blocked = no(_why_not_reached(reach), reach) if reach else undecided("no server was asked")
        return TransportFindings(reachable=blocked)
    reachable = yes("", [item for item in reach if item.answer == "answered"] or usable[:1])
    translated = _translated(usable)
    mapping = _mapping(own)
    judged = conclude_udp(own) if transport == "udp" else conclude_tcp(own)
    return TransportFindings(
        reachable,
        translated,
        mapping,
        judged,
        conclude_stray(own, judged) if transport == "tcp" else UNKNOWN,
        _allocation(own, translated),
        _hairpin(own, translated, mapping),
        _fragments(own) if transport == "udp" else UNKNOWN,
        local=usable[0].local.host if usable[0].local else None,
        public=tuple(dict.fromkeys(item.mapped.host for item in usable if item.mapped)),
    )


def _of(question: Question, outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [item for item in outcomes if item.probe.question == question]


_NOT_REACHED: dict[Answer, str] = {
    "silence": "no answer from",
    "refused": "refused by",
    "unreachable": "no way to",
    "not-stun": "something else answers at",
    "error": "no usable answer from",
    "unfinished": "no answer in time from",
    "answered": "no usable answer from",
}


def _why_not_reached(reach: Sequence[Outcome]) -> str:
    places: dict[str, list[str]] = {}
    for item in reach:
        places.setdefault(_NOT_REACHED[item.answer], []).append(str(item.probe.server))
    return "; ".join(f"{words} {', '.join(sorted(servers))}" for words, servers in places.items())


def _translated(usable: Sequence[Outcome]) -> Finding:
    different = [item for item in usable if item.mapped != item.local]
    if not different:
        return no("servers see this host's own address", usable)
    if len(different) < len(usable):
        return undecided("some answers name this host's own address, some another one", evidence=usable)
    return yes("", different[:2])


def _mapping(own: Sequence[Outcome]) -> Finding:
    asked = [item for item in _of("mapping", own) if item.mapped is not None]
    evidence = asked or _of("mapping", own)
    if len(asked) < 2:
        return undecided("only one server endpoint answered", _MAPPINGS, evidence)
    seen = {item.probe.server: item.mapped for item in asked}
    hosts = {server.host for server in seen}
    of_host = [{mapped for server, mapped in seen.items() if server.host == host} for host in hosts]
    of_several_ports = [
        found
        for host, found in zip(hosts, of_host, strict=True)
        if sum(server.host == host for server in seen) > 1
    ]
    session = _session(own)
    if len(set(seen.values())) == 1:
        if len(hosts) > 1:
            return known(EIM, evidence)
        why = "the servers have one address: it cannot tell endpoint-independent from address-dependent"
        return undecided(why, (EIM, ADM), evidence)
    if session is not None and session[0].mapped != session[1].mapped:
        return known(SESSION, [*evidence, *session])
    if any(len(found) > 1 for found in of_several_ports):
        return known(APDM, evidence)
    if of_several_ports:
        return known(ADM, evidence)
    return undecided("no two servers share an address", (ADM, APDM), evidence)


def _session(own: Sequence[Outcome]) -> tuple[Outcome, Outcome] | None:
    found = [item for item in _of("session", own) if item.mapped is not None]
    return (found[0], found[1]) if len(found) > 1 else None


def _allocation(own: Sequence[Outcome], translated: Finding) -> Allocation:
    if translated.truth is False:
        return Allocation("none", why="nothing is translated")
    asked = sorted(_of("allocation", own), key=lambda item: item.probe.number)
    samples = [
        Observation(item.local.port, item.probe.server, item.mapped)
        for item in asked
        if item.local and item.mapped
    ]
    evidence = texts(asked)
    prediction = predict(samples, samples[-1].local_port) if len(samples) >= _FEWEST_SAMPLES else None
    if prediction is None:
        return Allocation(why=f"only {len(samples)} fresh ports were seen", evidence=evidence)
    if prediction.shape in ("exact", "single"):
        offset = samples[0].mapped.port - samples[0].local_port
        return Allocation("offset" if offset else "preserving", evidence=evidence, offset=offset)
    if prediction.shape == "sequential":
        return Allocation("sequential", evidence=evidence, step=prediction.step)
    word = "band" if prediction.width <= WIDEST_BAND else "random"
    return Allocation(word, evidence=evidence, low=prediction.low, high=prediction.high)


def _hairpin(own: Sequence[Outcome], translated: Finding, mapping: Finding) -> Finding:
    asked = _of("hairpin", own)
    if any(item.arrived for item in asked):
        return yes("", asked)
    if translated.truth is False:
        return Finding("none", why="nothing is translated, so nothing has to turn round")
    if not asked or asked[0].answer != "answered":
        return undecided("could not be asked", evidence=asked)
    if mapping.value != EIM:
        return undecided("nothing arrived, but the ports change with the destination", evidence=asked)
    return no("nothing arrives from the sender's public endpoint, as RFC 4787 REQ-9 wants it", asked)


def _fragments(own: Sequence[Outcome]) -> Finding:
    asked = _of("fragments", own)
    if not asked:
        return UNKNOWN
    if asked[0].answer == "silence":
        return no("no answer to a datagram of two packets, in either direction", asked)
    if asked[0].answer == "answered" and asked[0].size >= _PADDING_OF_TWO_PACKETS:
        return yes("", asked)
    if asked[0].answer == "answered":
        return undecided("they get out; the server's answer was too short to show the way in", evidence=asked)
    return undecided("the server does not take part", evidence=asked)


def _double_nat(udp: TransportFindings, tcp: TransportFindings, outcomes: Sequence[Outcome]) -> Finding:
    local = tcp.local or udp.local
    translated = tcp.translated if tcp.public else udp.translated
    asked = _of("hops", outcomes)
    if translated.truth is False:
        return no("nothing is translated")
    if local is not None and _is_carriers(local):
        return yes(f"this host's address {local} is of the carriers' range {_CARRIER_RANGE}")
    # The last private hop is a router behind the first one; the first is the one at home, whatever its address.
    behind = [hop for item in asked for hop in item.hops[1:] if hop and is_private_address(hop)]
    for hop in behind:
        if _is_carriers(hop):
            why = f"behind the first router comes {hop}, of the carriers' range {_CARRIER_RANGE}"
            return yes(why, asked)
    if behind:
        return undecided(
            f"behind the first router comes another private one, {behind[0]}: it may translate too",
            evidence=asked,
        )
    return undecided(
        "no sign of one; only a router that tells its own address could exclude it", evidence=asked
    )


def _is_carriers(host: str) -> bool:
    """RFC 6598: 100.64.0.0/10."""
    first, _, rest = host.partition(".")
    second = rest.partition(".")[0]
    return first == "100" and second.isdecimal() and 64 <= int(second) < 128


def _captive_portal(outcomes: Sequence[Outcome]) -> Finding:
    strange = [item for item in outcomes if item.answer == "not-stun"]
    if not strange:
        over_tcp = [item for item in outcomes if item.probe.transport == "tcp" and item.mapped is not None]
        return no("", over_tcp[:1]) if over_tcp else undecided("no server was reached over TCP")
    if any(item.answer == "answered" for item in outcomes if item.probe.server == strange[0].probe.server):
        return undecided("a server answered with STUN and with something else", evidence=strange)
    return yes(
        "something else than the STUN server answers in its place: a captive portal or a proxy", strange
    )


def _https(outcomes: Sequence[Outcome]) -> Finding:
    asked = _of("https", outcomes)
    if not asked:
        return Finding(why="not asked")
    over_tcp = [item for item in _of("reach", outcomes) if item.probe.transport == "tcp"]
    if any(item.answer == "refused" for item in over_tcp):
        return Finding("none", why="TCP gets out: it was refused at its end")
    if asked[0].answer in ("answered", "refused"):
        return yes("", asked)
    return no("", asked)
