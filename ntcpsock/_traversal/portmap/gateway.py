"""The router that this machine sends to whatever has no better route: whom to ask for a port."""

from __future__ import annotations

import socket
import struct
import sys
from pathlib import Path

_ROUTES = Path("/proc/net/route")

# linux/route.h
_RTF_UP = 0x1
_RTF_GATEWAY = 0x2


class NoGateway(OSError):
    """There is nobody to ask; the text says why."""


def default_gateway() -> str:
    """The IPv4 address of the default route's gateway. Raises NoGateway; systems other than Linux do not tell it
    without further ado."""
    if not sys.platform.startswith("linux"):
        raise NoGateway(f"the default gateway is not known on {sys.platform}")
    try:
        table = _ROUTES.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise NoGateway(f"{_ROUTES}: {error}") from error
    gateway = parse_routes(table)
    if gateway is None:
        raise NoGateway("no default route through a gateway")
    return gateway


def parse_routes(table: str) -> str | None:
    """The gateway of the default route with the lowest metric in a table of /proc/net/route's form (proc(5))."""
    best: tuple[int, str] | None = None
    for line in table.splitlines()[1:]:
        fields = line.split()
        try:
            destination, gateway, flags, metric, mask = (
                int(fields[n], base) for n, base in ((1, 16), (2, 16), (3, 16), (6, 10), (7, 16))
            )
        except (IndexError, ValueError):
            continue
        wanted = _RTF_UP | _RTF_GATEWAY
        if destination or mask or flags & wanted != wanted:
            continue
        # The kernel prints the number that the four octets are on this machine.
        address = socket.inet_ntoa(struct.pack("=I", gateway))
        if best is None or metric < best[0]:
            best = metric, address
    return None if best is None else best[1]
