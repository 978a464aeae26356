"""The port that a dialling socket says as its own: the listener's `accept` returns the same one.

It goes to the peer with the offer, so it must be known before the socket is bound. A socket that is not bound
stays so until its dial has succeeded, as one whose connect fails does; a socket of ours holds the port meanwhile.
"""

from __future__ import annotations

import functools
import socket as _stdlib
from contextlib import suppress
from typing import Any

_plain = _stdlib.socket
_RANGE_FILE = "/proc/sys/net/ipv4/ip_local_port_range"
# RFC 6335 section 6: the dynamic ports, where the system does not say.
_DYNAMIC = (49152, 65535)


class SourcePort:
    """The port of `sock` when it will be connected, at `host` (a loopback address) where it is unbound.

    number: 0 where none could be held; then the socket gets another one, and the peer is told nothing.
    """

    def __init__(self, sock: _stdlib.socket, host: str) -> None:
        self.number: int = _plain.getsockname(sock)[1]
        self._host = host
        self._holder: _stdlib.socket | None = None
        if self.number:
            return
        with suppress(OSError):
            self._holder = _plain(sock.family, _stdlib.SOCK_STREAM)
            self._holder.bind((host, 0))
            self.number = self._holder.getsockname()[1]

    def bind(self, sock: _stdlib.socket) -> None:
        """Give the held port to `sock`, which is unbound."""
        self.release()
        try:
            _plain.bind(sock, (self._host, self.number))
        except OSError:  # taken within these microseconds
            _plain.bind(sock, (self._host, 0))

    def release(self) -> None:
        holder, self._holder = self._holder, None
        if holder is not None:
            holder.close()


@functools.cache
def _dynamic_ports() -> tuple[int, int]:
    try:
        with open(_RANGE_FILE) as file:
            low, high = map(int, file.read().split())
    except (OSError, ValueError):
        return _DYNAMIC
    return low, high


def may_be_bound(port: int) -> bool:
    """Whether the engine binds to `port` because a peer said it: only where no program expects to listen."""
    low, high = _dynamic_ports()
    return low <= port <= high


def bind_hop(hop: _stdlib.socket, number: str | None, loopback: str, wanted: int) -> Any:
    """Bind the engine's end to the peer's `number`, and to the port `wanted` where it is free and may be bound.
    Without such an address here: to `loopback`, whose ports are for dialling sockets, and another port. Returns
    the address. Raises OSError."""
    attempts = []
    if number is not None and number != loopback:
        attempts = [(number, wanted)] if may_be_bound(wanted) else []
        attempts.append((number, 0))
    for address in attempts:
        with suppress(OSError):
            hop.bind(address)
            return hop.getsockname()
    hop.bind((loopback, 0))
    return hop.getsockname()
