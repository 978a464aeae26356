"""What an authenticated carrier opens, at either end: a stream, or a road for datagrams."""

from __future__ import annotations

from ntcpsock._datagram_way import OpenRoad
from ntcpsock._report import PathInfo, PathKind, PeerInfo, Report
from ntcpsock._session.carrier import Carrier
from ntcpsock._session.datagram_road import BareRoad, DatagramRoad, StreamRoad
from ntcpsock._session.plain import PlainCarrier, PlainStream
from ntcpsock._session.quic.carrier import QuicCarrier
from ntcpsock._session.stream import NTCPStream
from ntcpsock._session.tls import Carrier as TLSCarrier
from ntcpsock._traversal.checks.driver import PunchedPath
from ntcpsock._traversal.punch.driver import path_rtt

_KINDS: dict[str, PathKind] = {
    "lan": "lan",
    "ipv6": "ipv6",
    "port-mapped": "port-mapped",
    "relay": "relay",
    "turn": "relay",
}


def make_stream(
    carrier: Carrier | PlainCarrier,
    technique: str,
    peer: PeerInfo,
    report: Report,
    received: bytes = b"",
    *,
    window: int = 0,
) -> NTCPStream:
    """The stream over an authenticated carrier, at either end. window: as in `NTCPStream`."""
    path = make_path(carrier, technique)
    if isinstance(carrier, PlainCarrier):
        return PlainStream(carrier, peer=peer, path=path, report=report)
    return NTCPStream(carrier, peer=peer, path=path, report=report, received=received, window=window)


def make_path(carrier: Carrier | PlainCarrier, technique: str) -> PathInfo:
    """What is told of the way that an authenticated carrier takes."""
    rtt = (
        path_rtt(carrier.socket) if isinstance(carrier, TLSCarrier | PlainCarrier) else measured_rtt(carrier)
    )
    return PathInfo(kind_of(technique), technique, carrier.local, carrier.remote, rtt)


def make_road(
    carrier: Carrier | PlainCarrier | BareRoad,
    technique: str,
    key: bytes,
    name: str | None,
    report: Report,
    received: bytes = b"",
) -> OpenRoad:
    """The road for datagrams over an authenticated carrier, at either end."""
    road: DatagramRoad
    rtt = None
    if isinstance(carrier, QuicCarrier | BareRoad):
        road = carrier
    else:
        assert not isinstance(carrier, PlainCarrier), "without encryption there is UDP alone"
        road = StreamRoad(carrier, received)
        if isinstance(carrier, TLSCarrier):
            rtt = path_rtt(carrier.socket)
    path = PathInfo(kind_of(technique), technique, road.local, road.remote, rtt)
    return OpenRoad(road, key, name, path, report)


def kind_of(technique: str) -> PathKind:
    if technique.startswith("udp-"):
        return "udp"
    return _KINDS.get(technique, "tcp")


def measured_rtt(carrier: Carrier) -> float | None:
    """The round trip of the check that was answered last, in seconds, where the carrier is over such a path."""
    path = carrier.path if isinstance(carrier, QuicCarrier) else None
    return path.measured_rtt if isinstance(path, PunchedPath) else None
