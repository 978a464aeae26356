"""The servers that a broker tells of. Where it says 0.0.0.0 or ::, the one that shares its host is meant: we know best
how that is reached from here."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from msgspec import structs

from ntcpsock._address import BrokerAddress, Endpoint
from ntcpsock._traversal.broker.fields import RelayPlace
from ntcpsock._traversal.broker.message import Welcome
from ntcpsock._traversal.broker.transport import Destination
from ntcpsock._traversal.relay.told import ToldRelay
from ntcpsock._traversal.relay.tunnel import TlsRelay, Tunnels

_UNSPECIFIED: Final = ("0.0.0.0", "::")


def with_hosts(welcome: Welcome, places: Sequence[Destination]) -> Welcome:
    """Its STUN servers that share the broker's host have an address of `places`, where that is known to be; left out
    where there is none of their family."""
    stun = []
    for server in welcome.stun:
        host: str | None = server.host
        if ipaddress.ip_address(server.host).is_unspecified:
            family = socket.AF_INET6 if server.is_ipv6 else socket.AF_INET
            host = next((str(address[0]) for known, address in places if known == family), None)
        if host is not None:
            stun.append(Endpoint(host, server.port))
    return structs.replace(welcome, stun=tuple(stun))


def relay_at(
    place: RelayPlace, broker_host: str, broker: BrokerAddress, tunnels: Tunnels, ca_file: Path | None
) -> Endpoint:
    """A relay, of which the broker has told `place`, as what is dialled; a TlsRelay where TLS is spoken to it.

    broker_host: where the broker is reached, maybe a name."""
    is_tls = place.tls or (broker.tls and not place.port)
    is_ours = place.host in _UNSPECIFIED
    host, port = broker_host if is_ours else place.host, place.port or broker.port
    told = str(place)
    if is_tls:
        return TlsRelay.at(host, port, ca_file, tunnels, told, place.load)
    return ToldRelay.make(host, port, told, place.load)
