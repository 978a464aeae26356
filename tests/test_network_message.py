"""The codec of rtnetlink: what the kernel sends, what it may send, and what it never would."""

from __future__ import annotations

import errno
import socket
import struct
import sys

import pytest
from fuzz_support import check_decoder
from hypothesis import given
from hypothesis import strategies as st
from netlink_support import (
    address_message,
    attribute,
    device_message,
    message,
    packed,
    route_message,
)

from ntcpsock._errors import BadMessage
from ntcpsock._traversal.network.message import (
    AF_INET,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    Address,
    Device,
    Done,
    Failed,
    Route,
    RuleChanged,
    decode,
    encode_dump,
    encode_route_query,
)

HOSTS = st.one_of(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str))
NUMBERS = st.integers(0, 2**32 - 1)
INDEXES = st.integers(0, 2**31 - 1)
ADDRESSES = st.builds(Address, st.booleans(), INDEXES, HOSTS, NUMBERS)
NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=15)
DEVICES = st.builds(Device, st.booleans(), INDEXES, NAMES, NUMBERS, NAMES, NUMBERS)


@st.composite
def routes(draw: st.DrawFn) -> Route:
    ipv6 = draw(st.booleans())
    hosts = st.ip_addresses(v=6 if ipv6 else 4).map(str)
    ways = st.lists(st.tuples(INDEXES, st.one_of(st.just(""), hosts)), max_size=3).map(tuple)
    return Route(
        draw(st.booleans()),
        ipv6,
        draw(NUMBERS),
        draw(st.integers(0, 255)),
        draw(st.one_of(st.just(""), hosts)),
        draw(st.integers(0, 128 if ipv6 else 32)),
        draw(NUMBERS),
        draw(ways),
        draw(st.one_of(st.just(""), hosts)),
    )


@given(st.lists(st.one_of(ADDRESSES, DEVICES, routes()), max_size=5), NUMBERS)
def test_round_trip(found: list[Address | Device | Route], sequence: int) -> None:
    data = b""
    for entry in found:
        encode = {Address: address_message, Device: device_message, Route: route_message}[type(entry)]
        data += encode(entry, sequence=sequence)  # type: ignore[operator]
    assert decode(data) == [(sequence, entry) for entry in found]


def test_what_is_of_no_interest_is_left_out() -> None:
    bridge_port = struct.pack("=BBBBI", 7, 0, 0, 0, 2) + attribute(1, b"\0" * 4)
    multicast_route = struct.pack("=BBBBBBBBI", 128, 0, 0, 0, 254, 3, 0, 1, 0)
    neighbour = message(28, bytes(12))
    nameless = struct.pack("=BBBBI", 2, 24, 0, 0, 2)
    data = message(20, bridge_port) + message(24, multicast_route) + neighbour + message(20, nameless)
    assert decode(data) == []
    # A route out of the cache goes as it came: nobody has taken it away.
    cached = struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 254, 3, 0, 1, 0x200)
    assert decode(message(25, cached)) == []


def test_what_is_told_in_another_way() -> None:
    # Of a point-to-point link LOCAL is ours; old kernels know eight flags.
    peer = struct.pack("=BBBBI", 2, 32, 0x20, 0, 4)
    peer += attribute(1, packed("10.8.0.1")) + attribute(2, packed("10.8.0.2"))
    assert decode(message(20, peer)) == [(0, Address(False, 4, "10.8.0.2", 0x20))]
    # RFC 5549: an IPv4 route by way of an IPv6 neighbour, and of an IPv4 one.
    head = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 3, 0, 1, 0) + attribute(4, struct.pack("=I", 2))
    via6 = attribute(18, struct.pack("=H", 10) + packed("fe80::1"))
    via4 = attribute(18, struct.pack("=H", 2) + packed("10.0.0.1"))
    for value, gateway in ((via6, "fe80::1"), (via4, "10.0.0.1")):
        ((_, found),) = decode(message(24, head + value))
        assert isinstance(found, Route)
        assert found.ways == ((2, gateway),)
    # The bit that says "nested" is no part of an attribute's number.
    nested = struct.pack("=BxHiII", 0, 1, 5, 1, 0) + attribute(18 | 0x8000, attribute(1, b"bridge\0"))
    assert decode(message(16, nested)) == [(0, Device(False, 5, "", 1, "bridge", 0))]


