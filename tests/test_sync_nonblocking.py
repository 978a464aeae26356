"""Non-blocking connect by name: in progress for every event loop, then one clean event."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import selectors
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from fake_node import FakeNetwork
from sync_support import PATIENCE, Background, fake_network, listener, pair, wait_until

import ntcpsock
from ntcpsock import NTCPSocket, _names, _parking, _portal
from ntcpsock._errors import BrokerUnreachable, PeerOffline


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNetwork]:
    with fake_network(monkeypatch, tmp_path) as network:
        yield network


@pytest.fixture
def hold(network: FakeNetwork, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Dials wait until this is called."""
    from fake_node import FakeNode

    gate = trio.Event()
    dial = FakeNode.open_stream

    async def wait(self: FakeNode, name: str, port: int, **options: Any) -> object:
        await gate.wait()
        return await dial(self, name, port, **options)

    monkeypatch.setattr(FakeNode, "open_stream", wait)
    return lambda: _portal.get().soon(gate.set)


def start(port: int = 8000, name: str = "alice.ntcp", family: int = -1) -> NTCPSocket:
    client = NTCPSocket(family)
    client.setblocking(False)
    with pytest.raises(BlockingIOError) as caught:
        client.connect((name, port))
    assert caught.value.errno == errno.EINPROGRESS
    return client


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("kind", ["SelectSelector", "PollSelector", "EpollSelector"])
def test_a_waiter_registered_before_sees_one_clean_event(
    hold: Callable[[], None], network: FakeNetwork, kind: str, family: int
) -> None:
    with listener(family=family) as server, NTCPSocket(family) as client:
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        inode = os.fstat(client.fileno()).st_ino
        with pytest.raises(BlockingIOError):
            client.connect(("alice.ntcp", 8000))
        with getattr(selectors, kind)() as selector:
            selector.register(client, selectors.EVENT_READ | selectors.EVENT_WRITE)
            assert selector.select(0.05) == []
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            assert client.connect_ex(("alice.ntcp", 8000)) == errno.EALREADY
            hold()
            [(_, events)] = selector.select(PATIENCE)
            assert events == selectors.EVENT_WRITE
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert os.fstat(client.fileno()).st_ino == inode
        assert client.peer is not None
        assert client.getpeername()[:2] == (_names.number("alice", family), 8000)
        assert client.connect_ex(("alice.ntcp", 8000)) == 0  # as the system's: it has succeeded ...
        assert client.connect_ex(("alice.ntcp", 8000)) == errno.EISCONN  # ... and is connected
        accepted, _ = server.accept()
        with accepted:
            client.sendall(b"hello")
            assert accepted.recv(10) == b"hello"


def test_200_connects_under_epoll(network: FakeNetwork) -> None:
    """The waiter sits in epoll_wait while the descriptor is aimed anew."""
    with listener() as server:
        for _ in range(200):
            with NTCPSocket() as client, select.epoll() as epoll:
                client.setblocking(False)
                epoll.register(client, 0)
                assert client.connect_ex(("alice.ntcp", 8000)) == errno.EINPROGRESS
                epoll.modify(client, select.EPOLLIN | select.EPOLLOUT)
                assert epoll.poll(PATIENCE) == [(client.fileno(), select.EPOLLOUT)]
                assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
                accepted, _ = server.accept()
                accepted.close()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_200_failures_under_epoll(network: FakeNetwork, family: int) -> None:
    """The first that a waiter sees is all that a refused connect shows: no hang-up that is not readable."""
    network.dial_errors["bob"] = PeerOffline("offline")
    refused = select.EPOLLIN | select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP
    for _ in range(100):
        with NTCPSocket(family) as client, select.epoll() as epoll:
            client.setblocking(False)
            epoll.register(client, 0)
            assert client.connect_ex(("bob.ntcp", 1)) == errno.EINPROGRESS
            epoll.modify(client, select.EPOLLIN | select.EPOLLOUT)
            assert epoll.poll(PATIENCE) == [(client.fileno(), refused)]
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


