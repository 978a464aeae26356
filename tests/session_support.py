"""What the session's tests share: pipes without a network, and stream pairs over real TLS."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import trio
import trio.testing

from ntcpsock._address import Endpoint
from ntcpsock._report import PathInfo, PeerInfo, Report
from ntcpsock._session.carrier import Carrier
from ntcpsock._session.stream import NTCPStream
from ntcpsock._session.tls import Carrier as TLSCarrier
from ntcpsock._session.tls import Certificate, client_handshake, make_certificate, server_handshake

_certificates: list[Certificate] = []


def certificate() -> Certificate:
    """One certificate for all tests that only need some certificate."""
    if not _certificates:
        _certificates.append(make_certificate())
    return _certificates[0]


@dataclass
class Pipe:
    """One direction of a pair of `MemoryCarrier`s."""

    capacity: int
    data: bytearray = field(default_factory=bytearray)
    ended: bool = False
    reset: bool = False
    changed: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)


class MemoryCarrier:
    """A carrier without a network. Whatever moves in either direction wakes every waiter."""

    def __init__(self, incoming: Pipe, outgoing: Pipe, *, largest_step: int = 2**30) -> None:
        self.local = Endpoint("192.0.2.1", 1)
        self.remote = Endpoint("192.0.2.2", 2)
        self.incoming = incoming
        self.outgoing = outgoing
        self.largest_step = largest_step
        self.closed = False
        self.interrupts = 0
        self.has_unsent = False
        self.ended_cleanly = True
        self.most_held = 0

    def try_send(self, data: bytes | memoryview) -> int:
        self._check()
        if self.outgoing.reset or self.incoming.reset:
            raise ConnectionResetError(104, "reset")
        if self.outgoing.ended:
            raise BrokenPipeError(32, "nobody reads")
        count = min(len(data), self.outgoing.capacity - len(self.outgoing.data), self.largest_step)
        self.outgoing.data += data[:count]
        self.most_held = max(self.most_held, len(self.outgoing.data))
        if count:
            self.outgoing.changed.unpark_all()
        return count

    def try_receive_into(self, buffer: memoryview) -> int | None:
        self._check()
        count = min(len(buffer), len(self.incoming.data), self.largest_step)
        if count:
            buffer[:count] = self.incoming.data[:count]
            del self.incoming.data[:count]
            self.incoming.changed.unpark_all()
            return count
        if self.incoming.reset:
            raise ConnectionResetError(104, "reset")
        return 0 if self.incoming.ended else None

    async def wait_writable(self) -> None:
        await self._wait(
            self.outgoing, lambda: len(self.outgoing.data) < self.outgoing.capacity or self.outgoing.ended
        )

    async def wait_readable(self) -> None:
        await self._wait(self.incoming, lambda: bool(self.incoming.data) or self.incoming.ended)

    async def _wait(self, pipe: Pipe, is_ready: object) -> None:
        assert callable(is_ready)
        self._check()
        interrupts = self.interrupts
        await trio.lowlevel.checkpoint_if_cancelled()
        if is_ready():
            await trio.lowlevel.cancel_shielded_checkpoint()
        while not is_ready():
            await pipe.changed.park()
            if self.closed or interrupts != self.interrupts:
                raise trio.ClosedResourceError

    def pending(self) -> int:
        return len(self.incoming.data)

    def unacknowledged(self) -> int | None:
        return 0

    def interrupt(self) -> None:
        self.interrupts += 1
        for pipe in (self.incoming, self.outgoing):
            pipe.changed.unpark_all()

    def close(self, *, abort: bool = False) -> None:
        if self.closed:
            return
        self.closed = True
        for pipe in (self.incoming, self.outgoing):
            pipe.ended = True
        # As TCP does: closing over unread data resets.
        self.outgoing.reset = abort or bool(self.incoming.data)
        self.interrupt()

    def _check(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError


def memory_carriers(capacity: int = 65536, largest_step: int = 2**30) -> tuple[MemoryCarrier, MemoryCarrier]:
    left, right = Pipe(capacity), Pipe(capacity)
    return (
        MemoryCarrier(left, right, largest_step=largest_step),
        MemoryCarrier(right, left, largest_step=largest_step),
    )


def make_stream(carrier: Carrier, received: bytes = b"", *, window: int = 0) -> NTCPStream:
    return NTCPStream(
        carrier,
        peer=PeerInfo("peer", "a" * 52, 80),
        path=PathInfo("tcp", "public", carrier.local, carrier.remote),
        report=Report("peer", "dialer"),
        received=received,
        window=window,
    )


def memory_streams(capacity: int = 65536, largest_step: int = 2**30) -> tuple[NTCPStream, NTCPStream]:
    first, second = memory_carriers(capacity, largest_step)
    return make_stream(first), make_stream(second)


async def tcp_pair() -> tuple[trio.socket.SocketType, trio.socket.SocketType]:
    """Two ends of one TCP connection over loopback."""
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        client = trio.socket.socket()
        await client.connect(listener.getsockname())
        server, _ = await listener.accept()
    return client, server


async def tls_carriers() -> tuple[TLSCarrier, TLSCarrier]:
    """The client's and the server's carrier of one TLS connection over loopback."""
    client, server = await tcp_pair()
    return await handshake_over(client, server)


async def tls_streams() -> tuple[NTCPStream, NTCPStream]:
    first, second = await tls_carriers()
    return make_stream(first), make_stream(second)


async def clog(stream: NTCPStream) -> None:
    """Send until no more goes, as a cancelled sender leaves it."""
    with trio.CancelScope() as scope:

        async def stop_when_stuck() -> None:
            await trio.testing.wait_all_tasks_blocked(0.05)
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_when_stuck)
            while True:
                await stream.send_all(bytes(65536))


class Tamperer:
    """A middle box between two TCP ends. `handle(from_client, data)` returns what goes on, or None to
    end that direction; without it everything passes."""

    def __init__(self) -> None:
        self.handle: Callable[[bool, bytes], bytes | None] = lambda _, data: data
        self.passed = {True: 0, False: 0}

    async def run(self, client: trio.socket.SocketType, server: trio.socket.SocketType) -> None:
        with client, server:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._copy, True, client, server)
                nursery.start_soon(self._copy, False, server, client)

    async def _copy(
        self, from_client: bool, source: trio.socket.SocketType, target: trio.socket.SocketType
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.recv(65536):
                changed = self.handle(from_client, data)
                if changed is None:
                    break
                self.passed[from_client] += len(changed)
                view = memoryview(changed)
                while view:
                    view = view[await target.send(view) :]
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextlib.asynccontextmanager
async def tampered_pair() -> AsyncIterator[tuple[trio.socket.SocketType, trio.socket.SocketType, Tamperer]]:
    """A client's and a server's socket with a Tamperer between them."""
    client, near = await tcp_pair()
    server, far = await tcp_pair()
    tamperer = Tamperer()
    with client, server:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tamperer.run, near, far)
            yield client, server, tamperer
            nursery.cancel_scope.cancel()


async def handshake_over(
    client: trio.socket.SocketType, server: trio.socket.SocketType
) -> tuple[TLSCarrier, TLSCarrier]:
    carriers: dict[str, TLSCarrier] = {}

    async def dial() -> None:
        carriers["client"] = await client_handshake(client, certificate().fingerprint)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial)
            carriers["server"] = await server_handshake(server, certificate())
    except BaseException:
        for carrier in carriers.values():
            carrier.close()
        raise
    return carriers["client"], carriers["server"]


async def receive_all(stream: NTCPStream) -> bytes:
    """Everything up to the peer's FIN."""
    parts = []
    while data := await stream.receive_some():
        parts.append(data)
    return b"".join(parts)
