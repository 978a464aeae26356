"""This machine's own addresses, as far as the platform tells, and which of them a socket sends from."""

from __future__ import annotations

import _socket
import ipaddress
import socket
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress

from ntcpsock._address import is_dialable_host, is_private_address

# linux/in6.h (RFC 5014); the socket module does not export them.
_IPV6_ADDR_PREFERENCES = 72
_IPV6_PREFER_SRC_PUBLIC = 2

# linux/if_addr.h: what /proc/net/if_inet6 shows of an address.
_TEMPORARY, _DAD_FAILED, _DEPRECATED, _TENTATIVE = 0x01, 0x08, 0x20, 0x40

# Somewhere on the Internet. A connected UDP socket sends nothing: the kernel only chooses the way and the source.
_ANYWHERE6 = "2001:db8::1"


def ipv4_addresses() -> tuple[str, ...]:
    """This machine's IPv4 addresses, loopback left out. Empty where the platform does not tell."""
    found = [address for _, address in _ipv4_of_devices()]
    return tuple(address for address in found if not address.startswith("127."))


def _ipv4_of_devices() -> list[tuple[str, str]]:
    if not sys.platform.startswith("linux"):
        return []
    import fcntl

    siocgifaddr = 0x8915
    found: list[tuple[str, str]] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(sock, siocgifaddr, request)
            except OSError:  # an interface without an IPv4 address
                continue
            found.append((name, socket.inet_ntoa(answer[20:24])))
    return found


def ipv6_addresses() -> tuple[str, ...]:
    """This machine's IPv6 addresses that others may reach, the one of the default route first.

    Neither loopback nor link-local ones, nor those that are tentative, deprecated or duplicates. A temporary address
    (RFC 8981) is gone tomorrow, so it is here only where there is no lasting one of its kind (Internet-wide, or ULA).
    Where the platform does not tell: the routed one alone.
    """
    routed = _routed_ipv6()
    found = choose_ipv6(_lines("/proc/net/if_inet6")) or ([] if routed is None else [routed])
    return tuple(sorted(found, key=lambda address: address != routed))


def choose_ipv6(table: Iterable[str]) -> list[str]:
    """The addresses of `ipv6_addresses` out of the lines of Linux's /proc/net/if_inet6:
    address, interface, prefix length, scope, flags (hexadecimal), name."""
    lasting: list[str] = []
    temporary: list[str] = []
    for line in table:
        digits, _, _, _, flags, *_ = line.split()
        address = str(ipaddress.IPv6Address(int(digits, 16)))
        if int(flags, 16) & (_DAD_FAILED | _DEPRECATED | _TENTATIVE) or not is_dialable_host(address):
            continue
        (temporary if int(flags, 16) & _TEMPORARY else lasting).append(address)
    kinds = {is_private_address(address) for address in lasting}
    return lasting + [address for address in temporary if is_private_address(address) not in kinds]


def further_uplinks() -> tuple[str, ...]:
    """The addresses of a multi-homed machine's other ways to the Internet: at most one of each family.

    Each is of an interface with a default route of its own. Whether packets from that address leave there is up to
    the machine's routing rules, which nobody here evades: on purpose, they may lead through a tunnel.
    """
    devices = default_devices(_lines("/proc/net/route"))[1:]
    devices6 = default_devices6(_lines("/proc/net/ipv6_route"))[1:]
    rows6 = _lines("/proc/net/if_inet6")
    own = [address for device, address in _ipv4_of_devices() if device in devices]
    own6 = choose_ipv6(row for row in rows6 if row.split()[-1] in devices6)
    return (*own[:1], *[address for address in own6 if not is_private_address(address)][:1])


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii") as table:
            return list(table)
    except OSError:
        return []


def default_devices(table: Iterable[str]) -> list[str]:
    """The devices of Linux's /proc/net/route that have a default route, the one in use first."""
    rows = [line.split() for line in table][1:]
    defaults = [(int(row[6]), row[0]) for row in rows if row[1] == row[7] == "00000000"]
    return list(dict.fromkeys(device for _, device in sorted(defaults, key=lambda entry: entry[0])))


def default_devices6(table: Iterable[str]) -> list[str]:
    """The same out of /proc/net/ipv6_route, where numbers are hexadecimal and the route to nowhere is at "lo"."""
    rows = [line.split() for line in table]
    defaults = [
        (int(row[5], 16), row[9]) for row in rows if row[0] == "0" * 32 and row[1] == "00" and row[9] != "lo"
    ]
    return list(dict.fromkeys(device for _, device in sorted(defaults, key=lambda entry: entry[0])))


def prefer_lasting_source(sock: _socket.socket) -> None:
    """Have an IPv6 socket that is bound to no address send from a lasting one, as `ipv6_addresses` names, and not
    from a temporary one. On other systems than Linux it stays the system's choice."""
    if sys.platform.startswith("linux"):
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_ADDR_PREFERENCES, _IPV6_PREFER_SRC_PUBLIC)


def source_towards(host: str) -> str | None:
    """The own address from which this machine would now send to a numeric address; None where no way leads there.
    Nothing is sent."""
    family = _socket.AF_INET6 if ":" in host else _socket.AF_INET
    try:
        probe = _socket.socket(family, _socket.SOCK_DGRAM)
    except OSError:
        return None
    try:
        if family == _socket.AF_INET6:
            prefer_lasting_source(probe)
        probe.connect((host, 9))
        return str(probe.getsockname()[0])
    except OSError:
        return None
    finally:
        probe.close()


def _routed_ipv6() -> str | None:
    address = source_towards(_ANYWHERE6)
    return address if address is not None and is_dialable_host(address) else None