def test_a_system_that_does_not_follow(network: FakeNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no RST comes out of two crossing SYNs, the descriptor is aimed at a port that refuses."""
    monkeypatch.setattr(_parking, "_reset", lambda sock, address: None)
    network.dial_errors["bob"] = PeerOffline("offline")
    with start(1, "bob.ntcp") as client:
        poll = select.poll()
        poll.register(client, select.POLLOUT)
        assert poll.poll(PATIENCE * 1000)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (PeerOffline("offline"), errno.ECONNREFUSED),
        (BrokerUnreachable("no broker"), errno.ENETUNREACH),
        (LookupError("a fault of ours"), errno.EIO),
    ],
)
def test_a_failure_is_told_by_so_error(network: FakeNetwork, error: Exception, number: int) -> None:
    network.dial_errors["bob"] = error
    with start(1, "bob.ntcp") as client:
        poll = select.poll()
        poll.register(client, select.POLLOUT)
        [(_, events)] = poll.poll(PATIENCE * 1000)
        assert events & select.POLLERR
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == number
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0  # told once
        assert (client.report is None) == isinstance(error, LookupError)


def test_a_name_that_nobody_has(network: FakeNetwork) -> None:
    with start(1, "bob.ntcp") as client:
        assert select.select([], [client], [], PATIENCE)[1] == [client]
        with pytest.raises(ntcpsock.NameNotFound):
            client.connect(("bob.ntcp", 1))
    with start(1, "bob.ntcp") as client:
        assert select.select([], [client], [], PATIENCE)[1] == [client]
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EHOSTUNREACH


def test_after_a_failure_the_same_descriptor_can_try_again(network: FakeNetwork) -> None:
    with listener() as server, start(1) as client:
        assert select.select([], [client], [], PATIENCE)[1] == [client]
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
        with pytest.raises(BlockingIOError):
            client.connect(("alice.ntcp", 8000))
        assert select.select([], [client], [], PATIENCE)[1] == [client]
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        server.accept()[0].close()


def test_a_socket_bound_to_port_0_before(network: FakeNetwork) -> None:
    with listener() as server, NTCPSocket() as client:
        client.bind(("127.0.0.1", 0))
        port = client.getsockname()[1]
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.connect(("alice.ntcp", 8000))
        assert select.select([], [client], [], PATIENCE)[1] == [client]
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert client.getsockname()[1] == port
        accepted, _ = server.accept()
        with accepted:
            accepted.sendall(b"x")
            client.setblocking(True)
            assert client.recv(1) == b"x"


def test_closing_ends_the_dial(network: FakeNetwork) -> None:
    network.silent.add("bob")
    client = start(1, "bob.ntcp")
    wait_until(lambda: len(network.opened) == 1)
    client.close()
    wait_until(lambda: network.events == ["cancelled dial of bob"])


def test_closed_sockets_leave_no_descriptor(network: FakeNetwork) -> None:
    network.silent.add("bob")
    start(1, "bob.ntcp").close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        start(1, "bob.ntcp").close()
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_asyncio_streams(network: FakeNetwork) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def main() -> bytes:
        async with await asyncio.start_server(echo, "alice.ntcp", 8000):
            reader, writer = await asyncio.open_connection("alice.ntcp", 8000)
            writer.write(b"hello" * 100_000)
            writer.write_eof()
            data = await reader.read()
            writer.close()
            await writer.wait_closed()
            with pytest.raises(OSError, match=r".") as caught:
                await asyncio.open_connection("alice.ntcp", 1)
            assert caught.value.errno == errno.ECONNREFUSED
        return data

    with ntcpsock.patched():
        assert Background(lambda: asyncio.run(main())).result() == b"hello" * 100_000


def test_blocking_and_parked_sockets_side_by_side(network: FakeNetwork) -> None:
    with listener() as server:
        parked = start()
        client, accepted = pair(server)
        for end in (parked, client, accepted):
            end.close()
