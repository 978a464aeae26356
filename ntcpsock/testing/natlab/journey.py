"""The way of each packet through a lab, out of what was seen at its places (pure).

For two hosts, each behind one router; places are "host-a", "nat-a", "server", "nat-b", "host-b".
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Literal, NamedTuple

from ntcpsock.testing.natlab.router.packet import ACK, FIN, ICMP, RST, SYN, TCP, UDP
from ntcpsock.testing.natlab.sighting import Sighting

Endpoint = tuple[str, int]

Fate = Literal["arrived", "dropped", "lost", "no route"]

# Seconds by which the clocks of two observers of one moment may differ.
_TOLERANCE = 0.002


class _Head(NamedTuple):
    """The headers of a packet, as far as they tell it from others."""

    protocol: int
    source: Endpoint
    target: Endpoint
    identification: int
    length: int
    ttl: int
    flags: int
    sequence: int
    payload: bytes

    @property
    def invariant(self) -> tuple[int, ...]:
        """What no router changes."""
        return (self.protocol, self.identification, self.length, self.flags, self.sequence)


@dataclass(slots=True)
class Journey:
    """One packet: where it was and when (seconds of the monotonic clock), first to last.

    source, target: as in the world, outside of NATs; ttl: as sent; flags: of TCP; payload: its beginning; length: of
    the whole IP packet. fate: "dropped": the last place, a router, did not let it on; "lost": the link after the last
    place ate it; "no route": its address is nowhere in the world.
    """

    protocol: Literal["tcp", "udp", "icmp"]
    source: Endpoint
    target: Endpoint
    ttl: int
    flags: int
    length: int
    payload: bytes
    hops: list[tuple[str, float]] = field(default_factory=list)
    fate: Fate = "arrived"

    @property
    def kind(self) -> str:
        """`syn`, `syn-ack`, `rst`, `fin`, `data`, `ack`, `udp` or `icmp`."""
        if self.protocol != "tcp":
            return self.protocol
        if self.flags & RST:
            return "rst"
        if self.flags & SYN:
            return "syn-ack" if self.flags & ACK else "syn"
        if self.flags & FIN:
            return "fin"
        return "data" if self.payload else "ack"


@dataclass(slots=True)
class _Way:
    """A journey under way, and the packet as it was last seen."""

    journey: Journey
    head: _Head
    place: str
    time: float


class _Stage:
    """Finds the earlier sighting of a packet that is seen now."""

    def __init__(self, ways: Iterable[_Way], key: Callable[[_Head], object], *, latest: bool) -> None:
        self._key = key
        self._latest = latest
        self._waiting: defaultdict[object, list[_Way]] = defaultdict(list)
        for way in ways:
            self._waiting[way.place, key(way.head)].append(way)

    def take(self, place: str, head: _Head, time: float) -> _Way | None:
        """The way that goes on here. Of several alike the first one, or, where many of them end, the last one."""
        waiting = self._waiting.get((place, self._key(head)), [])
        found = [way for way in waiting if way.time <= time + _TOLERANCE]
        if not found:
            return None
        way = found[-1] if self._latest else found[0]
        waiting.remove(way)
        return way

    @property
    def left(self) -> list[_Way]:
        """Those that did not go on."""
        return [way for waiting in self._waiting.values() for way in waiting]


def journeys(sightings: Sequence[Sighting], servers: Sequence[str]) -> list[Journey]:
    """Every IPv4 packet that a host or router of the lab sent, in the order of their beginnings.

    servers: the public addresses of the server.
    """
    seen = [(sighting, head) for sighting in sightings if (head := _parse(sighting.packet)) is not None]

    def at(event: str, *, outward: bool) -> list[tuple[Sighting, _Head]]:
        return [row for row in seen if row[0].event == event and row[0].outward is outward]

    # Host to router. What a router makes itself begins there.
    sent = [_begin(sighting.place, sighting, head) for sighting, head in at("sent", outward=True)]
    made: list[_Way] = []
    stage = _Stage(sent, lambda head: (head.invariant, head.target), latest=False)
    out = _step(stage, at("entered", outward=True), _host_of, made)
    _end(stage, "dropped", to_router=True)
    # Across the link.
    crossing = _Stage([*out, *made], lambda head: head, latest=False)
    crossed = _step(crossing, at("left", outward=True), _same, None)
    _end(crossing, "lost")
    for way in crossed:
        way.journey.hops.pop()  # the far end of a link is no place of its own
    onward = []
    for way in crossed:
        if way.head.target[0] in servers:
            way.journey.hops.append(("server", way.time))
        else:
            way.place = "between"
            onward.append(way)
    # Across the other one.
    between = _Stage(onward, _without_ttl, latest=False)
    by_server: list[_Way] = []
    entered = _step(between, at("entered", outward=False), lambda place: "between", by_server, silent=True)
    _end(between, "no route")
    for way in by_server:
        way.journey.hops[:] = [("server", way.time)]
    falling = _Stage([*entered, *by_server], lambda head: head, latest=False)
    reached = _step(falling, at("left", outward=False), _same, None)
    _end(falling, "lost")
    # Router to host.
    door = _Stage(reached, lambda head: (head.invariant, head.source), latest=True)
    _step(door, at("received", outward=False), _router_of, None)
    _end(door, "dropped")
    everything = [*sent, *made, *by_server]
    return sorted((way.journey for way in everything), key=lambda journey: journey.hops[0][1])


def _begin(place: str, sighting: Sighting, head: _Head) -> _Way:
    protocol: Literal["tcp", "udp", "icmp"] = (
        "tcp" if head.protocol == TCP else "udp" if head.protocol == UDP else "icmp"
    )
    journey = Journey(protocol, head.source, head.target, head.ttl, head.flags, head.length, head.payload)
    journey.hops.append((place, sighting.time))
    return _Way(journey, head, place, sighting.time)


def _step(
    stage: _Stage,
    seen: Iterable[tuple[Sighting, _Head]],
    before: Callable[[str], str],
    new: list[_Way] | None,
    *,
    silent: bool = False,
) -> list[_Way]:
    """Lead ways on to where they are seen next; what comes from nowhere begins in `new`.

    before: the place that leads to a place; silent: the place counts for no hop.
    """
    led = []
    for sighting, head in seen:
        way = stage.take(before(sighting.place), head, sighting.time)
        if way is None:
            if new is not None:
                new.append(_begin(sighting.place, sighting, head))
            continue
        way.head, way.place, way.time = head, sighting.place, sighting.time
        if not silent:
            way.journey.hops.append((sighting.place, sighting.time))
        if sighting.outward:
            way.journey.source = head.source
        led.append(way)
    return led


def _end(stage: _Stage, fate: Fate, *, to_router: bool = False) -> None:
    for way in stage.left:
        way.journey.fate = fate
        if to_router:
            way.journey.hops.append((_router_of(way.place), way.time))


def _host_of(router: str) -> str:
    return router.replace("nat-", "host-")


def _router_of(host: str) -> str:
    return host.replace("host-", "nat-")


def _same(place: str) -> str:
    return place


def _without_ttl(head: _Head) -> object:
    return head._replace(ttl=0)


def _parse(packet: bytes) -> _Head | None:
    """None for what is no whole IPv4 header, or a later fragment."""
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return None
    header = (packet[0] & 15) * 4
    length, identification, fragment, ttl, protocol = struct.unpack_from("!HHHBB", packet, 2)
    source, target = (str(IPv4Address(packet[at : at + 4])) for at in (12, 16))
    rest = packet[header:]
    if fragment & 0x1FFF or len(rest) < 8:
        return None
    source_port = target_port = flags = sequence = 0
    payload = rest[8:]
    if protocol in (TCP, UDP):
        source_port, target_port = struct.unpack_from("!HH", rest)
    if protocol == TCP:
        if len(rest) < 20:
            return None
        sequence = struct.unpack_from("!I", rest, 4)[0]
        flags = rest[13]
        payload = rest[(rest[12] >> 4) * 4 :]
    elif protocol == ICMP:
        sequence = rest[0] << 8 | rest[1]
    elif protocol != UDP:
        return None
    ends = (source, source_port), (target, target_port)
    return _Head(protocol, *ends, identification, length, ttl, flags, sequence, payload)
