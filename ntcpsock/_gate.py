"""Numbers that answer: what connects to a name's number without meeting our class gets through.

C libraries, TLS sockets of an `ssl` that was imported earlier, subprocesses: they were given a number by
`getaddrinfo`, with a port, and connect to it. There the engine listens, dials the name, and pumps. The kernel
has accepted by then, so a dial that fails is seen as a reset.

A listener for each port of each name would be impossible, and one for all ports takes root. So a gate is made
for what was resolved, with its port, and goes after a while in which nothing has come: programs of our own class
need none, and a listener at one loopback address keeps others from that port of all addresses.

Only sockets of this process's user get in. On a machine with several users everybody can connect to every
loopback address, and would speak in this node's name.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import trio

from ntcpsock import _known, _names
from ntcpsock._hop import PlainSocket, new_hop, open_hops
from ntcpsock._owner import owner
from ntcpsock._pump import Stream, abort

log = logging.getLogger("ntcpsock")

# Names with ports; the one that was resolved longest ago makes room. Its connections go on.
MOST_GATES = 256
# How long a gate waits for its first connection, in seconds. One that was used stays.
UNUSED_DEADLINE = 120.0
# Connections of one gate that are being dialled for; more wait in the kernel's queue.
_MOST_DIALLING = 128
_BACKLOG = 128
# The name's own number, and where other programs sit there (of this user's or another's), further ones.
_MOST_NUMBERS = 4

# Users whose refusal is logged.
_MOST_NAMED = 64

Key = tuple[str, int]
Dial = Callable[[str, int, int], Awaitable[tuple[str, Stream]]]
PumpHop = Callable[[socket.socket, Stream], Awaitable[None]]


class Gates:
    """The gates of one engine.

    dial: opens a stream to a name and port, from a port, and says what we are called there; pump: moves bytes to
    the end.
    """

    def __init__(self, nursery: trio.Nursery, dial: Dial, pump: PumpHop) -> None:
        self._nursery = nursery
        self._dial = dial
        self._pump = pump
        self._gates: OrderedDict[Key, _Gate] = OrderedDict()
        # Numbers and ports that cannot be listened at, so that it is said once.
        self._told: OrderedDict[Key, None] = OrderedDict()
        # The real user: an effective one may be somebody whom the program stands in for at this moment. A process may
        # have given up its user since; sockets that it made before are its own.
        self._users = {os.getuid()}
        #: Connections of other users, refused; each such user is logged once.
        self.strangers = 0
        self._refused: set[int] = set()
        #: Where the number of (label, port) answers; read by other threads.
        self.numbers: dict[Key, str] = {}

    def open(self, label: str, port: int) -> str | None:
        """Listen for `label` and `port`, or go on doing so. The number that answers; None where none can."""
        key = (label, port)
        gate = self._gates.get(key)
        if gate is not None and gate.scope.cancel_called:
            self._close(key)  # its time is over, and its task is about to find out
            gate = None
        if gate is None:
            gate = self._new_gate(label, port)
            if gate is None:
                return None
            self._gates[key] = gate
            self.numbers[key] = gate.number
            self._nursery.start_soon(self._run, gate)
            if len(self._gates) > MOST_GATES:
                self._close(next(iter(self._gates)))
        else:
            self._gates.move_to_end(key)
            gate.renew()
        return gate.number

    def release(self, port: int) -> bool:
        """The program itself wants `port` of an ordinary address: leave it. Whether a gate was there."""
        keys = [key for key in self._gates if key[1] == port]
        for key in keys:
            self._close(key)
        return bool(keys)

    def close(self) -> None:
        """Let nothing more in."""
        for key in tuple(self._gates):
            self._close(key)

    def _new_gate(self, label: str, port: int) -> _Gate | None:
        number = _names.number(label)
        for attempt in range(_MOST_NUMBERS):
            if attempt:
                number = _names.table.another(label, attempt)
            listener = new_hop(socket.AF_INET)
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((number, port))
                listener.listen(_BACKLOG)
            except OSError as error:
                listener.close()
                if error.errno != errno.EADDRINUSE or attempt == _MOST_NUMBERS - 1:
                    self._tell(label, port, error)
                    return None
            else:
                return _Gate(label, port, number, listener)
        return None

    def _tell(self, label: str, port: int, error: OSError) -> None:
        """Sockets of ours need no gate. Others get no answer, or meet the program that listens at this port of all
        addresses. A port below 1024 is often not ours to take."""
        if (label, port) in self._told:
            return
        self._told[label, port] = None
        if len(self._told) > MOST_GATES:
            self._told.popitem(last=False)
        # No warning: most programs never notice, and logging without any set-up would put it on their stderr.
        log.info("%s.ntcp:%s is not reached by number, only by ntcpsock: %s", label, port, error)

    def _close(self, key: Key) -> None:
        gate = self._gates.pop(key)
        self.numbers.pop(key, None)
        gate.scope.cancel()
        # Now, not when the task comes to it: the port may be wanted at once.
        trio.lowlevel.notify_closing(gate.listener)
        gate.listener.close()

    async def _run(self, gate: _Gate) -> None:
        try:
            with gate.scope, suppress(trio.ClosedResourceError):
                while True:
                    token = object()
                    await gate.places.acquire_on_behalf_of(token)
                    hop, source = await _accept(gate.listener)
                    if self._is_stranger(hop, source):
                        gate.places.release_on_behalf_of(token)
                        continue
                    gate.scope.deadline = math.inf
                    self._nursery.start_soon(self._lead_through, hop, source, gate, token)
        finally:
            key = (gate.label, gate.port)
            if self._gates.get(key) is gate:
                # Other threads must not be told of a number that nobody answers at.
                del self._gates[key]
                self.numbers.pop(key, None)
            gate.listener.close()

    def _is_stranger(self, hop: socket.socket, source: tuple[str, int]) -> bool:
        own = hop.getsockname()
        found = owner(source, own)
        self._users.add(os.getuid())
        if found is not None and found.user in self._users:
            return False
        self.strangers += 1
        abort(hop)
        if found is None:
            log.info("a connection to %s:%s was closed before it was seen whose it was", *own)
        elif found.user not in self._refused and len(self._refused) < _MOST_NAMED:
            self._refused.add(found.user)
            log.warning("user %s was refused at %s:%s: connections by name are this user's", found.user, *own)
        return True

    async def _lead_through(
        self, hop: socket.socket, source: tuple[str, int], gate: _Gate, token: object
    ) -> None:
        try:
            own_label, stream = await self._dial(gate.label, gate.port, source[1])
        except Exception as error:
            log.info("%s.ntcp:%s, connected to by number: %s", gate.label, gate.port, error)
            abort(hop)
            return
        except BaseException:
            abort(hop)
            raise
        finally:
            gate.places.release_on_behalf_of(token)
        # Whoever makes a socket of ours from the descriptor finds its peer.
        ends = _known.ends(source, hop.getsockname())
        _known.enter(ends, stream, own_label, None)
        try:
            await self._pump(hop, stream)
        finally:
            _known.leave(ends)


class _Gate:
    """One listener at the number of a name."""

    def __init__(self, label: str, port: int, number: str, listener: socket.socket) -> None:
        self.label = label
        self.port = port
        self.number = number
        self.listener = listener
        self.places = trio.CapacityLimiter(_MOST_DIALLING)
        self.scope = trio.CancelScope(deadline=trio.current_time() + UNUSED_DEADLINE)

    def renew(self) -> None:
        """It was resolved again."""
        self.scope.deadline = max(self.scope.deadline, trio.current_time() + UNUSED_DEADLINE)


async def _accept(listener: Any) -> tuple[socket.socket, tuple[str, int]]:
    """Raises trio.ClosedResourceError when the gate is closed."""
    while True:
        try:
            # accept() makes whatever class the socket module names at the time.
            descriptor, source = listener._accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            await trio.lowlevel.wait_readable(listener)
        except OSError as error:
            if listener.fileno() < 0:
                raise trio.ClosedResourceError from None
            log.warning("a program cannot be connected: %s", error)
            await trio.sleep(0.1)
        else:
            hop = PlainSocket(fileno=descriptor)
            hop.setblocking(False)
            open_hops.add(hop)
            return hop, source
