"""One connect in the lab as data that can be drawn: who sent what, when, and what became of it (pure)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ntcpsock.testing.natlab.journey import Journey

# Arrows of one kind between the same two places; further ones are counted.
MOST_ALIKE = 8

# Path round trips after the end that are still drawn, and seconds of a connect that failed.
_AFTER = 0.6
_FAILED_SECONDS = 2.5

_STUN_PORTS = (3478, 3479)
_LOW_TTL = 32
_TLS_HANDSHAKE, _TLS_DATA = 22, 23
_TLS_MESSAGES = {1: "TLS ClientHello", 2: "TLS ServerHello"}


@dataclass(frozen=True, slots=True)
class Arrow:
    """A packet. kind: `broker`, `stun`, `syn`, `syn-ack`, `rst`, `tls`, `data`, `fin` or `icmp`; source, target:
    "host:port" as the world sees them; hops: places and seconds since the call of connect; fate: as of a Journey."""

    kind: str
    label: str
    source: str
    target: str
    ttl: int
    fate: str
    hops: tuple[tuple[str, float], ...]

    @property
    def began(self) -> float:
        return self.hops[0][1]

    @property
    def ended(self) -> float:
        return self.hops[-1][1]


@dataclass(frozen=True, slots=True)
class Drawing:
    """places: names and what stands below them, from left to right; left_out: what was too much, in words."""

    title: str
    outcome: str
    connected: bool
    seconds: float
    path_rtt: float
    places: tuple[tuple[str, str, str], ...]
    arrows: tuple[Arrow, ...]
    left_out: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self)


def make_drawing(
    event: Mapping[str, Any],
    journeys: Iterable[Journey],
    *,
    places: Sequence[tuple[str, str, str]],
    servers: Sequence[str],
    path_rtt: float,
    title: str,
) -> Drawing:
    """The drawing of one try. event: what `lab_peer dial` said of it, with `began`; places: the name, the title and
    the address of each."""
    connected = event["event"] == "connected"
    seconds = float(event["seconds"])
    end = seconds + _AFTER * path_rtt if connected else min(seconds, _FAILED_SECONDS)
    predicts = any(
        entry["technique"] == "tcp-predict" for entry in (event.get("report") or {}).get("attempts", [])
    )
    arrows = []
    for journey in journeys:
        began = journey.hops[0][1] - float(event["began"])
        if 0 <= began <= end and (kind := _kind(journey, servers, with_stun=predicts)) is not None:
            arrows.append(_arrow(kind, journey, float(event["began"])))
    winner = "{}:{}".format(*event["remote"]) if connected else None
    drawn, left_out = _thin_out(arrows, winner)
    rtts = f" ({seconds / path_rtt:.1f} path RTT)" if path_rtt else ""
    if connected:
        outcome = (
            f"connected after {seconds * 1000:.0f} ms{rtts}: {event['kind']} path by {event['technique']}"
        )
    else:
        outcome = f"failed after {seconds * 1000:.0f} ms: {event['message']}"
    return Drawing(title, outcome, connected, seconds, path_rtt, tuple(places), tuple(drawn), tuple(left_out))


def _kind(journey: Journey, servers: Sequence[str], *, with_stun: bool) -> str | None:
    """What an arrow is called; None for what tells nothing of the punch."""
    with_server = journey.source[0] in servers or journey.target[0] in servers
    if journey.protocol == "udp":
        return None if {journey.source[1], journey.target[1]} & {*_STUN_PORTS} else "broker"
    if with_server and journey.protocol == "tcp":
        # Ports that are made ready for the next connect ask too; prediction lives on what is asked now.
        return "stun" if with_stun and journey.kind == "data" else None
    if journey.kind == "ack":
        return None
    if journey.kind == "data" and journey.payload[0] in (_TLS_HANDSHAKE, 20, 21, _TLS_DATA):
        return "tls"
    return journey.kind


def _arrow(kind: str, journey: Journey, began: float) -> Arrow:
    return Arrow(
        kind,
        _label(kind, journey),
        f"{journey.source[0]}:{journey.source[1]}",
        f"{journey.target[0]}:{journey.target[1]}",
        journey.ttl,
        journey.fate,
        tuple((place, round(time - began, 6)) for place, time in journey.hops),
    )


def _label(kind: str, journey: Journey) -> str:
    from_server = journey.hops[0][0] == "server"
    low = f", TTL {journey.ttl}" if journey.ttl < _LOW_TTL else ""
    if kind == "broker":
        return "broker"
    if kind == "stun":
        return "STUN answer" if from_server else "STUN request"
    if kind == "tls":
        message = journey.payload[5] if len(journey.payload) > 5 else 0
        handshake = journey.payload[0] == _TLS_HANDSHAKE
        return _TLS_MESSAGES.get(message, "TLS") if handshake else "TLS"
    if kind in ("syn", "syn-ack", "rst"):
        return f"{kind.upper()} {journey.source[1]} → {journey.target[1]}{low}"
    return f"{kind.upper()}{low}"


def _thin_out(arrows: Sequence[Arrow], winner: str | None) -> tuple[list[Arrow], list[str]]:
    """Not more than MOST_ALIKE of what looks alike, but all of the connection that won."""
    drawn = []
    seen: Counter[tuple[str, str, str, str]] = Counter()
    for arrow in arrows:
        alike = (arrow.kind, arrow.hops[0][0], arrow.hops[-1][0], arrow.fate)
        if winner in (arrow.source, arrow.target):
            drawn.append(arrow)
            continue
        seen[alike] += 1
        if seen[alike] <= MOST_ALIKE:
            drawn.append(arrow)
    left_out = [
        f"{count - MOST_ALIKE} more {kind.upper()} from {first} to {last} ({fate})"
        for (kind, first, last, fate), count in seen.items()
        if count > MOST_ALIKE
    ]
    return drawn, left_out
