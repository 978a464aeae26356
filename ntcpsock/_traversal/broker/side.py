"""A second way to the broker: a socket of the other family, or of another uplink, to prove its address."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress

import trio

from ntcpsock._traversal.broker.message import MAX_DATAGRAM
from ntcpsock._traversal.interfaces import prefer_lasting_source

# After this many seconds of silence the own address may be another one: a new socket asks the routes anew.
_LIFETIME = 2.0


class SidePath:
    """`run` receives; `send` sends at once, from any task. What cannot be sent is lost: the machine repeats it.

    source: the own address to send from; None: the one that leads to the broker.
    """

    def __init__(self, family: int, destination: tuple[object, ...], source: str | None = None) -> None:
        self.family = family
        self._destination = destination
        self._source = source
        self._socket: socket.socket | None = None
        self._last_used = 0.0
        self._opened = trio.Event()

    def aim(self, place: tuple[int, tuple[object, ...]]) -> None:
        """From now on to there, in the same family."""
        if place[1] != self._destination:
            self.close()
            self._destination = place[1]

    def send(self, datagram: bytes, now: float) -> None:
        if now - self._last_used > _LIFETIME:
            self.close()
        self._last_used = now
        with suppress(OSError):
            if self._socket is None:
                self._socket = self._open()
                self._opened.set()
            self._socket.send(datagram)

    def _open(self) -> socket.socket:
        sock = socket.socket(self.family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            if self.family == socket.AF_INET6:
                prefer_lasting_source(sock)
            if self._source is not None:
                sock.bind((self._source, 0))
            sock.connect(self._destination)
        except BaseException:
            sock.close()
            raise
        return sock

    async def run(self, take: Callable[[bytes], None]) -> None:
        """Give what arrives to `take`, until cancelled."""
        while True:
            sock = self._socket
            if sock is None:
                await self._opened.wait()
                continue
            try:
                await trio.lowlevel.wait_readable(sock)
                datagram = sock.recv(MAX_DATAGRAM + 1)
            except (trio.ClosedResourceError, OSError):
                # Closed meanwhile, nothing there after all, or what ICMP says of an earlier datagram.
                continue
            take(datagram)

    def close(self) -> None:
        """Until the next `send`."""
        if self._socket is not None:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
            self._socket = None
            self._opened = trio.Event()
