"""The way of packets through a lab, and the sequence diagram of it."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address
from typing import Any
from xml.etree import ElementTree

from ntcpsock.cli.punch_drawing import MOST_ALIKE, Drawing, make_drawing
from ntcpsock.cli.sequence_svg import sequence_diagram
from ntcpsock.testing.natlab import Sighting
from ntcpsock.testing.natlab.journey import Journey, journeys
from ntcpsock.testing.natlab.sighting import Event

SVG = "{http://www.w3.org/2000/svg}"
SERVER = "11.22.55.2"
HOST_A, HOST_B = ("10.1.0.10", 20001), ("10.2.0.10", 20002)
NAT_A, NAT_B = ("11.22.33.2", 4001), ("11.22.44.2", 4002)
SYN, SYN_ACK, RST, ACK = 2, 18, 4, 16
PLACES = tuple((name, name.upper(), "") for name in ("host-a", "nat-a", "server", "nat-b", "host-b"))

Place = tuple[str, int]


def tcp(
    source: Place, target: Place, flags: int, sequence: int = 1, payload: bytes = b"", ttl: int = 64
) -> bytes:
    segment = struct.pack("!HHIIBBHHH", source[1], target[1], sequence, 0, 0x50, flags, 0, 0, 0) + payload
    return ip(6, source[0], target[0], segment, ttl)


def udp(source: Place, target: Place) -> bytes:
    return ip(17, source[0], target[0], struct.pack("!HHHH", source[1], target[1], 8, 0), 64)


def ip(protocol: int, source: str, target: str, rest: bytes, ttl: int) -> bytes:
    ends = IPv4Address(source).packed + IPv4Address(target).packed
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(rest), 0, 0x4000, ttl, protocol, 0) + ends + rest


class Sight:
    """Collects sightings as packets go their way."""

    def __init__(self) -> None:
        self.seen: list[Sighting] = []

    def add(self, time: float, place: str, event: Event, outward: bool, packet: bytes) -> None:
        self.seen.append(Sighting(time, place, event, outward, packet))

    def across(
        self, time: float, flags: int, *, until: str = "host-b", sequence: int = 1, ttl: int = 64
    ) -> None:
        """A segment from A to B; `until`: the last place that it reaches."""
        self.add(time, "host-a", "sent", True, tcp(HOST_A, NAT_B, flags, sequence, ttl=ttl))
        if until == "nat-a":
            return
        outer = tcp(NAT_A, NAT_B, flags, sequence, ttl=ttl - 1)
        self.add(time, "nat-a", "entered", True, outer)
        if until == "link":
            return
        self.add(time + 0.025, "nat-a", "left", True, outer)
        if until == "world":
            return
        routed = tcp(NAT_A, NAT_B, flags, sequence, ttl=ttl - 2)
        self.add(time + 0.025, "nat-b", "entered", False, routed)
        self.add(time + 0.05, "nat-b", "left", False, routed)
        if until == "nat-b":
            return
        self.add(time + 0.0501, "host-b", "received", False, tcp(NAT_A, HOST_B, flags, sequence, ttl=ttl - 3))

    def back(self, time: float, flags: int, *, made_by_router: bool = False) -> None:
        """A segment from B, or from its router, to A."""
        if not made_by_router:
            self.add(time, "host-b", "sent", True, tcp(HOST_B, NAT_A, flags))
        outer = tcp(NAT_B, NAT_A, flags)
        self.add(time, "nat-b", "entered", True, outer)
        self.add(time + 0.025, "nat-b", "left", True, outer)
        self.add(time + 0.025, "nat-a", "entered", False, outer)
        self.add(time + 0.05, "nat-a", "left", False, outer)
        self.add(time + 0.05, "host-a", "received", False, tcp(NAT_B, HOST_A, flags))

    def journeys(self) -> list[Journey]:
        return journeys(sorted(self.seen, key=lambda sighting: sighting.time), [SERVER])


def hops(journey: Journey) -> list[tuple[str, float]]:
    return [(place, round(time, 3)) for place, time in journey.hops]


def test_from_host_to_host() -> None:
    sight = Sight()
    sight.across(1.0, SYN, ttl=7)
    (found,) = sight.journeys()
    assert hops(found) == [("host-a", 1.0), ("nat-a", 1.0), ("nat-b", 1.05), ("host-b", 1.05)]
    assert (found.kind, found.source, found.target) == ("syn", NAT_A, NAT_B)
    assert (found.ttl, found.fate) == (7, "arrived")


def test_what_goes_no_further() -> None:
    for until, last, fate in (
        ("nat-a", "nat-a", "dropped"),
        ("link", "nat-a", "lost"),
        ("world", "nat-a", "no route"),
        ("nat-b", "nat-b", "dropped"),
    ):
        sight = Sight()
        sight.across(1.0, SYN, until=until)
        (found,) = sight.journeys()
        assert (found.hops[-1][0], found.fate) == (last, fate), until


def test_a_repeated_segment_is_another_journey() -> None:
    sight = Sight()
    sight.across(1.0, SYN, until="nat-b")
    sight.across(2.0, SYN)
    first, second = sight.journeys()
    assert (first.fate, second.fate) == ("dropped", "arrived")
    assert hops(second)[-1] == ("host-b", 2.05)


def test_a_router_answers() -> None:
    sight = Sight()
    sight.across(1.0, SYN, until="nat-b")
    sight.back(1.05, RST, made_by_router=True)
    _, answer = sight.journeys()
    assert hops(answer) == [("nat-b", 1.05), ("nat-a", 1.1), ("host-a", 1.1)]
    assert (answer.kind, answer.fate) == ("rst", "arrived")


def test_to_the_server_and_from_it() -> None:
    sight = Sight()
    sight.add(1.0, "host-a", "sent", True, udp(HOST_A, (SERVER, 6060)))
    sight.add(1.0, "nat-a", "entered", True, udp(NAT_A, (SERVER, 6060)))
    sight.add(1.025, "nat-a", "left", True, udp(NAT_A, (SERVER, 6060)))
    sight.add(1.03, "nat-b", "entered", False, udp((SERVER, 6060), NAT_B))
    sight.add(1.055, "nat-b", "left", False, udp((SERVER, 6060), NAT_B))
    sight.add(1.055, "host-b", "received", False, udp((SERVER, 6060), HOST_B))
    there, back = sight.journeys()
    assert hops(there) == [("host-a", 1.0), ("nat-a", 1.0), ("server", 1.025)]
    assert hops(back) == [("server", 1.03), ("nat-b", 1.055), ("host-b", 1.055)]


def test_noise_is_left_out() -> None:
    sight = Sight()
    for packet in (b"", b"\x45", bytes(40), b"\x60" + bytes(60), ip(47, SERVER, NAT_A[0], bytes(20), 64)):
        sight.add(1.0, "host-a", "sent", True, packet)
    assert sight.journeys() == []


def punch() -> Sight:
    """Crossing SYNs, at once, and a connection."""
    sight = Sight()
    sight.across(10.06, SYN)
    sight.back(10.061, SYN)
    sight.across(10.111, SYN_ACK)
    sight.back(10.112, SYN_ACK)
    return sight


def event(**more: Any) -> dict[str, Any]:
    return {
        "event": "connected",
        "began": 10.0,
        "seconds": 0.25,
        "kind": "tcp",
        "technique": "tcp-open",
        "remote": list(NAT_B),
        "report": {"attempts": [{"technique": "tcp-open"}]},
        **more,
    }


def make(sight: Sight, made: dict[str, Any]) -> Drawing:
    return make_drawing(made, sight.journeys(), places=PLACES, servers=[SERVER], path_rtt=0.1, title="A to B")


def test_crossing_syns() -> None:
    drawing = make(punch(), event())
    assert drawing.outcome == "connected after 250 ms (2.5 path RTT): tcp path by tcp-open"
    there, back = (arrow for arrow in drawing.arrows if arrow.kind == "syn")
    assert there.began < back.ended
    assert back.began < there.ended
    assert there.label == "SYN 4001 → 4002"
    assert there.hops[0] == ("host-a", 0.06)
    assert drawing.to_dict()["arrows"][0]["source"] == "11.22.33.2:4001"


def test_what_tells_nothing_is_left_out() -> None:
    sight = punch()
    sight.across(10.2, ACK)  # pure
    sight.across(9.0, SYN, sequence=5)  # before the call
    sight.across(11.0, SYN, sequence=6)  # long after
    assert len(make(sight, event()).arrows) == 4


def test_low_ttl_is_said() -> None:
    sight = Sight()
    sight.across(10.1, SYN, ttl=4)
    (arrow,) = make(sight, event()).arrows
    assert arrow.label == "SYN 4001 → 4002, TTL 4"


def test_many_alike_are_counted_but_the_winner_is_drawn() -> None:
    sight = Sight()
    for number in range(100):
        sight.across(10.1 + number / 1000, SYN, until="nat-b", sequence=number)
    lost = make(sight, event(remote=["11.22.44.2", 9]))
    assert len(lost.arrows) == MOST_ALIKE
    assert lost.left_out == (f"{100 - MOST_ALIKE} more SYN from host-a to nat-b (dropped)",)
    assert len(make(sight, event()).arrows) == 100


def test_picture() -> None:
    sight = punch()
    sight.across(10.13, SYN, until="nat-b", sequence=9)
    sight.across(10.14, SYN, until="world", sequence=10)
    root = ElementTree.fromstring(sequence_diagram(make(sight, event())))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"HOST-A", "NAT-A", "SERVER", "NAT-B", "HOST-B", "connected", "no route"} <= set(texts)
    assert "not let through" in texts
    assert "SYN 4001 → 4002" in texts
    heads = [line for line in root.iter(f"{SVG}line") if line.get("marker-end")]
    assert len(heads) == 4  # those that arrived
    height = float(root.get("height", "0"))
    assert all(
        0 <= float(line.get(f"y{end}", "")) <= height for line in root.iter(f"{SVG}line") for end in (1, 2)
    )


def test_picture_of_a_failure() -> None:
    failed = {
        "event": "error",
        "began": 10.0,
        "seconds": 8.1,
        "message": "no direct path <b>",
        "report": None,
    }
    drawing = make(punch(), failed)
    assert not drawing.connected
    assert drawing.outcome == "failed after 8100 ms: no direct path <b>"
    assert "no direct path &lt;b&gt;" in sequence_diagram(drawing)


def test_picture_of_nothing() -> None:
    ElementTree.fromstring(sequence_diagram(make(Sight(), event())))
