"""The loopback hops: how an application's socket and the engine's end of it find each other safely.

Out: the application's socket connects to one listener of the engine. Only source addresses that were
announced are let in, and a pump starts only when the application's own `connect` has succeeded: a
connection's four numbers belong to one socket, so whoever was faster from the same source is found out.

In: the engine connects to the application's listener, from the number of the peer and, where it is free, the
port of the peer's socket. The address is noted before it connects; `accept` lets in nothing else. That it is
the application's socket that listens there, the engine asks the kernel before any byte goes.
"""

from __future__ import annotations

import errno
import logging
import socket
import weakref
from contextlib import suppress
from typing import Any, Protocol

import trio

from ntcpsock import _known
from ntcpsock._arrivals import Address, Arrival, Arrivals
from ntcpsock._pump import Stream, abort
from ntcpsock._punched import Claim
from ntcpsock._socket import NTCPSocket
from ntcpsock._source_port import bind_hop

log = logging.getLogger("ntcpsock")

# The class that the system's module has before anybody replaces it: the engine's own sockets are plain.
# Not `socket.socket`: this module is first imported when the engine starts, after `install()`.
PlainSocket: type[socket.socket] = NTCPSocket.__mro__[1]

# How long a dialled stream waits for the application's socket: it comes over loopback.
ARRIVAL_DEADLINE = 10.0

# Each engine socket, so that a forked child can close its copies.
open_hops: weakref.WeakSet[socket.socket] = weakref.WeakSet()

_LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def loopback(family: int) -> str:
    """The loopback address of AF_INET or AF_INET6. Raises OSError (EAFNOSUPPORT) for other families."""
    try:
        return _LOOPBACK[socket.AddressFamily(family)]
    except (KeyError, ValueError):
        raise OSError(errno.EAFNOSUPPORT, "names are reached over AF_INET and AF_INET6 sockets") from None


def new_hop(family: int) -> socket.socket:
    hop = PlainSocket(family, socket.SOCK_STREAM)
    hop.setblocking(False)
    open_hops.add(hop)
    return hop


class Dialled:
    """A stream that is up and waits for the socket of the application that dialled it."""

    def __init__(self, stream: Stream, own_label: str, door: Door) -> None:
        self.stream = stream
        self.own_label = own_label
        self.address = door.address
        self._door = door
        self._source: Address | None = None
        self.ends: _known.Ends | None = None
        self._hop: socket.socket | None = None
        self._arrived = trio.Event()
        self._confirmed = trio.Event()
        self._given_up = False

    def announce(self, source: Address) -> None:
        """In the application's thread: its socket will come from `source`."""
        self._source = source
        self.ends = _known.ends(source, self.address)
        _known.enter(self.ends, self.stream, self.own_label, None)
        self._door.expected[source] = self

    def arrived(self, hop: socket.socket) -> None:
        self._hop = hop
        self._arrived.set()

    def confirm(self) -> None:
        """The application's connect has succeeded: what arrived from its source is its socket."""
        self._confirmed.set()

    @property
    def confirmed(self) -> bool:
        return self._confirmed.is_set()

    def give_up(self) -> None:
        """The application's connect failed or was interrupted."""
        self._given_up = True
        self._arrived.set()
        self._confirmed.set()

    async def take(self) -> socket.socket | None:
        """The engine's end of the hop, or None where the application did not come in time."""
        with trio.move_on_after(ARRIVAL_DEADLINE):
            await self._arrived.wait()
            await self._confirmed.wait()
        if self._source is not None:
            self._door.expected.pop(self._source, None)
        if self._hop is not None and (self._given_up or not self._confirmed.is_set()):
            abort(self._hop)
            return None
        return self._hop


class Door:
    """The engine's loopback listener for the sockets of this process that connect by name."""

    def __init__(self, family: int) -> None:
        self.expected: dict[Address, Dialled] = {}
        self.strangers = 0
        self._listener = new_hop(family)
        self._listener.bind((loopback(family), 0))
        self._listener.listen(1024)
        self.address: Any = self._listener.getsockname()

    async def run(self) -> None:
        """Accept for ever; a stranger's connection is closed at once."""
        try:
            while True:
                await self._accept_one()
        finally:
            self._listener.close()

    async def _accept_one(self) -> None:
        # accept() makes whatever class the socket module names at the time; the engine wants plain ones.
        plain: Any = self._listener
        try:
            descriptor, source = plain._accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            await trio.lowlevel.wait_readable(self._listener)
            return
        except OSError as error:
            # As trio.serve_listeners does it: descriptors and memory come back by themselves.
            log.warning("a program cannot be connected: %s", error)
            await trio.sleep(0.1)
            return
        hop = PlainSocket(fileno=descriptor)
        open_hops.add(hop)
        dialled = self.expected.pop(source[:2], None)
        if dialled is None:
            self.strangers += 1
            abort(hop)
        else:
            dialled.arrived(hop)


class Reachable(Protocol):
    """The application's listening socket, as the engine knows it."""

    @property
    def name(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def family(self) -> int: ...
    @property
    def target(self) -> Any: ...
    @property
    def arrivals(self) -> Arrivals: ...
    def is_there(self) -> bool: ...


async def connect_hop(
    listening: Reachable, number: str, arrival: Arrival, claim: Claim | None = None
) -> socket.socket:
    """Connect to the application's listener, coming from the peer's `number`.

    claim: what `accept` may take instead.

    Raises OSError; ECONNREFUSED says that the application has closed its listener. No byte goes to who may listen
    at its address now: the listener is looked at after the connection is made too.
    """
    hop = new_hop(listening.family)
    source: Address | None = None
    # 127.64.0.0/10 is not configured on every system, and AF_INET6 has no such range.
    host = number if listening.family == socket.AF_INET else None
    try:
        bound = bind_hop(hop, host, loopback(listening.family), arrival.peer.source_port)
        source = bound[:2]
        listening.arrivals.announce(source, arrival)
        if claim is not None:
            listening.arrivals.offer(source, claim)
        _known.enter(_known.ends(listening.target, source), arrival, listening.name, listening.port)
        if not listening.is_there():
            raise OSError(errno.ECONNREFUSED, "the program does not listen any more")
        with suppress(BlockingIOError):
            hop.connect(listening.target)
        await trio.lowlevel.wait_writable(hop)
        error = hop.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not error and not listening.is_there():
            error = errno.ECONNREFUSED
        if error:
            raise OSError(error, "the program does not listen any more")
    except BaseException:
        if source is not None:
            listening.arrivals.withdraw(source, arrival)
            _known.leave(_known.ends(listening.target, source))
        hop.close()
        raise
    return hop
