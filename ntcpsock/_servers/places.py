"""The addresses at which servers listen, and those that they tell clients."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

from ntcpsock._address import is_private_address


def all_listens(listen: Sequence[str]) -> tuple[str, ...]:
    """The addresses of both families for which `listen` stands, IPv4 first, each once.

    "::" is every address of IPv4 too, and only that on a machine without IPv6.
    """
    addresses: list[str] = []
    for address in listen:
        if address != "::":
            addresses.append(address)
        else:
            addresses += ["0.0.0.0", "::"] if _has_ipv6() else ["0.0.0.0"]
    return tuple(sorted(dict.fromkeys(addresses), key=version_of))


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def reachable_address(listen: str) -> str:
    """`listen`, or the host's first address where that is the wildcard."""
    address = ipaddress.ip_address(listen)
    if not address.is_unspecified:
        return listen
    family, probe, loopback = (
        (socket.AF_INET6, "2001:db8::1", "::1")
        if address.version == 6
        else (socket.AF_INET, "192.0.2.1", "127.0.0.1")
    )
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            # Connecting a UDP socket sends nothing: it asks the kernel for the way out.
            sock.connect((probe, 9))
            return str(sock.getsockname()[0])
        except OSError:
            return loopback


def told_addresses(listen: Sequence[str]) -> list[str]:
    """Those of this host's addresses that nodes are told: the given ones, and each wildcard's first, unless that is
    private: there may be others, and it is good in one network only."""
    first = {address: reachable_address(address) for address in listen}
    return [told for address, told in first.items() if told == address or not is_private_address(told)]


def version_of(address: str) -> int:
    return ipaddress.ip_address(address).version
