"""A socket of the engine that stands for one port of one node, for datagrams.

One is made for each socket that is connected by name: what it sends comes here and nothing else does, so that the
kernel can tell it "connection refused" as it would for an ordinary address. And one for what C code was told by
`getaddrinfo`, where the number itself has to answer.
"""

from __future__ import annotations

import ctypes
import functools
import random
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import trio

from ntcpsock import _datagram_table, _names
from ntcpsock._datagram_local import Local
from ntcpsock._datagram_table import Address
from ntcpsock._hop import PlainSocket, open_hops

# Datagrams taken in one go, so that other tasks have their turn.
BATCH: Final = 64
LARGEST: Final = 65536
#: Bytes of the kernel's for what programs send; the system may allow less.
RECEIVE_BUFFER: Final = 4 * 1024 * 1024
# The name's own number; where that is taken (another program's socket may hold the port of all addresses), other
# ports of it.
_MOST_TRIES: Final = 64
_DYNAMIC_PORTS = range(49152, 65536)  # RFC 6335 section 6

_UNSPECIFIED = struct.pack("H14x", socket.AF_UNSPEC)  # struct sockaddr
# From where nothing comes: to a socket that is connected to it nobody can send.
_NOBODY = ("127.0.0.1", 9)

Sent = Callable[["Gate", Address, bytes], None]


class Gate:
    """label, port: what it stands for; local: the one socket that is connected to it, or None for C code's.

    sent: called with what programs send; flush: after the last of several. Raises OSError where no address is free;
    only_own: where that of the number itself is not.
    """

    def __init__(
        self,
        label: str,
        port: int,
        local: Local | None,
        sent: Sent,
        flush: Callable[[], None],
        *,
        only_own: bool = False,
    ) -> None:
        self.label = label
        self.port = port
        self.key = (label, port)
        self.local = local
        self.used = trio.current_time()
        self._sent = sent
        self._flush = flush
        self._socket: socket.socket = PlainSocket(socket.AF_INET, socket.SOCK_DGRAM)
        open_hops.add(self._socket)
        try:
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            self.address = self._bind(only_own=only_own)
        except BaseException:
            self._socket.close()
            raise
        _datagram_table.flows[self.address] = self.key

    def _bind(self, *, only_own: bool) -> Address:
        number = _names.number(self.label)
        # Explicit ports: the kernel takes one that it has chosen back when the socket is disconnected.
        ports = [self.port, *random.sample(_DYNAMIC_PORTS, _MOST_TRIES)]
        for port in ports[:1] if only_own else ports:
            with suppress(OSError):
                if port:
                    self._socket.bind((number, port))
                    return number, port
        if not only_own:
            raise OSError(f"no port of {number} is free")
        # C code can be given another number, and no other port.
        for which in range(1, 4):
            number = _names.table.another(self.label, which)
            try:
                self._socket.bind((number, self.port))
            except OSError as error:
                failure = error
            else:
                return number, self.port
        raise failure

    async def run(self) -> None:
        """Take in what programs send, until it is closed."""
        with suppress(trio.ClosedResourceError):
            while True:
                await trio.lowlevel.wait_readable(self._socket)
                self.take_all()

    def take_all(self) -> None:
        """Take in what is here."""
        try:
            for _ in range(BATCH):
                try:
                    data, source = self._socket.recvfrom(LARGEST)
                except (BlockingIOError, InterruptedError):
                    return
                except OSError:
                    if self._socket.fileno() < 0:
                        return
                    continue
                self.used = trio.current_time()
                self._sent(self, source, data)
        finally:
            self._flush()

    def bring(self, local: Local, payload: bytes) -> bool:
        """A datagram to a program, from here."""
        return local.bring(self._socket, self.address[0], payload)

    def refuse(self) -> None:
        """Let the connected program hear what it would where nobody is at a port: ECONNREFUSED.

        For the moment of one empty datagram, sent by a copy of its own descriptor, the gate lets nobody in. The
        kernel answers with ICMP, and the gate keeps its address all the time.
        """
        held = self.local.hold() if self.local is not None else None
        if held is None:
            return
        with held, suppress(OSError):
            if held.getpeername()[:2] != _datagram_table.kernel_address(self.address, held.family)[:2]:
                return
            self.take_all()
            self._socket.connect(_NOBODY)
            try:
                held.send(b"", socket.MSG_DONTWAIT)
            finally:
                _libc().connect(self._socket.fileno(), _UNSPECIFIED, len(_UNSPECIFIED))

    def close(self) -> None:
        _datagram_table.forget(self.address)
        if self._socket.fileno() >= 0:
            with suppress(RuntimeError):
                trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)
