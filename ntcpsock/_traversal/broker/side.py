"""Further ways to the broker: sockets of the other family, or of another uplink, to prove their addresses."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

import trio

from ntcpsock._traversal.broker.fields import MAX_DATAGRAM
from ntcpsock._traversal.broker.transport import Destination
from ntcpsock._traversal.candidate import is_loopback
from ntcpsock._traversal.interfaces import further_uplinks, prefer_lasting_source

# After this many seconds of silence the own address may be another one: a new socket asks the routes anew.
_LIFETIME = 2.0


class SidePath:
    """`run` receives; `send` sends at once, from any task. What cannot be sent is lost: the machine repeats it.

    source: the own address to send from; None: the one that leads to the broker.
    """

    def __init__(self, family: int, destination: tuple[object, ...], source: str | None = None) -> None:
        self._family = family
        self._destination = destination
        self._source = source
        self._socket: socket.socket | None = None
        self._last_used = 0.0
        self._opened = trio.Event()

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
        sock = socket.socket(self._family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            if self._family == socket.AF_INET6:
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


class Sides:
    """Those of one session, by their numbers."""

    def __init__(self) -> None:
        self._paths: list[SidePath] = []
        self._running = trio.CancelScope()

    def replace(self, places: Sequence[Destination], here: Destination | None) -> int:
        """Find out which there are now, and how many.

        places: where the broker is, the one in use first. here: that one, None where a proxy leads to it."""
        self.close()
        firsts: dict[int, Destination] = {}
        for place in places:
            firsts.setdefault(place[0], place)
        self._paths = [SidePath(*place) for family, place in firsts.items() if not here or family != here[0]]
        for source in further_uplinks():
            own = firsts.get(socket.AF_INET6 if ":" in source else socket.AF_INET)
            if own is not None and not is_loopback(str(own[1][0])):
                self._paths.append(SidePath(*own, source))
        self._running.cancel()
        return len(self._paths)

    def send(self, index: int, datagram: bytes, now: float) -> None:
        """See `SidePath`."""
        self._paths[index].send(datagram, now)

    async def run(self, take: Callable[[bytes], None]) -> None:
        """Give what arrives to `take`, until cancelled."""
        while True:
            with trio.CancelScope() as self._running:
                async with trio.open_nursery() as nursery:
                    for path in self._paths:
                        nursery.start_soon(path.run, take)
                    await trio.sleep_forever()

    def close(self) -> None:
        """All of them, until the next `send`."""
        for path in self._paths:
            path.close()