def test_ends_and_refusals() -> None:
    refused = message(2, struct.pack("=i", -errno.ENETUNREACH) + bytes(16), sequence=7)
    assert decode(refused) == [(7, Failed(errno.ENETUNREACH))]
    assert decode(message(3, bytes(4), sequence=8)) == [(8, Done())]
    assert decode(message(32, bytes(12)) + message(33, bytes(12))) == [(0, RuleChanged())] * 2


SEEDS = [
    address_message(Address(False, 2, "192.0.2.7", 0x80)),
    address_message(Address(True, 3, "2001:db8::7", 0x101), sequence=3),
    device_message(Device(False, 2, "eth0", 0x11043, "", 3)),
    device_message(Device(False, 4, "docker0", 0x1003, "bridge", 0)),
    route_message(Route(False, False, 254, 1, "", 0, 600, ((2, "192.0.2.1"),), "192.0.2.7")),
    route_message(Route(True, True, 1000, 1, "2001:db8::", 32, 1, ((2, "fe80::1"), (3, "fe80::2")), "")),
    message(2, struct.pack("=i", -101) + bytes(16)),
    message(3, bytes(4)) + message(32, bytes(12)),
]


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 15,
        struct.pack("=IHHII", 15, 20, 0, 0, 0),
        struct.pack("=IHHII", 17, 20, 0, 0, 0),
        message(20, b"\2\0\0"),
        message(2, b"\0"),
        message(20, struct.pack("=BBBBI", 2, 0, 0, 0, 1) + struct.pack("=HH", 3, 1)),
        message(20, struct.pack("=BBBBI", 2, 0, 0, 0, 1) + struct.pack("=HH", 9, 1) + bytes(4)),
        message(20, struct.pack("=BBBBI", 2, 0, 0, 0, 1) + attribute(1, bytes(16))),
        message(20, struct.pack("=BBBBI", 2, 0, 0, 0, 1) + attribute(1, bytes(4)) + attribute(8, bytes(2))),
        message(24, struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 0, 0, 0, 1, 0) + attribute(9, bytes(8))),
        message(24, struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 0, 0, 0, 1, 0) + attribute(9, bytes(4))),
    ],
)
def test_damaged(data: bytes) -> None:
    with pytest.raises(BadMessage):
        decode(data)


@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_only_one_exception_leaves(count: int) -> None:
    check_decoder(decode, SEEDS, count, 20)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's rtnetlink")
def test_the_kernel_and_the_socket_module_agree() -> None:
    """Whole tables of this machine, and where two addresses are reached."""
    found: list[Address | Device | Route] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as kernel:
        kernel.settimeout(60)
        for sequence, what in enumerate((RTM_GETADDR, RTM_GETLINK, RTM_GETROUTE), 1):
            kernel.send(encode_dump(what, sequence))
            while True:
                answers = decode(kernel.recv(65536))
                assert {answered for answered, _ in answers} == {sequence}
                found += [entry for _, entry in answers if isinstance(entry, Address | Device | Route)]
                if any(isinstance(entry, Done) for _, entry in answers):
                    break
        kernel.send(encode_route_query("127.0.0.1", 9))
        ((_, way),) = decode(kernel.recv(65536))
    names = {entry.index: entry.name for entry in found if isinstance(entry, Device)}
    assert names == dict(socket.if_nameindex())
    assert Address(False, socket.if_nametoindex("lo"), "127.0.0.1", 0x80) in found
    assert isinstance(way, Route)
    assert way.ways == ((socket.if_nametoindex("lo"), ""),)
    assert socket.AF_INET == AF_INET
