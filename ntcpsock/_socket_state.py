"""What an NTCPSocket remembers beside its descriptor: its names, its listener, its pending connect."""

from __future__ import annotations

import errno
import os
import socket as _stdlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ntcpsock._engine import Listening
    from ntcpsock._parking import Parked
    from ntcpsock._portal import Portal

# How long close() waits until the port is free again, in seconds; then it is freed in the background.
_CLOSE_DEADLINE = 2.0


class Listener:
    """A listening name, shared by the sockets that `dup` made of one another."""

    def __init__(self, portal: Portal, listening: Listening) -> None:
        self.portal = portal
        self.listening = listening
        self.process = os.getpid()
        self.holders = 0
        self.failure: BaseException | None = None

    def end(self, *, wait: bool) -> None:
        """The last holder closes. In a forked child this is not ours to end."""
        self.holders -= 1
        if self.holders > 0 or self.process != os.getpid() or not self.portal.alive:
            return
        if wait:
            try:
                self.portal.call(self.portal.engine.end, self.listening, timeout=_CLOSE_DEADLINE)
                return
            except (OSError, RuntimeError):
                pass
        self.portal.soon(self.portal.engine.end_soon, self.listening)


class Named:
    """What a socket knows about its `.ntcp` names."""

    __slots__ = ("label", "listener", "peer_label", "peer_port", "port")

    def __init__(self, label: str, port: int | None) -> None:
        self.label = label  # our own name, or node id
        self.port = port  # our own port, where it is not the kernel's
        self.peer_label: str | None = None
        self.peer_port = 0
        self.listener: Listener | None = None


def leave(portal: Portal, parked: Parked) -> None:
    """The program has closed a socket that was still connecting."""
    parked.close()
    if parked.scope is not None:
        portal.soon(parked.scope.cancel)


def errno_of(error: OSError) -> int:
    """A number for SO_ERROR and connect_ex: a name that nobody has is no errno of its own."""
    if isinstance(error, _stdlib.gaierror):
        return errno.EHOSTUNREACH
    return error.errno if error.errno is not None else errno.EIO
