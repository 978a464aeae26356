"""The part of Linux's rtnetlink (rtnetlink(7), RFC 3549) that tells addresses, links and routes.

A message is

    length u32 | type u16 | flags u16 | sequence u32 | port u32 | fixed part | attributes

in the machine's byte order, everything padded to four octets; an attribute is length u16 | type u16 | value. What a
kernel adds to them one day is skipped.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ntcpsock._errors import BadMessage

#: linux/socket.h: what the fields of families say.
AF_UNSPEC, AF_INET, AF_INET6 = 0, 2, 10

# linux/netlink.h, linux/rtnetlink.h
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWRULE, RTM_DELRULE = 32, 33
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300

#: The groups of a socket that wants to hear of links, addresses, routes and rules.
GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18

# linux/if_addr.h
IFA_F_TEMPORARY, IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE = 0x01, 0x08, 0x20, 0x40
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8

# linux/if.h, linux/if_link.h
IFF_UP, IFF_LOOPBACK, IFF_RUNNING = 0x1, 0x8, 0x40
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_CARRIER_UP_COUNT = 3, 18, 47
_IFLA_INFO_KIND = 1

# linux/rtnetlink.h
RT_TABLE_MAIN = 254
RTN_UNICAST = 1
_RTM_F_CLONED = 0x200
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_RTA_MULTIPATH, _RTA_TABLE, _RTA_VIA = 9, 15, 18

_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_ADDRESS: Final = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_LINK: Final = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ROUTE: Final = struct.Struct(
    "=BBBBBBBBI"
)  # rtmsg: family, lengths, tos, table, protocol, scope, type, flags
_NEXT_HOP: Final = struct.Struct("=HBBi")  # rtnexthop: length, flags, hops, index
_NUMBER: Final = struct.Struct("=I")
_ERROR: Final = struct.Struct("=i")
_KIND: Final = 0x3FFF  # without the bits for "nested" and "network byte order"


@dataclass(frozen=True, slots=True)
class Address:
    """An address of a device; is_gone: it was taken away. flags: IFA_F_*."""

    is_gone: bool
    device: int
    host: str
    flags: int


@dataclass(frozen=True, slots=True)
class Device:
    """flags: IFF_*. kind: of a device made by software ("bridge", "veth", "tun"), "" for others. carriers: how often
    it has come to have a carrier, 0 where that is not told."""

    is_gone: bool
    index: int
    name: str
    flags: int
    kind: str
    carriers: int


@dataclass(frozen=True, slots=True)
class Route:
    """destination: a network's address, "" for the default route; ways: its (device, gateway), one unless it shares
    its load, the gateway "" where the destination is on the link. source: the own address to send from, or ""."""

    is_gone: bool
    ipv6: bool
    table: int
    type: int
    destination: str
    prefix_length: int
    metric: int
    ways: tuple[tuple[int, str], ...]
    source: str


@dataclass(frozen=True, slots=True)
class RuleChanged:
    """The rules by which routing tables are chosen have changed."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The kernel refuses a request. errno: why; 0: it has done what was asked."""

    errno: int


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a dump."""


Message = Address | Device | Route | RuleChanged | Failed | Done


def encode_dump(what: int, sequence: int, family: int = AF_UNSPEC) -> bytes:
    """A request for all of what RTM_GETADDR, RTM_GETLINK or RTM_GETROUTE ask for. The answer ends with Done."""
    if what == RTM_GETADDR:
        body = _ADDRESS.pack(family, 0, 0, 0, 0)
    elif what == RTM_GETLINK:
        body = _LINK.pack(family, 0, 0, 0, 0)
    else:
        body = _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    return _HEADER.pack(_HEADER.size + len(body), what, _NLM_F_REQUEST | _NLM_F_DUMP, sequence, 0) + body


def encode_route_query(destination: str, sequence: int) -> bytes:
    """A request for the way that a packet to `destination` would take: one Route, or Failed, is the answer."""
    address = ipaddress.ip_address(destination)
    family = AF_INET if address.version == 4 else AF_INET6
    attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(address.packed), _RTA_DST) + address.packed
    body = _ROUTE.pack(family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0) + attribute
    return _HEADER.pack(_HEADER.size + len(body), RTM_GETROUTE, _NLM_F_REQUEST, sequence, 0) + body


def decode(data: bytes) -> list[tuple[int, Message]]:
    """What one datagram of the kernel says, each with the sequence number of the request that it answers; 0: of none.

    Messages of other kinds and families are left out. Raises BadMessage.
    """
    messages: list[tuple[int, Message]] = []
    view, offset = memoryview(data), 0
    while offset < len(view):
        if len(view) - offset < _HEADER.size:
            raise BadMessage("netlink: cut header")
        length, kind, _, sequence, _ = _HEADER.unpack_from(view, offset)
        if not _HEADER.size <= length <= len(view) - offset:
            raise BadMessage("netlink: bad length")
        message = _decode_body(kind, view[offset + _HEADER.size : offset + length])
        if message is not None:
            messages.append((sequence, message))
        offset += _aligned(length)
    return messages


def _decode_body(kind: int, body: memoryview) -> Message | None:
    try:
        if kind in (RTM_NEWADDR, RTM_DELADDR):
            return _decode_address(kind == RTM_DELADDR, body)
        if kind in (RTM_NEWLINK, RTM_DELLINK):
            return _decode_device(kind == RTM_DELLINK, body)
        if kind in (RTM_NEWROUTE, RTM_DELROUTE):
            return _decode_route(kind == RTM_DELROUTE, body)
        if kind in (RTM_NEWRULE, RTM_DELRULE):
            return RuleChanged()
        if kind == NLMSG_ERROR:
            return Failed(-int(_ERROR.unpack_from(body)[0]))
        if kind == NLMSG_DONE:
            return Done()
    except struct.error as error:
        raise BadMessage("netlink: cut message") from error
    return None


def _decode_address(is_gone: bool, body: memoryview) -> Address | None:
    family, _, flags, _, index = _ADDRESS.unpack_from(body)
    if family not in (AF_INET, AF_INET6):
        return None
    found = dict(_attributes(body, _ADDRESS.size))
    # Of a point-to-point link ADDRESS is the other end's.
    value = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS))
    if value is None:
        return None
    if _IFA_FLAGS in found:
        flags = _number(found[_IFA_FLAGS])
    return Address(is_gone, index, _host(family, value), flags)


def _decode_device(is_gone: bool, body: memoryview) -> Device:
    _, _, index, flags, _ = _LINK.unpack_from(body)
    found = dict(_attributes(body, _LINK.size))
    kind = b""
    if _IFLA_LINKINFO in found:
        kind = bytes(dict(_attributes(found[_IFLA_LINKINFO], 0)).get(_IFLA_INFO_KIND, b""))
    carriers = _number(found[_IFLA_CARRIER_UP_COUNT]) if _IFLA_CARRIER_UP_COUNT in found else 0
    return Device(is_gone, index, _text(bytes(found.get(_IFLA_IFNAME, b""))), flags, _text(kind), carriers)


def _decode_route(is_gone: bool, body: memoryview) -> Route | None:
    family, prefix_length, _, _, table, _, _, kind, flags = _ROUTE.unpack_from(body)
    if family not in (AF_INET, AF_INET6) or (is_gone and flags & _RTM_F_CLONED):
        return None
    found = dict(_attributes(body, _ROUTE.size))
    ways: list[tuple[int, str]] = []
    if _RTA_MULTIPATH in found:
        ways += _next_hops(family, found[_RTA_MULTIPATH])
    if _RTA_OIF in found:
        ways.append((_number(found[_RTA_OIF]), _gateway(family, found)))
    return Route(
        is_gone,
        family == AF_INET6,
        _number(found[_RTA_TABLE]) if _RTA_TABLE in found else table,
        kind,
        _host(family, found[_RTA_DST]) if _RTA_DST in found else "",
        prefix_length,
        _number(found[_RTA_PRIORITY]) if _RTA_PRIORITY in found else 0,
        tuple(ways),
        _host(family, found[_RTA_PREFSRC]) if _RTA_PREFSRC in found else "",
    )


def _next_hops(family: int, value: memoryview) -> Iterator[tuple[int, str]]:
    offset = 0
    while offset < len(value):
        length, _, _, index = _NEXT_HOP.unpack_from(value, offset)
        if not _NEXT_HOP.size <= length <= len(value) - offset:
            raise BadMessage("netlink: bad length of a next hop")
        found = dict(_attributes(value[offset : offset + length], _NEXT_HOP.size))
        yield index, _gateway(family, found)
        offset += _aligned(length)


def _gateway(family: int, found: dict[int, memoryview]) -> str:
    if _RTA_GATEWAY in found:
        return _host(family, found[_RTA_GATEWAY])
    if _RTA_VIA in found:
        # An IPv4 route by way of an IPv6 neighbour (RFC 5549): family u16, address.
        value = found[_RTA_VIA]
        return _host(AF_INET6 if len(value) == 18 else AF_INET, value[2:])
    return ""


def _attributes(body: memoryview, offset: int) -> Iterator[tuple[int, memoryview]]:
    offset = _aligned(offset)
    while len(body) - offset >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if not _ATTRIBUTE.size <= length <= len(body) - offset:
            raise BadMessage("netlink: bad length of an attribute")
        yield kind & _KIND, body[offset + _ATTRIBUTE.size : offset + length]
        offset += _aligned(length)


def _number(value: memoryview) -> int:
    if len(value) != _NUMBER.size:
        raise BadMessage("netlink: a number of another length")
    return int(_NUMBER.unpack(value)[0])


def _host(family: int, value: memoryview) -> str:
    if len(value) != (4 if family == AF_INET else 16):
        raise BadMessage("netlink: an address of another length")
    return str(ipaddress.ip_address(bytes(value)))


def _text(value: bytes) -> str:
    return value.split(b"\0", 1)[0].decode("utf-8", "replace")


def _aligned(length: int) -> int:
    return (length + 3) & ~3
