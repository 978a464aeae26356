"""Without encryption: sockets of the application that are the TCP connection to the peer themselves.

Out: a fresh, blocking IPv4 socket lends its descriptor to the dial, and becomes the connection if its attempt wins.
In: `NTCPSocket.accept` takes the arrived connection in place of the loopback hop that announced it. Wherever a
descriptor may have been registered, copied or aimed somewhere already, the connection is pumped instead.
"""

from __future__ import annotations

import os
import socket as _stdlib
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from ntcpsock import _known

if TYPE_CHECKING:
    from ntcpsock._config import Config
    from ntcpsock._engine import Engine
    from ntcpsock._pump import Stream
    from ntcpsock._socket import NTCPSocket

_plain = _stdlib.socket
_TCP, _SOCKET, _IP = _stdlib.IPPROTO_TCP, _stdlib.SOL_SOCKET, _stdlib.IPPROTO_IP

# What an accepted socket has from its listener (socket(7), tcp(7)), as far as programs set it there.
_INHERITED = tuple(
    (level, getattr(_stdlib, name), size)
    for level, name, size in (
        (_SOCKET, "SO_KEEPALIVE", 4),
        (_SOCKET, "SO_LINGER", 8),
        (_SOCKET, "SO_OOBINLINE", 4),
        (_SOCKET, "SO_RCVTIMEO", 16),
        (_SOCKET, "SO_SNDTIMEO", 16),
        (_SOCKET, "SO_RCVLOWAT", 4),
        (_SOCKET, "SO_PRIORITY", 4),
        (_IP, "IP_TOS", 4),
        (_IP, "IP_TTL", 4),
        (_TCP, "TCP_USER_TIMEOUT", 4),
        (_TCP, "TCP_KEEPIDLE", 4),
        (_TCP, "TCP_KEEPINTVL", 4),
        (_TCP, "TCP_KEEPCNT", 4),
    )
    if hasattr(_stdlib, name)
)
_BUFFERS = (_stdlib.SO_RCVBUF, _stdlib.SO_SNDBUF)


class Punched(NamedTuple):
    """What a dial returns where the application's own socket became the connection."""

    stream: Stream
    own_label: str

    def give_up(self) -> None:
        """Nobody waits for it any more: the descriptor is the application's, as after an interrupted connect."""


def lend(sock: NTCPSocket, engine: Engine, config: Config | None) -> int | None:
    """A duplicate of the descriptor for the dial; None where the socket cannot be the connection itself."""
    if (config or engine.config).encryption != "off" or not sys.platform.startswith("linux"):
        return None
    if sock.family != _stdlib.AF_INET or _plain.getsockname(sock)[1] != 0:
        return None
    return os.dup(sock.fileno())


def settle(sock: NTCPSocket, timeout: float | None) -> None:
    """After a dial: what `setblocking` decides is a flag of the open file, which the engine has changed."""
    with suppress(OSError):  # closed meanwhile
        _plain.settimeout(sock, timeout)


def remember(sock: NTCPSocket, connection: _known.Connection) -> None:
    """Objects that are made for this descriptor later find their peer. Raises OSError where it was closed."""
    _known.enter_punched(_known.ends(_plain.getsockname(sock), _plain.getpeername(sock)), connection)


class Claim:
    """An arrived connection that `accept` may take. Shared by the engine's thread and the application's.

    settled: called once, in the thread of whoever settles it.
    """

    def __init__(self, sock: _stdlib.socket, settled: Callable[[], None]) -> None:
        self._socket: _stdlib.socket | None = sock
        self._lock = threading.Lock()
        self._settled = settled
        self.taken = False

    def take(self) -> _stdlib.socket | None:
        """In the application's thread: the connection, or None where it is pumped already."""
        with self._lock:
            sock, self._socket = self._socket, None
            self.taken = sock is not None
        if sock is not None:
            self._settled()
        return sock

    def decline(self) -> None:
        """It is to be pumped."""
        with self._lock:
            sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()
            self._settled()


def take_over(listener: NTCPSocket, hop: int, sock: _stdlib.socket) -> int:
    """Make of the connection `sock` what `accept` returns: blocking, with the options of its listener. Closes the
    descriptor `hop`, in whose place it comes; returns its own."""
    os.close(hop)
    with _plain() as fresh:
        for level, option, size in _INHERITED:
            with suppress(OSError):
                value = _plain.getsockopt(listener, level, option, size)
                if value != _plain.getsockopt(fresh, level, option, size):
                    _plain.setsockopt(sock, level, option, value)
        for option in _BUFFERS:
            size = _plain.getsockopt(listener, _SOCKET, option)
            if size != _plain.getsockopt(fresh, _SOCKET, option):
                _plain.setsockopt(sock, _SOCKET, option, size // 2)  # Linux says twice what was set
    descriptor = sock.detach()
    os.set_blocking(descriptor, True)
    return descriptor
