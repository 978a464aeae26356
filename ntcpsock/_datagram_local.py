"""A program's UDP socket as the engine knows it: where it is, whose it is, and its port at the node."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

import trio

from ntcpsock._datagram_runs import send_runs
from ntcpsock._datagram_table import Address
from ntcpsock._hop import PlainSocket
from ntcpsock._owner import datagram_owner

if TYPE_CHECKING:
    from ntcpsock._datagram_gate import Gate

log = logging.getLogger("ntcpsock")

# What is brought to a program at once.
_MOST_ARRIVED: Final = 256

# What a program has sent while its node was being opened. Full: the oldest goes.
_MAX_EARLY: Final = 64

_PKTINFO = struct.Struct("=i4s4s")  # struct in_pktinfo: interface, source, destination
IP_PKTINFO: Final = 8  # linux/in.h


class Port(Protocol):
    """The node's socket (see `ntcpsock.trio.NTCPDatagramSocket`)."""

    port: int

    @property
    def has_unsent(self) -> bool: ...
    def try_send_to(self, data: bytes, address: tuple[str, int], *, more: bool = False) -> bool: ...
    def flush(self) -> None: ...
    def largest(self, host: str, port: int | None = None) -> int | None: ...
    def check_size(self, size: int, address: tuple[str, int]) -> None: ...
    def connect(self, address: tuple[str, int] | None) -> None: ...
    def close(self) -> None: ...


class Local:
    """address: where its kernel socket is reached over loopback; inode: which socket that is; descriptor: its number
    in this process, or None where it is another's.

    failed: called with (label, port, error) where something did not arrive.
    """

    def __init__(
        self,
        address: Address,
        inode: int,
        descriptor: int | None,
        failed: Callable[[str, int, OSError], None] | None = None,
    ) -> None:
        self.address = address
        self.inode = inode
        self.descriptor = descriptor
        self.failed = failed
        self.port: Port | None = None
        #: Its connection by name.
        self.gate: Gate | None = None
        #: By which gates C code sends: from there it gets the answers.
        self.came_by: dict[tuple[str, int], Gate] = {}
        self.used = 0.0
        self.ended = False
        self.is_bound = False
        self.is_opening = False
        self._early: deque[tuple[str, int, bytes]] = deque(maxlen=_MAX_EARLY)
        # What is to be brought, each with the socket and the number that it comes from, and a copy of the descriptor.
        self._arrived: list[tuple[socket.socket, str, bytes]] = []
        self._held: socket.socket | None = None

    # The program's socket.

    def is_there(self) -> bool:
        """Whether it is still that socket which is at the address. A port may be another user's a moment later; an
        inode does not come back while its socket is open."""
        if self.descriptor is not None:
            with suppress(OSError):
                if os.fstat(self.descriptor).st_ino == self.inode:
                    return True
        return self._is_elsewhere()

    def _is_elsewhere(self) -> bool:
        """Its descriptor was closed or has moved: who has the socket now?"""
        # One that is connected is found by where it is connected to.
        gates = [*self.came_by.values(), *(() if self.gate is None else (self.gate,))]
        for remote in (("127.0.0.1", 0), *(gate.address for gate in gates)):
            found = datagram_owner(self.address, remote)
            if found is not None and found.inode == self.inode:
                return True
        return False

    def hold(self) -> socket.socket | None:
        """A copy of its descriptor: as long as that is open, the address is certainly this socket's."""
        if self.descriptor is None:
            return None
        try:
            copy = os.dup(self.descriptor)
        except OSError:
            return None
        try:
            if os.fstat(copy).st_ino == self.inode:
                return PlainSocket(fileno=copy)
        except OSError:
            pass
        os.close(copy)
        return None

    def bring(self, sender: socket.socket, source: str, payload: bytes) -> bool:
        """Have a datagram ready for it, from the number `source`, until `bring_all`; False where it is gone."""
        if not self._arrived:
            self._held = self.hold()
            if self._held is None and not self._is_elsewhere():
                return False
        self._arrived.append((sender, source, payload))
        if len(self._arrived) >= _MOST_ARRIVED:
            self.bring_all()
        return True

    def bring_all(self) -> None:
        """Send it what is ready. A full buffer loses it, as a kernel's does."""
        arrived, self._arrived = self._arrived, []
        held, self._held = self._held, None
        try:
            for (sender, source), group in itertools.groupby(arrived, key=lambda entry: entry[:2]):
                info = _PKTINFO.pack(0, socket.inet_aton(source), bytes(4))
                control = [(socket.IPPROTO_IP, IP_PKTINFO, info)]
                send_runs(sender, [payload for _, _, payload in group], control, self.address)
        except OSError as error:
            log.debug("datagrams were not brought to %s: %s", self.address, error)
        finally:
            if held is not None:
                held.close()

    # The node's.

    def send(self, label: str, port: int, payload: bytes) -> None:
        """What the program has sent, until `flush`. Kept while its node is being opened; a full path loses it."""
        self.used = trio.current_time()
        if self.port is None:
            self._early.append((label, port, payload))
            return
        try:
            self.port.try_send_to(payload, (label, port), more=True)
        except OSError as error:
            self.fail(label, port, error)
        except trio.ClosedResourceError:
            self.port = None  # the node has failed, and is opened anew
            self._early.append((label, port, payload))

    def flush(self) -> None:
        """The last of what the program has sent at once."""
        if self.port is not None:
            self.port.flush()

    @property
    def has_unsent(self) -> bool:
        """Whether something that the program has sent waits for a path."""
        return bool(self._early) or (self.port is not None and self.port.has_unsent)

    def take_port(self, port: Port) -> None:
        """Its node is open."""
        self.port = port
        self.say_target()
        while self._early:
            self.send(*self._early.popleft())
        self.flush()

    def say_target(self) -> None:
        """To whom it is connected: the node drops what comes from others, and tells them."""
        if self.port is not None:
            self.port.connect(None if self.gate is None else self.gate.key)

    def fail_early(self, error: OSError) -> None:
        """The node cannot be opened."""
        for label, port in dict.fromkeys((label, port) for label, port, _ in self._early):
            self.fail(label, port, error)
        self._early.clear()

    def fail(self, label: str, port: int, error: OSError) -> None:
        if self.failed is not None:
            self.failed(label, port, error)
        if self.gate is not None and self.gate.key == (label, port):
            self.gate.refuse()

    def end(self) -> None:
        self.ended = True
        if self.port is not None:
            self.port.close()
            self.port = None
        if self.gate is not None:
            self.gate.close()
            self.gate = None
