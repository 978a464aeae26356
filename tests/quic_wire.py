"""A pair of datagram paths without a network, in the time of trio's clock: delay, rate, loss, order, copies."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from ntcpsock._address import Endpoint


@dataclass
class Weather:
    """delay, jitter: seconds one way; loss, copies: shares of datagrams; rate: bytes a second; queue: bytes
    that wait at the rate before more get lost; largest: longer datagrams get lost."""

    delay: float = 0.025
    jitter: float = 0.0
    loss: float = 0.0
    copies: float = 0.0
    rate: float = 12.5e6
    queue: int = 250_000
    largest: int = 1500


class WirePath:
    """One end. sent, lost: datagrams from here on their way, so far; room: what `try_send` takes before it is full."""

    def __init__(self, weather: Weather, rng: random.Random, local: Endpoint, remote: Endpoint) -> None:
        self.local, self.remote = local, remote
        self.max_datagram_size = 1200
        self.weather = weather
        self.sent = self.lost = 0
        self.peer: WirePath
        self.error: OSError | None = None
        self.closed = False
        self.on_send: Callable[[bytes], object] = len
        self._rng = rng
        self._free_at = 0.0
        self._arriving: list[tuple[float, int, bytes]] = []
        self._count = 0
        self._changed = trio.lowlevel.ParkingLot()

    def try_send(self, datagrams: Sequence[bytes | memoryview]) -> int:
        self._check()
        for datagram in datagrams:
            self._send(bytes(datagram))
        return len(datagrams)

    def _send(self, datagram: bytes) -> None:
        weather, rng, now = self.weather, self._rng, trio.current_time()
        self.sent += 1
        self.on_send(datagram)
        self._free_at = max(self._free_at, now)
        if (
            len(datagram) > weather.largest
            or rng.random() < weather.loss
            or (self._free_at - now) * weather.rate > weather.queue
        ):
            self.lost += 1
            return
        self._free_at += len(datagram) / weather.rate
        for _ in range(2 if rng.random() < weather.copies else 1):
            self.peer.deliver(self._free_at + weather.delay + weather.jitter * rng.random(), datagram)

    def deliver(self, at: float, datagram: bytes) -> None:
        self._count += 1
        heapq.heappush(self._arriving, (at, self._count, datagram))
        self._changed.unpark_all()

    def try_receive(self) -> list[bytes]:
        self._check()
        now = trio.current_time()
        datagrams: list[bytes] = []
        while self._arriving and self._arriving[0][0] <= now and len(datagrams) < 64:
            datagrams.append(heapq.heappop(self._arriving)[2])
        return datagrams

    async def wait_readable(self) -> None:
        self._check()
        await trio.lowlevel.checkpoint()
        while not self._arriving or self._arriving[0][0] > trio.current_time():
            with trio.CancelScope() as scope:
                if self._arriving:
                    scope.deadline = self._arriving[0][0]
                await self._changed.park()
            self._check()

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()

    def interrupt(self) -> None:
        self._changed.unpark_all()

    def close(self) -> None:
        self.closed = True
        self.interrupt()

    def _check(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError("this path was closed")
        if self.error is not None:
            raise self.error


def wire_paths(weather: Weather | None = None, seed: int = 0) -> tuple[WirePath, WirePath]:
    """Two ends of one wire; both directions share the weather."""
    rng = random.Random(seed)
    weather = weather or Weather()
    near, far = Endpoint("192.0.2.1", 1001), Endpoint("192.0.2.2", 1002)
    first, second = WirePath(weather, rng, near, far), WirePath(weather, rng, far, near)
    first.peer, second.peer = second, first
    return first, second
