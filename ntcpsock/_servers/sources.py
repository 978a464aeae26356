"""Where the broker's datagrams come from and go to: an address of UDP, or one connection over TCP."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from ntcpsock._address import Endpoint
from ntcpsock._servers.datagrams import Ancillary, DatagramSocket

Way = tuple[DatagramSocket, Ancillary]


class UdpSource(Endpoint):
    """Where a datagram came from. Its class says how to send there from the address that was asked: the core keeps one
    for each node, and an attribute would take three times as much as the rest."""

    __slots__ = ()
    way: ClassVar[Way]


def sources_by(way: Way) -> type[UdpSource]:
    """The class of what comes in by `way`."""
    return type("_SourceByWay", (UdpSource,), {"__slots__": (), "way": way})


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
