"""The TURN driver over real sockets against servers that misbehave; and the paths' waits, queues and ends."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio
from stun_support import own_endpoint, udp_socket
from turn_support import CLIENT, PEER, FakeServer

from ntcpsock._address import Endpoint, TurnAddress, TurnTransport
from ntcpsock._traversal.turn.allocation import MAX_UNCLAIMED, TurnAllocation
from ntcpsock._traversal.turn.credentials import TurnServer
from ntcpsock._traversal.turn.driver import run_allocation
from ntcpsock._traversal.turn.message import encode_channel_data
from ntcpsock._traversal.turn.path import MAX_QUEUED, TurnPath
from ntcpsock._traversal.turn.transport import MOST_UNSENT, TurnError, open_transport

DEADLINE = 30


class Served:
    """A `FakeServer` on a UDP socket; `say` sends the client anything from there."""

    def __init__(self, server: FakeServer, sock: trio.socket.SocketType) -> None:
        self.server = server
        self.socket = sock
        self.client: tuple[str, int] | None = None

    async def run(self) -> None:
        """Until a test closes the socket."""
        with suppress(trio.ClosedResourceError):
            while True:
                data, self.client = await self.socket.recvfrom(65_535)
                for answer in self.server.handle(data):
                    await self.say(answer)

    async def say(self, data: bytes) -> None:
        assert self.client is not None
        await self.socket.sendto(data, self.client)


def turn_server(endpoint: Endpoint, transport: TurnTransport = "udp") -> TurnServer:
    return TurnServer(TurnAddress(*endpoint, transport), "u", "p")


@asynccontextmanager
async def allocated(server: FakeServer | None = None) -> AsyncIterator[tuple[Served, TurnAllocation]]:
    with await udp_socket() as sock, trio.fail_after(DEADLINE):
        served = Served(server or FakeServer(), sock)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.run)
            async with trio.open_nursery() as keeper:
                allocation: TurnAllocation = await keeper.start(
                    run_allocation, turn_server(own_endpoint(sock))
                )
                yield served, allocation
                keeper.cancel_scope.cancel()
            assert not served.server.allocated, "a cancelled allocation was not given back"
            nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.005)


async def path_to_peer(allocation: TurnAllocation) -> TurnPath:
    await allocation.permit(PEER.host)
    return allocation.path(PEER)


def from_peer(served: Served, data: bytes) -> bytes:
    unit = served.server.from_peer(PEER, data)
    assert unit is not None
    return unit


# --- what strangers and servers send -----------------------------------------------------------


async def test_only_the_server_is_heard() -> None:
    async with allocated() as (served, allocation):
        path = await path_to_peer(allocation)
        with await udp_socket() as stranger, await udp_socket("127.0.0.2") as other:
            for sock in (stranger, other):
                assert served.client is not None
                await sock.sendto(from_peer(served, b"forged"), served.client)
        await served.say(from_peer(served, b"real"))
        await path.wait_readable()
        assert path.try_receive() == [b"real"]


async def test_a_flood_is_bounded_and_counted() -> None:
    async with allocated() as (served, allocation):
        path = await path_to_peer(allocation)
        await until(lambda: bool(served.server.channels))
        for _ in range(50):
            await served.say(encode_channel_data(0x4FF0, b"of nobody", padded=False))
            await served.say(b"\x00\x01 no message at all")
        await until(lambda: sum(allocation.dropped.values()) == 100)
        assert allocation.dropped == {"unknown channel": 50, "bad message": 50}
        # More than the queue holds, in portions that the kernel's buffer holds.
        for _ in range(MAX_QUEUED // 32 + 2):
            for _ in range(32):
                await served.say(from_peer(served, b"x"))
            await trio.sleep(0.01)
        await until(lambda: path.dropped > 0)
        received = 0
        while data := path.try_receive():
            assert len(data) <= 64
            received += len(data)
        assert received == MAX_QUEUED
        path.close()
        assert allocation.dropped["queue full"] == path.dropped


async def test_datagrams_that_nobody_takes_are_bounded() -> None:
    async with allocated() as (served, allocation):
        await allocation.permit(PEER.host)
        for _ in range(MAX_UNCLAIMED * 2):
            await served.say(from_peer(served, b"early"))
        await until(lambda: allocation.dropped["nobody takes it"] == MAX_UNCLAIMED)
        path = allocation.path(PEER)
        assert len(path.try_receive()) == MAX_UNCLAIMED
        await served.say(from_peer(served, b"in time"))
        await path.wait_readable()
        assert path.try_receive() == [b"in time"]


async def test_the_owner_of_checks_takes_what_comes() -> None:
    taken: list[tuple[bytes, Endpoint]] = []
    ends: list[OSError] = []
    async with allocated() as (served, allocation):
        await allocation.permit(PEER.host)
        allocation.take_over(lambda data, source: taken.append((data, source)), ends.append)
        await served.say(from_peer(served, b"check"))
        await until(lambda: bool(taken))
        assert taken == [(b"check", PEER)]
        allocation.bind(PEER)
        await until(lambda: bool(served.server.channels))
        assert allocation.try_send_to([b"answer"], PEER) == 1
        await until(lambda: bool(served.server.to_peers))
        assert served.server.to_peers == [(PEER, b"answer", True)]
    assert [error.errno for error in ends] == [errno.ECONNABORTED]


async def test_a_server_of_something_else_over_tcp() -> None:
    async def speak(stream: trio.SocketStream) -> None:
        await stream.send_all(b"SSH-2.0-OpenSSH_9.2\r\n")
        await trio.sleep_forever()

    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, speak, 0, host="127.0.0.1"))
            server = turn_server(own_endpoint(listener.socket), "tcp")
            with pytest.raises(TurnError) as caught:
                await nursery.start(run_allocation, server)
            assert caught.value.errno == errno.EPROTO
            assert "does not speak TURN" in str(caught.value)
            nursery.cancel_scope.cancel()


async def test_a_server_that_hangs_up_over_tcp() -> None:
    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)

    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, hang_up, 0, host="127.0.0.1"))
            with pytest.raises(TurnError, match="TURN server"):
                await nursery.start(run_allocation, turn_server(own_endpoint(listener.socket), "tcp"))
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("host", ["224.0.0.1", "0.0.0.0", "255.255.255.255"])
async def test_a_server_that_sends_us_nowhere(host: str) -> None:
    server = FakeServer(alternate=Endpoint(host, 3478))
    server.refusals[3].append(300)
    with pytest.raises(ExceptionGroup) as caught:
        async with allocated(server):
            pass
    found = caught.value.subgroup(lambda error: isinstance(error, TurnError) and error.errno == errno.EPROTO)
    assert found is not None


async def test_an_allocation_that_is_taken_for_an_earlier_one_comes_from_another_port() -> None:
    server = FakeServer()
    server.refusals[3].extend([437, 437])
    async with allocated(server) as (_, allocation):
        assert allocation.mapped == CLIENT
        assert server.seen == ["ALLOCATE"] * 3


async def test_icmp_errors_do_not_end_an_allocation() -> None:
    """Anybody can forge them, and a server that is started again has not gone."""
    async with allocated() as (served, allocation):
        path = await path_to_peer(allocation)
        port = own_endpoint(served.socket).port
        served.socket.close()
        for _ in range(5):
            path.try_send([b"into the void"])
            await trio.sleep(0.01)
        assert allocation.dropped["ICMP errors"] > 0
        assert path.try_receive() == []
        served.socket = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        await served.socket.bind(("127.0.0.1", port))
        await served.say(from_peer(served, b"back again"))
        await path.wait_readable()
        assert path.try_receive() == [b"back again"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.run)
            allocation.close()
            await until(lambda: not served.server.allocated)
            served.socket.close()
            nursery.cancel_scope.cancel()


# --- paths -------------------------------------------------------------------------------------


async def test_a_path_as_carriers_use_it() -> None:
    async with allocated() as (served, allocation):
        path = await path_to_peer(allocation)
        with pytest.raises(TurnError, match="already"):
            allocation.path(PEER)
        assert path.try_send([b"one", memoryview(b"two"), bytes(1200)]) == 3
        await until(lambda: len(served.server.to_peers) == 3)
        assert [data for _, data, _ in served.server.to_peers] == [b"one", b"two", bytes(1200)]
        with trio.fail_after(1):
            await path.wait_writable()
        with trio.move_on_after(0.01) as scope:
            await path.wait_readable()
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_closed, path.wait_readable)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await path.wait_readable()
            path.interrupt()
        path.interrupt()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_closed, path.wait_readable)
            await trio.testing.wait_all_tasks_blocked()
            path.close()
        for use in (path.try_receive, lambda: path.try_send([b""])):
            with pytest.raises(trio.ClosedResourceError):
                use()
        path.close()
        again = allocation.path(PEER)
        await served.say(from_peer(served, b"for the next"))
        await again.wait_readable()
        assert again.try_receive() == [b"for the next"]


async def expect_closed(wait: Callable[[], object]) -> None:
    with pytest.raises(trio.ClosedResourceError):
        await wait()  # type: ignore[misc]


async def test_a_peer_that_is_no_longer_served() -> None:
    async with allocated() as (served, allocation):
        path = await path_to_peer(allocation)
        allocation._machine._peers.permissions[PEER.host].due = trio.current_time()
        served.server.refusals[8].append(403)
        allocation._arm()
        await path.wait_readable()
        with pytest.raises(TurnError, match="does not allow") as caught:
            path.try_receive()
        assert caught.value.errno == errno.EACCES


async def test_a_slow_stream_takes_so_much_and_no_more() -> None:
    """A server that does not read: the path refuses, and goes on when there is room."""
    read = trio.Event()

    async def idle(stream: trio.SocketStream) -> None:
        await read.wait()
        while await stream.receive_some(1_000_000):
            pass

    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, idle, 0, host="127.0.0.1"))
            transport = await open_transport(TurnAddress(*own_endpoint(listener.socket), "tcp"))
            nursery.start_soon(transport.run)
            unit = bytes(65_536)
            taken = 0
            while True:
                if transport.try_send(unit):
                    taken += 1
                    continue
                # The kernel may still take some of what waits.
                with trio.move_on_after(0.3) as scope:
                    await transport.wait_writable()
                if scope.cancelled_caught:
                    break
            assert not transport.try_send(bytes(MOST_UNSENT))
            assert transport.try_send(bytes(1000), request=True), "our own requests find room"
            read.set()
            await transport.wait_writable()
            assert transport.try_send(unit)
            transport.close()
            with pytest.raises(OSError, match="TURN server"):
                transport.try_send(unit)
            nursery.cancel_scope.cancel()
