"""A gateway on loopback that speaks NAT-PMP and PCP as it is told to, for the drivers' tests."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

LOOPBACK = "127.0.0.1"
EXTERNAL = bytes([192, 0, 2, 1])


@dataclass
class Gateway:
    """speaks: versions that are answered. epoch: what it tells. result: other than 0, every request is refused with
    it. junk: sent before each answer. grants: at most so many seconds. losses: answers that get lost first."""

    speaks: frozenset[int] = frozenset({0, 2})
    epoch: int = 1000
    result: int = 0
    junk: tuple[bytes, ...] = ()
    grants: int = 7200
    losses: int = 0
    external_port: int | None = None
    port: int = 0
    #: External port by protocol version and internal port.
    table: dict[tuple[int, int], int] = field(default_factory=dict)
    requests: list[bytes] = field(default_factory=list)
    nonces: set[bytes] = field(default_factory=set)

    def answers(self, request: bytes) -> Iterator[bytes]:
        self.requests.append(request)
        if request[0] not in self.speaks:
            return
        if self.losses:
            self.losses -= 1
            return
        yield from self.junk
        yield self._natpmp(request) if request[0] == 0 else self._pcp(request)

    def _natpmp(self, request: bytes) -> bytes:
        head = struct.pack("!BBHI", 0, 128 + request[1], self.result, self.epoch)
        if request[1] == 0:
            return head + EXTERNAL
        internal, wish, lifetime = struct.unpack("!HHI", request[4:12])
        external, lifetime = self._map(0, internal, wish, lifetime)
        return head + struct.pack("!HHI", internal, external, lifetime)

    def _pcp(self, request: bytes) -> bytes:
        (lifetime,) = struct.unpack("!I", request[4:8])
        if request[1] == 0:
            return struct.pack("!BBBBII12x", 2, 128, 0, self.result, 0, self.epoch)
        self.nonces.add(request[24:36])
        internal, wish = struct.unpack("!HH", request[40:44])
        external, lifetime = self._map(2, internal, wish, lifetime)
        head = struct.pack("!BBBBII12x", 2, 129, 0, self.result, lifetime, self.epoch)
        address = bytes(10) + b"\xff\xff" + EXTERNAL
        return head + request[24:40] + struct.pack("!HH", internal, external) + address

    def _map(self, version: int, internal: int, wish: int, lifetime: int) -> tuple[int, int]:
        if self.result:
            return 0, 0
        if lifetime == 0:
            self.table.pop((version, internal), None)
            return 0, 0
        external = self.external_port or wish or internal
        self.table[version, internal] = external
        return external, min(lifetime, self.grants)


@asynccontextmanager
async def open_gateway(gateway: Gateway, host: str = LOOPBACK) -> AsyncIterator[Gateway]:
    """Run it on a port of its own."""
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        await sock.bind((host, 0))
        gateway.port = int(sock.getsockname()[1])

        async def serve() -> None:
            while True:
                data, source = await sock.recvfrom(2048)
                for answer in gateway.answers(data):
                    await sock.sendto(answer, source)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            yield gateway
            nursery.cancel_scope.cancel()
