"""What happens to the path of a QUIC connection: silence, breaks, a NAT that forgets, datagrams that are too large."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing
from quic_support import handshake, socket_paths
from quic_wire import Weather, wire_paths

from ntcpsock._address import Endpoint
from ntcpsock._session.quic.carrier import IDLE_TIMEOUT, QuicCarrier
from ntcpsock._session.socket_path import SocketPath

PATIENCE = 30.0  # seconds, for what takes none


async def say(source: QuicCarrier, target: QuicCarrier, text: bytes) -> None:
    """`text` goes from one end to the other, within 10 seconds."""
    assert source.try_send(text) == len(text)
    await receive(target, text)


async def receive(target: QuicCarrier, text: bytes) -> None:
    """`text` arrives within 10 seconds."""
    with trio.fail_after(10):
        got, buffer = b"", memoryview(bytearray(100))
        while len(got) < len(text):
            await target.wait_readable()
            got += bytes(buffer[: target.try_receive_into(buffer) or 0])
    assert got == text


async def test_signs_of_life_keep_a_silent_connection(autojump_clock: trio.testing.MockClock) -> None:
    near, far = wire_paths()
    async with trio.open_nursery() as nursery:
        client, server = await handshake(nursery, near, far, keep_alive=10)
        await trio.sleep(40)
        assert client._machine.is_dormant
        sent = near.sent
        await trio.sleep(600)
        assert near.sent - sent == 60
        await say(client, server, b"still there")
        await say(server, client, b"so am I")
        nursery.cancel_scope.cancel()


async def test_a_dead_path_is_a_time_out(autojump_clock: trio.testing.MockClock) -> None:
    weather = Weather()
    async with trio.open_nursery() as nursery:
        client, server = await handshake(nursery, *wire_paths(weather))
        weather.loss = 1.0
        started = trio.current_time()
        client.try_send(b"into the void")
        for end in (client, server):
            await end.wait_readable()
            with pytest.raises(TimeoutError) as caught:
                end.try_receive_into(memoryview(bytearray(1)))
            assert caught.value.errno == errno.ETIMEDOUT
        assert IDLE_TIMEOUT - 16 <= trio.current_time() - started <= IDLE_TIMEOUT + 20
        nursery.cancel_scope.cancel()


async def test_half_a_minute_without_a_path_is_survived(autojump_clock: trio.testing.MockClock) -> None:
    weather = Weather()
    async with trio.open_nursery() as nursery:
        client, server = await handshake(nursery, *wire_paths(weather))
        weather.loss = 1.0
        client.try_send(b"patience")
        await trio.sleep(30)
        weather.loss = 0.0
        with trio.fail_after(40):
            await server.wait_readable()
        buffer = memoryview(bytearray(10))
        assert server.try_receive_into(buffer) == 8
        nursery.cancel_scope.cancel()


async def test_an_error_of_the_path_is_the_carriers(autojump_clock: trio.testing.MockClock) -> None:
    near, far = wire_paths()
    async with trio.open_nursery() as nursery:
        client, _ = await handshake(nursery, near, far)
        near.error = OSError(errno.ENETDOWN, "down")
        near.interrupt()
        await client.wait_readable()
        with pytest.raises(OSError, match="down"):
            client.try_receive_into(memoryview(bytearray(1)))
        with pytest.raises(OSError, match="down"):
            client.try_send(b"x")
        nursery.cancel_scope.cancel()
    assert near.closed
    assert far.closed


@pytest.mark.parametrize("from_client", [True, False])
async def test_large_datagrams_that_get_lost_become_small_ones(
    from_client: bool, autojump_clock: trio.testing.MockClock
) -> None:
    weather = Weather()
    near, far = wire_paths(weather)
    near.max_datagram_size = far.max_datagram_size = 1400
    async with trio.open_nursery() as nursery:
        client, server = await handshake(nursery, near, far)
        weather.largest = 1250
        source, target = (client, server) if from_client else (server, client)
        if not from_client:
            await say(client, server, b"opens the stream")
        with trio.fail_after(30):
            sent = source.try_send(bytes(200_000))
            got, buffer = 0, memoryview(bytearray(65536))
            while got < sent:
                await target.wait_readable()
                got += target.try_receive_into(buffer) or 0
        assert sent == 200_000
        nursery.cancel_scope.cancel()


async def send_datagrams(source: QuicCarrier, target: QuicCarrier, seconds: float) -> int:
    """The largest that go uncut, for so long, 20 a second; how many of the last 20 arrived."""
    arrived = 0
    for number in range(int(20 * seconds)):
        source.try_send_datagram(bytes(source.max_datagram_payload))
        await trio.sleep(0.05)
        received = len(target.try_receive_datagrams())
        arrived = received if number % 20 == 0 else arrived + received
    return arrived


@pytest.mark.parametrize("from_client", [True, False])
async def test_datagrams_of_the_application_that_get_lost_for_their_size_become_smaller(
    from_client: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """Nobody sends them again, and what else there is comes through."""
    weather = Weather(largest=1460)
    near, far = wire_paths(weather)
    near.max_datagram_size = far.max_datagram_size = 1400
    async with trio.open_nursery() as nursery:
        client, server = await handshake(nursery, near, far)
        source, target = (client, server) if from_client else (server, client)
        assert await send_datagrams(source, target, 3) >= 19
        before = source.max_datagram_payload
        assert before > 1300
        weather.largest = 1250
        assert await send_datagrams(source, target, 8) >= 19
        assert source.max_datagram_payload < 1200
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("bad", [{"loss": 0.1}, {"delay": 0.3, "jitter": 0.2}, {"copies": 0.5}])
async def test_datagrams_that_get_lost_for_other_reasons_stay_large(
    bad: dict[str, float], autojump_clock: trio.testing.MockClock
) -> None:
    weather = Weather()
    async with trio.open_nursery() as nursery:
        client, server = await handshake(nursery, *wire_paths(weather))
        await trio.sleep(5)
        assert client.max_datagram_payload > 1300
        for name, value in bad.items():
            setattr(weather, name, value)
        await send_datagrams(client, server, 60)
        assert client.max_datagram_payload > 1300
        # Where nothing at all arrives for a while, size is not why.
        loss, weather.loss = weather.loss, 1.0
        await send_datagrams(client, server, 0.5)
        weather.loss = loss
        await send_datagrams(client, server, 5)
        assert client.max_datagram_payload > 1300
        nursery.cancel_scope.cancel()


async def test_a_client_finds_out_that_larger_datagrams_fit(autojump_clock: trio.testing.MockClock) -> None:
    near, far = wire_paths(Weather(largest=1460))
    async with trio.open_nursery() as nursery:
        client, _ = await handshake(nursery, near, far)
        await trio.sleep(20)
        sizes: list[int] = []
        near.on_send = lambda datagram: sizes.append(len(datagram))
        client.try_send(bytes(100_000))
        await trio.sleep(5)
        assert 1400 < max(sizes) <= 1452
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("there", "back", "expected"), [(1500, 1500, 1452), (1300, 1500, 1200), (1500, 1300, 1200)]
)
async def test_a_server_learns_from_the_first_flight_what_fits(
    there: int, back: int, expected: int, autojump_clock: trio.testing.MockClock
) -> None:
    near, far = wire_paths(Weather(largest=there))
    far.weather = Weather(largest=back)
    async with trio.open_nursery() as nursery:
        with trio.fail_after(20):
            client, server = await handshake(nursery, near, far)
            await say(client, server, b"opens the stream")
        sizes: list[int] = []
        far.on_send = lambda datagram: sizes.append(len(datagram))
        server.try_send(bytes(100_000))
        got, buffer = 0, memoryview(bytearray(65536))
        with trio.fail_after(30):
            while got < 100_000:
                await client.wait_readable()
                got += client.try_receive_into(buffer) or 0
        # What is too large gets lost, and after some time-outs is not tried any more.
        assert expected - 40 < max(sizes[-20:]) <= expected
        nursery.cancel_scope.cancel()


class Nat:
    """Between a client and a server on loopback: what the server sees comes from a port that `rebind` changes."""

    def __init__(self, server: Endpoint) -> None:
        self.inside = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.server = server
        self.client: tuple[str, int] | None = None
        self.outside = self._bound()
        self.passing = True

    @staticmethod
    def _bound() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        return sock

    def rebind(self) -> Endpoint:
        """Forget the mapping: the old port is dead from now on."""
        self.outside.close()
        self.outside = self._bound()
        return Endpoint(*self.outside.getsockname())

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._out)
            nursery.start_soon(self._in)

    async def _out(self) -> None:
        while True:
            data, self.client = await self.inside.recvfrom(65536)
            self.outside.sendto(data, self.server)

    async def _in(self) -> None:
        while True:
            try:
                data = self.outside.recv(65536)
            except OSError:
                await trio.sleep(0.002)
                continue
            if self.client is not None:
                await self.inside.sendto(data, self.client)


@asynccontextmanager
async def paths_through_nat() -> AsyncIterator[tuple[trio.Nursery, Nat, SocketPath, SocketPath]]:
    """The client's path and the server's, and what stands between them, for as long as the block."""
    client_path, server_path = socket_paths()
    nat = Nat(server_path.local)
    await nat.inside.bind(("127.0.0.1", 0))
    client_path.retarget(Endpoint(*nat.inside.getsockname()))
    server_path.retarget(Endpoint(*nat.outside.getsockname()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(nat.run)
        yield nursery, nat, client_path, server_path
        nursery.cancel_scope.cancel()
    nat.inside.close()
    nat.outside.close()  # another one than at first, where it has rebound


def told_times(carrier: QuicCarrier) -> list[float]:
    """The times that its machine is told from now on, in this order."""
    machine, times = carrier._machine, []

    def recording(step: Callable[..., Any], position: int) -> Callable[..., Any]:
        def recorded(*arguments: Any) -> Any:
            times.append(arguments[position])
            return step(*arguments)

        return recorded

    machine.receive = recording(machine.receive, 2)  # type: ignore[method-assign]
    machine.datagrams_to_send = recording(machine.datagrams_to_send, 0)  # type: ignore[method-assign]
    return times


async def test_a_nat_that_rebinds_again_and_again_is_followed() -> None:
    async with paths_through_nat() as (nursery, nat, client_path, server_path):
        client, server = await handshake(nursery, client_path, server_path)
        times = told_times(server)
        for number in range(8):
            place = nat.rebind()
            await say(client, server, b"from elsewhere %d" % number)
            await say(server, client, b"I see %d" % number)
            with trio.fail_after(PATIENCE):  # what proves the new address may come behind these words
                while server.remote != place:
                    await trio.sleep(0.01)
        assert server._driver.moves == 8
        # An answer that seems to come before its question ends a connection.
        assert times == sorted(times)


async def test_a_nat_that_rebinds_while_a_connection_is_dormant_is_followed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ntcpsock._session.quic.dormancy.REST_AFTER", 0.05)
    async with paths_through_nat() as (nursery, nat, client_path, server_path):
        client, server = await handshake(nursery, client_path, server_path, keep_alive=0.3)
        for number in range(3):
            with trio.fail_after(PATIENCE):
                while not (client._machine.is_dormant and server._machine.is_dormant):
                    await trio.sleep(0.01)
            place = nat.rebind()
            with trio.fail_after(PATIENCE):  # the client's next sign of life comes from there
                while server.remote != place:
                    await trio.sleep(0.01)
            await say(server, client, b"I see %d" % number)
        assert server._driver.moves == 3


async def test_a_stranger_who_repeats_or_invents_moves_nothing() -> None:
    client_path, server_path = socket_paths()
    copies: list[bytes] = []
    send = client_path.try_send

    def record(datagrams: list[bytes]) -> int:
        copies.extend(bytes(datagram) for datagram in datagrams)
        return send(datagrams)

    client_path.try_send = record  # type: ignore[method-assign, assignment]
    stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    stranger.bind(("127.0.0.1", 0))
    stranger.setblocking(False)
    async with trio.open_nursery() as nursery:
        client, server = await handshake(nursery, client_path, server_path)
        await say(client, server, b"one")
        for data in (*copies, b"", b"\x40garbage" * 100, bytes([0xC3]) + bytes(1300)):
            stranger.sendto(data, server.local)
        # A packet that has not arrived yet is the worst: it is the peer's, and new.
        client_path.try_send = lambda datagrams: len(datagrams)  # type: ignore[method-assign]
        client.try_send(b"held back, ")
        client_path.try_send = record  # type: ignore[method-assign, assignment]
        client.try_send(b"and sent again")
        await receive(server, b"held back, and sent again")
        with pytest.raises(BlockingIOError):
            stranger.recv(2000)
        assert server.remote == client.local
        assert server._driver.moves == 0
        assert server_path.dropped >= len(copies)
        nursery.cancel_scope.cancel()
    stranger.close()


async def test_a_forged_source_gets_no_more_than_three_times_what_it_sent() -> None:
    """The peer's own new packet, sent from a victim's address: one answer at most, and the path stays."""
    client_path, server_path = socket_paths()
    victim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    victim.bind(("127.0.0.1", 0))
    victim.setblocking(False)
    async with trio.open_nursery() as nursery:
        client, server = await handshake(nursery, client_path, server_path)
        caught: list[bytes] = []
        send = client_path.try_send

        def catch(datagrams: list[bytes]) -> int:
            caught.extend(datagrams)
            return len(datagrams)

        client_path.try_send = catch  # type: ignore[method-assign, assignment]
        client.try_send(b"x" * 5000)
        with trio.fail_after(60):
            while not caught:  # right after the handshake nothing leaves for some milliseconds
                await trio.sleep(0.001)
        for datagram in caught:
            victim.sendto(datagram, server.local)
        await trio.testing.wait_all_tasks_blocked(0.1)
        received = 0
        with suppress(BlockingIOError):
            while True:
                received += len(victim.recv(2000))
        assert 0 < received <= 3 * sum(map(len, caught))
        assert server.remote == client.local
        client_path.try_send = send  # type: ignore[method-assign]
        await say(server, client, b"here as before")
        assert server._driver.moves == 0
        nursery.cancel_scope.cancel()
    victim.close()


async def test_stun_and_strangers_on_the_same_socket() -> None:
    near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    third = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for sock in (near, other, third):
        sock.bind(("127.0.0.1", 0))
    heard: list[tuple[bytes, Endpoint]] = []
    path = SocketPath(
        near, Endpoint(*other.getsockname()), on_stun=lambda data, source: heard.append((data, source))
    )
    stun = b"\x00\x01\x00\x00\x21\x12\xa4\x42" + bytes(12)
    for sock in (other, third):
        sock.sendto(stun, near.getsockname())
    other.sendto(b"\x40quic", near.getsockname())
    third.sendto(b"\x40stranger", near.getsockname())
    other.sendto(b"\x10dtls", near.getsockname())
    other.sendto(b"", near.getsockname())
    got: list[bytes] = []
    with trio.fail_after(5):
        while path.dropped < 3:
            await path.wait_readable()
            got += path.try_receive()
    assert got == [b"\x40quic"]
    assert heard == [(stun, Endpoint(*sock.getsockname())) for sock in (other, third)]
    plain = SocketPath(near, path.remote, on_stun=lambda data, _: len(data) == 20, plain=True)
    for data in (b"", b"\x00\x01", stun, stun + b"data that looks like it", b"\x10dtls"):
        other.sendto(data, near.getsockname())
    got = []
    with trio.fail_after(5):
        while len(got) < 4:
            await plain.wait_readable()
            got += plain.try_receive()
    assert got == [b"", b"\x00\x01", stun + b"data that looks like it", b"\x10dtls"]
    for sock in (near, other, third):
        sock.close()


@pytest.mark.parametrize("segments", [True, False])
async def test_batches_arrive_as_the_datagrams_that_they_were(segments: bool) -> None:
    near, far = socket_paths()
    near._sender._segments = near._sender._segments and segments
    datagrams = [
        bytes([64 + size % 64]) * size for size in (1200, 1200, 1200, 700, 1, 1200, 1300, 1300, 9)
    ] * 7
    assert near.try_send(datagrams) == len(datagrams)
    got: list[bytes] = []
    with trio.fail_after(5):
        while len(got) < len(datagrams):
            await far.wait_readable()
            got += far.try_receive()
    assert got == datagrams
    assert near.try_send([b"\x40" * 70_000, b"\x40next"]) == 2
    assert near.lost == 1
    await far.wait_readable()
    assert far.try_receive() == [b"\x40next"]
    near.close()
    far.close()
    with pytest.raises(trio.ClosedResourceError):
        near.try_receive()
    with pytest.raises(trio.ClosedResourceError):
        await far.wait_readable()
