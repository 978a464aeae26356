"""A non-blocking connect by name: the application's descriptor waits in SYN_SENT while the engine dials.

`connect` aims the descriptor at a listener of the engine whose accept queue is full, so that the kernel
drops its SYN: to select, epoll and every event loop it is a connect in progress. When the peer is there,
the engine connects *from the listener's address to the waiting descriptor*: the SYNs have crossed, which is
TCP's simultaneous open (RFC 9293 section 3.5), and the kernel completes the connect that the application
has begun. A waiter sees one clean EPOLLOUT; nothing about the descriptor was changed on the way, and no
other program can be the other end, because the address is the engine's.

Disconnecting the descriptor (AF_UNSPEC) and aiming it anew works too, but a waiter that looks between the
two calls sees an error: 8 to 19 in 100 on two busy cores, against 0 in 1200 of this way.

A failure is one change too. The same SYN comes from the listener's address, but the descriptor's answer is
thrown away by a socket filter; then a second SYN comes from there, which the descriptor asks about (the
challenge of RFC 9293 section 3.10.7.4), and the socket that has sent it answers with a RST. What a waiter sees is
what a refused connect shows, EPOLLIN included: Twisted takes a hang-up without that for the end of a
connection. Where a system does not follow, the descriptor is aimed at a port that refuses.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
import weakref
from contextlib import suppress
from typing import Any

from ntcpsock import _forwarding, _known
from ntcpsock._hop import PlainSocket, loopback

# How many connections the waiting queue of a listener with backlog 0 may take before it is full; Linux
# takes one.
_MOST_FILLERS = 16
_TCP_SYN_SENT = 2  # linux/include/net/tcp_states.h
_TCP_CLOSE = 7
FILL_PAUSE = 0.005  # seconds for the kernel to take a filler in, or not

_UNSPECIFIED = struct.pack("H14x", 0)  # struct sockaddr with AF_UNSPEC


class CarPark:
    """Where descriptors of one family wait: `address` never answers a SYN, `refusing` answers RST."""

    def __init__(self, family: int) -> None:
        self._listener = _sharing(family)
        self._listener.bind((loopback(family), 0))
        self._listener.listen(0)
        self.address: Any = self._listener.getsockname()
        self._fillers: list[socket.socket] = []
        # Bound, so that nobody else listens there; it never listens.
        self._refusing = PlainSocket(family, socket.SOCK_STREAM)
        self._refusing.bind((loopback(family), 0))
        self.refusing: Any = self._refusing.getsockname()
        self._family = family

    def fill_one(self) -> bool:
        """Add one filler. Whether the last one but this is still waiting: then the queue is full."""
        if self._fillers and _state(self._fillers[-1]) == _TCP_SYN_SENT:
            return True
        filler = PlainSocket(self._family, socket.SOCK_STREAM)
        filler.setblocking(False)
        filler.connect_ex(self.address)
        self._fillers.append(filler)
        if len(self._fillers) > _MOST_FILLERS:
            raise OSError(errno.EOPNOTSUPP, "this system answers where a connect should wait")
        return False

    @property
    def sockets(self) -> list[socket.socket]:
        return [self._listener, self._refusing, *self._fillers]

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


#: Descriptors that wait, for forked children to leave to their parent.
waiting: weakref.WeakSet[Parked] = weakref.WeakSet()


def _sharing(family: int) -> socket.socket:
    """A socket that shares its address with the listener; the kernel allows it to the same user only."""
    sock = PlainSocket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return sock


def _state(sock: socket.socket) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


class Parked:
    """One descriptor that waits. Shared by the application's thread and the engine's."""

    def __init__(self, sock: socket.socket, family: int, park: CarPark) -> None:
        self.family = family
        self.park = park
        # The engine's own descriptor of the same open file: the application may close its own any time.
        self._twin: socket.socket | None = PlainSocket(fileno=os.dup(sock.fileno()))
        self._lock = threading.Lock()
        waiting.add(self)
        self.error: OSError | None = None
        self.connected = False
        self.told = False
        self.scope: Any = None  # the engine's, while it dials

    @property
    def pending(self) -> bool:
        """Whether the descriptor still waits. While the engine changes that, the caller waits for it."""
        with self._lock:
            return self._twin is not None

    def ends(self) -> _known.Ends | None:
        """What the connection will be known by; None where the application has closed its own."""
        with self._lock:
            return None if self._twin is None else _known.ends(self._twin.getsockname(), self.park.address)

    def wishes(self) -> _forwarding.Wishes:
        """What the options that the program has set mean for the connection to the peer."""
        with self._lock:
            return {} if self._twin is None else _forwarding.wishes(self._twin)

    def meet(self) -> socket.socket | None:
        """In the engine: the peer is there. Complete the connect; returns the engine's end, non-blocking and
        about to be connected, or None where the application has closed its own. Raises OSError."""
        with self._lock:
            if self._twin is None:
                return None
            hop = _sharing(self.family)
            try:
                hop.setblocking(False)
                hop.bind(self.park.address)
                code = hop.connect_ex(self._twin.getsockname())
                if code not in (0, errno.EINPROGRESS):
                    raise OSError(code, os.strerror(code))
            except BaseException:
                hop.close()
                raise
            self.connected = True
            self._release()
            return hop

    def fail(self, error: OSError) -> None:
        """In the engine: end the wait so that the descriptor is readable and writable with an error."""
        with self._lock:
            if self._twin is None:
                return
            self.error = error
            with suppress(OSError):
                _reset(self._twin, self.park.address)
            if _state(self._twin) != _TCP_CLOSE:
                _refuse(self._twin, self.park.refusing)
            self._release()

    def leave_to_parent(self) -> None:
        """In a forked child: the dial is the parent's, and so is the engine's descriptor."""
        self._lock = threading.Lock()
        self._release()

    def close(self) -> None:
        """The application has closed its descriptor, or is about to."""
        with self._lock:
            self._release()

    def _release(self) -> None:
        twin, self._twin = self._twin, None
        if twin is not None:
            twin.close()


_libc = ctypes.CDLL(None, use_errno=True)
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_BPF_RET = 0x06  # linux/bpf_common.h; with the constant 0: no packet gets through
_INSTRUCTION = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RET, 0, 0, 0))
_DROP_ALL = struct.pack("HP", 1, ctypes.addressof(_INSTRUCTION))  # struct sock_fprog


def _reset(sock: socket.socket, address: Any) -> None:
    """End a connect in progress to `address`, a listener of ours, as a RST does: in one change."""
    waiting = sock.getsockname()
    for deaf in (True, False):
        with _sharing(sock.family) as hop:
            if deaf:
                hop.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _DROP_ALL)
            hop.setblocking(False)
            hop.bind(address)
            hop.connect_ex(waiting)


def _refuse(sock: socket.socket, refusing: Any) -> None:
    """End a connect in progress with an error."""
    _libc.connect(sock.fileno(), _UNSPECIFIED, len(_UNSPECIFIED))
    with suppress(OSError):
        sock.connect(refusing)
