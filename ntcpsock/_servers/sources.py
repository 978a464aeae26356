"""Where the broker's datagrams come from and go to: an address of UDP, or one connection over TCP.

The core keeps one for each of its nodes, so there is a packed form too, of 30 bytes:

    way(2) | the kernel's struct sockaddr_in or sockaddr_in6, filled up with zeros (28)         UDP
    0xffff | family(2) | port(2) | address(16) | scope(2) | number(6)                           TCP
"""

from __future__ import annotations

import socket
import struct
from typing import ClassVar, Final, NamedTuple

from ntcpsock._address import Endpoint
from ntcpsock._servers.datagrams import (
    Ancillary,
    DatagramSocket,
    pack_address,
    socket_address,
    unpack_address,
)
from ntcpsock._servers.datagrams import endpoint_of as _endpoint_of

Way = tuple[DatagramSocket, Ancillary]

PACKED_LENGTH: Final = 30
#: The number of the way of endpoints that came without one, as in tests; and that of connections.
_NO_WAY: Final = 0
_CONNECTION: Final = 0xFFFF
_MOST_WAYS: Final = 0xFFFE

_WAY = struct.Struct("=H")
_TCP = struct.Struct("=HH2s16sH6s")


class UdpSource(Endpoint):
    """Where a datagram came from. Its class says how to send there from the address that was asked."""

    __slots__ = ()
    way: ClassVar[Way]
    #: The way in the packed form, as a number and as its octets.
    number: ClassVar[int]
    packed_number: ClassVar[bytes]


class Ways:
    """The classes of UdpSource of one process, by number. Numbers come round, so a way that is as old as 65,534 others
    is forgotten; who came by it is challenged at its next frame."""

    def __init__(self) -> None:
        self._classes: dict[int, type[UdpSource]] = {}
        self._last = 0

    def add(self, way: Way) -> type[UdpSource]:
        """The class of what comes in by `way`."""
        self._last = self._last % _MOST_WAYS + 1
        slots = {
            "__slots__": (),
            "way": way,
            "number": self._last,
            "packed_number": _WAY.pack(self._last),
        }
        known = self._classes[self._last] = type("_SourceByWay", (UdpSource,), slots)
        return known

    def remove(self, number: int) -> None:
        """Its socket is closed."""
        self._classes.pop(number, None)

    def get(self, number: int) -> type[UdpSource] | None:
        return self._classes.get(number)


WAYS: Final = Ways()


def sources_by(way: Way) -> type[UdpSource]:
    """The class of what comes in by `way`."""
    return WAYS.add(way)


class Connection(NamedTuple):
    """A WebSocket connection. `number` tells it from a UDP address, and from a later one with the same port."""

    host: str
    port: int
    number: int


Source = Endpoint | Connection

#: A frame and where it is to go.
Datagram = tuple[bytes, Source]


def endpoint_of(source: Source) -> Endpoint:
    """The address, as nodes are told it."""
    return Endpoint(source.host, source.port)


def pack_source(source: Source) -> bytes:
    """Its 30 bytes, the same for the same source."""
    if isinstance(source, Connection):
        host, _, scope = source.host.partition("%")
        is_ipv6 = ":" in host
        family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
        address = socket.inet_pton(family, host).ljust(16, b"\0")
        number = source.number.to_bytes(6, "little")
        scope_id = int(scope) if scope.isdecimal() else 0
        return _TCP.pack(_CONNECTION, family, source.port.to_bytes(2), address, scope_id & 0xFFFF, number)
    number_of_way, ipv6 = _NO_WAY, ":" in source.host
    if isinstance(source, UdpSource):
        number_of_way, ipv6 = source.number, source.way[0].ipv6
    return _WAY.pack(number_of_way) + pack_address(socket_address(source, ipv6))


def unpack_source(packed: bytes) -> Source:
    """What `pack_source` was given."""
    number_of_way = _WAY.unpack_from(packed)[0]
    if number_of_way == _CONNECTION:
        _, family, port, address, scope, number = _TCP.unpack(packed)
        host = socket.inet_ntop(family, address if family == socket.AF_INET6 else address[:4])
        host += f"%{scope}" if scope else ""
        return Connection(host, int.from_bytes(port), int.from_bytes(number, "little"))
    endpoint = _endpoint_of(unpack_address(packed[2:]))
    known = WAYS.get(number_of_way)
    return endpoint if known is None else known(*endpoint)


def host_of(packed: bytes) -> str:
    """The host of a packed source."""
    # Both forms of an IPv4 address have it in the same place.
    if packed.startswith(_PACKED_INET, 2):
        return socket.inet_ntoa(packed[6:10])
    # A socket for both families has IPv4 as a part of IPv6.
    if packed.startswith(_MAPPED, 10) and packed[:2] != _PACKED_CONNECTION:
        return socket.inet_ntoa(packed[22:26])
    return unpack_source(packed).host


_PACKED_INET: Final = _WAY.pack(socket.AF_INET)
_PACKED_CONNECTION: Final = _WAY.pack(_CONNECTION)
_MAPPED: Final = bytes(10) + b"\xff\xff"
