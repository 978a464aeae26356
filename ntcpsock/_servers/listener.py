"""A listening TCP socket of a server."""

from __future__ import annotations

import socket
from typing import Final

import trio

_BACKLOG: Final = 1024


def open_listener(listen: str, port: int, *, dual: bool = False, share: bool = False) -> trio.SocketListener:
    """A TCP listener on a numeric address; dual: an IPv6 wildcard takes IPv4 too; share: other processes
    of this user may listen there, too. Raises OSError, OverflowError."""
    family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        sock.bind((listen, port))
        sock.listen(_BACKLOG)
        return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    except BaseException:
        sock.close()
        raise
