"""What an NTCPSocket remembers beside its descriptor: its names, its listener, its pending connect."""

from __future__ import annotations

import errno
import os
import socket as _stdlib
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ntcpsock._arrivals import Address, Arrival
    from ntcpsock._forwarding import Wishes
    from ntcpsock._inquiry import Inquiry
    from ntcpsock._listening import Listening
    from ntcpsock._parking import Parked
    from ntcpsock._portal import Portal
    from ntcpsock._punched import Claim

# How long close() waits until the port is free again, in seconds; then it is freed in the background.
_CLOSE_DEADLINE = 2.0
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # struct linger
# The class itself, whatever the module calls by this name later.
_plain = _stdlib.socket


class Listener:
    """A listening name, shared by the sockets that `dup` made of one another, and by forked processes.

    listening: None where the engine is another process's that has sent the socket; inquiry: how to ask it.
    """

    def __init__(self, portal: Portal | None, listening: Listening | None, inquiry: Inquiry | None) -> None:
        self.portal = portal
        self.listening = listening
        self.inquiry = inquiry
        self.process = os.getpid()
        self.holders = 0
        self.failure: BaseException | None = None
        # Connections that the engine did not bring, refused.
        self.strangers = 0

    @property
    def is_own(self) -> bool:
        """Whether the engine is this process's."""
        return self.listening is not None and self.process == os.getpid()

    def heed(self, wished: Wishes) -> None:
        """What the options of the listening socket mean for the connections that come in from now on."""
        if self.listening is not None and self.is_own:
            self.listening.wishes = wished

    def take(self, source: Address) -> Arrival | None:
        """What the engine brings from `source`; None for a stranger."""
        if self.listening is not None and self.is_own:
            return self.listening.arrivals.take(source)
        return None if self.inquiry is None else self.inquiry.ask(source)

    def refuse(self, descriptor: int) -> None:
        """Reset what another program of this machine has connected here: it has no business here."""
        with _plain(fileno=descriptor) as stranger, suppress(OSError):
            stranger.setsockopt(_stdlib.SOL_SOCKET, _stdlib.SO_LINGER, _RESET_AT_CLOSE)
        self.strangers += 1
        if self.strangers == 1:
            import logging

            logging.getLogger("ntcpsock").info(
                "a connection of another program to a named listener was refused"
            )

    def accepts_here(self) -> None:
        """This process calls `NTCPSocket.accept`."""
        if self.listening is not None and self.is_own:
            self.listening.arrivals.asked = True

    def claim(self, source: Address) -> Claim | None:
        """Without encryption, the connection itself that the engine announces from `source`."""
        return self.listening.arrivals.claim(source) if self.listening is not None and self.is_own else None

    def end(self, *, wait: bool) -> None:
        """The last holder closes. In a forked child this is not ours to end."""
        self.holders -= 1
        if self.portal is None or self.listening is None or self.process != os.getpid():
            return
        if self.holders > 0 or not self.portal.alive:
            return
        if wait:
            try:
                self.portal.call(self.portal.engine.listeners.end, self.listening, timeout=_CLOSE_DEADLINE)
                return
            except (OSError, RuntimeError):
                pass
        self.portal.soon(self.portal.engine.listeners.end_soon, self.listening)


class Named:
    """What a socket knows about its `.ntcp` names."""

    __slots__ = (
        "__weakref__",
        "address",
        "label",
        "listener",
        "peer_label",
        "peer_port",
        "port",
        "published",
        "shares",
    )

    def __init__(self, label: str, port: int | None) -> None:
        self.label = label  # our own name, or node id
        self.port = port  # our own port, where it is not the kernel's
        self.peer_label: str | None = None
        self.peer_port = 0
        self.listener: Listener | None = None
        # Whether the socket listens on ordinary addresses, and under the name besides.
        self.published = False
        # Where the kernel has the socket that was bound to the name.
        self.address: Address | None = None
        # Whether the socket was ready to share its address when it was bound.
        self.shares = False


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
