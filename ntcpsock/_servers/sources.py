"""Where the broker's datagrams come from and go to: an address of UDP, or one connection over TCP."""

from __future__ import annotations

from typing import NamedTuple

from ntcpsock._address import Endpoint


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
