"""UDP sockets at a fresh port, which they share with the connected ones that paths get later."""

from __future__ import annotations

import _socket
import errno
from collections.abc import Sequence

from ntcpsock._traversal.interfaces import prefer_lasting_source
from ntcpsock._traversal.punch.fresh import PORT_RANGE, FreshPorts

_BIND_TRIES = 200

_fresh = FreshPorts()


def open_sockets(number: int = 0, *, ipv6: bool) -> list[_socket.socket]:
    """Those of a port that is nobody else's, of `number` where that is free: IPv4's, and IPv6's where the machine has
    it. Raises OSError (EADDRINUSE)."""
    for attempt in range(_BIND_TRIES):
        try:
            return _open_at(number if number and not attempt else _fresh.draw(), ipv6)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, f"no free UDP port between {PORT_RANGE[0]} and {PORT_RANGE[1]}")


def reopen_sockets(numbers: Sequence[int]) -> dict[int, _socket.socket]:
    """IPv4's of ports that we had before, without those that are in use. Raises OSError (EMFILE)."""
    sockets: dict[int, _socket.socket] = {}
    for number in numbers:
        try:
            sockets[number] = _open_at(number, ipv6=False)[0]
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                for sock in sockets.values():
                    sock.close()
                raise
    return sockets


def _open_at(number: int, ipv6: bool) -> list[_socket.socket]:
    families = [_socket.AF_INET, *([_socket.AF_INET6] if ipv6 and _has_ipv6() else [])]
    sockets: list[_socket.socket] = []
    try:
        for family in families:
            # Without sharing the bind fails even where others would share the port.
            bound_socket(family, number, shared=False).close()
            sockets.append(bound_socket(family, number))
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _has_ipv6() -> bool:
    try:
        _socket.socket(_socket.AF_INET6, _socket.SOCK_DGRAM).close()
    except OSError:
        return False
    return True


def bound_socket(family: int, number: int, *, shared: bool = True) -> _socket.socket:
    """At one port, shared with our other sockets. Raises OSError.

    The C class: in a patched process the class of `socket` is ours."""
    sock = _socket.socket(family, _socket.SOCK_DGRAM)
    try:
        if family == _socket.AF_INET6:
            sock.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 1)
            prefer_lasting_source(sock)
        if shared:
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
            if hasattr(_socket, "SO_REUSEPORT"):
                sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEPORT, 1)
        sock.setblocking(False)
        sock.bind(("::" if family == _socket.AF_INET6 else "0.0.0.0", number))
    except BaseException:
        sock.close()
        raise
    return sock
