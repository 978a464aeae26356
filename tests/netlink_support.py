"""Messages as Linux's rtnetlink sends them, made here, and the words of a machine's tables."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence

from ntcpsock._traversal.network.message import (
    IFF_RUNNING,
    IFF_UP,
    RT_TABLE_MAIN,
    RTN_UNICAST,
    Address,
    Device,
    Message,
    Route,
)
from ntcpsock._traversal.network.snapshot import Snapshot, make_snapshot

RUNNING = IFF_UP | IFF_RUNNING
ELSEWHERE = "198.51.100.9"


def attribute(kind: int, value: bytes) -> bytes:
    data = struct.pack("=HH", 4 + len(value), kind) + value
    return data + bytes(-len(data) % 4)


def message(kind: int, body: bytes, *, sequence: int = 0) -> bytes:
    data = struct.pack("=IHHII", 16 + len(body), kind, 0, sequence, 0) + body
    return data + bytes(-len(data) % 4)


def packed(host: str) -> bytes:
    return ipaddress.ip_address(host).packed


def family_of(host: str) -> int:
    return 10 if ":" in host else 2


def address_message(address: Address, *, sequence: int = 0, prefix_length: int = 24) -> bytes:
    """With the flags in the attribute, where there is room for all of them."""
    body = struct.pack(
        "=BBBBI", family_of(address.host), prefix_length, address.flags & 0xFF, 0, address.device
    )
    body += attribute(1, packed(address.host)) + attribute(8, struct.pack("=I", address.flags))
    return message(21 if address.is_gone else 20, body, sequence=sequence)


def device_message(device: Device, *, sequence: int = 0) -> bytes:
    body = struct.pack("=BxHiII", 0, 1, device.index, device.flags, 0)
    body += attribute(3, device.name.encode() + b"\0")
    if device.kind:
        body += attribute(18, attribute(1, device.kind.encode() + b"\0"))
    body += attribute(47, struct.pack("=I", device.carriers))
    return message(17 if device.is_gone else 16, body, sequence=sequence)


def route_message(route: Route, *, sequence: int = 0) -> bytes:
    family = 10 if route.ipv6 else 2
    table = route.table if route.table < 256 else 252
    body = struct.pack("=BBBBBBBBI", family, route.prefix_length, 0, 0, table, 3, 0, route.type, 0)
    body += attribute(15, struct.pack("=I", route.table)) + attribute(6, struct.pack("=I", route.metric))
    if route.destination:
        body += attribute(1, packed(route.destination))
    if route.source:
        body += attribute(7, packed(route.source))
    if len(route.ways) == 1:
        (device, gateway) = route.ways[0]
        body += attribute(4, struct.pack("=I", device)) + (attribute(5, packed(gateway)) if gateway else b"")
    elif route.ways:
        hops = b""
        for device, gateway in route.ways:
            rest = attribute(5, packed(gateway)) if gateway else b""
            hops += struct.pack("=HBBi", 8 + len(rest), 0, 0, device) + rest
        body += attribute(9, hops)
    return message(25 if route.is_gone else 24, body, sequence=sequence)


def address(host: str, device: int = 2, flags: int = 0x80) -> Address:
    return Address(False, device, host, flags)


def device(index: int, name: str, *, kind: str = "", flags: int = RUNNING, carriers: int = 1) -> Device:
    return Device(False, index, name, flags, kind, carriers)


def route(
    gateway: str,
    device: int = 2,
    *,
    metric: int = 0,
    destination: str = "",
    length: int = 0,
    source: str = "",
) -> Route:
    return Route(
        False,
        ":" in gateway,
        RT_TABLE_MAIN,
        RTN_UNICAST,
        destination,
        length,
        metric,
        ((device, gateway),),
        source,
    )


LOOPBACK = Device(False, 1, "lo", RUNNING | 0x8, "", 0)
ETH0, WLAN0 = device(2, "eth0"), device(3, "wlan0")
HOME: tuple[Message, ...] = (LOOPBACK, ETH0, address("127.0.0.1", 1), address("10.0.0.2"), route("10.0.0.1"))


def snapshot(*table: Message, way: Route | None = None) -> Snapshot:
    """way: of packets to ELSEWHERE; None: the table's default route."""
    ways: Sequence[tuple[str, Route]] = [] if way is None else [(ELSEWHERE, way)]
    return make_snapshot(table, ways)
