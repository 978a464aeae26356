"""Datagram sockets by name beside asyncio, threads and plain sockets, and with engines that come and go."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from datagram_support import LoopbackPath, key_of
from fake_node import FakeNetwork
from sync_datagram_support import BOB, Plain, add_node, add_peer, bound, datagram_socket, in_engine
from sync_support import PATIENCE, fake_network, wait_until

import ntcpsock
from ntcpsock import _datagram_table, _names, _portal
from ntcpsock._address import encode_node_id

pytestmark = pytest.mark.skipif(not hasattr(socket, "CMSG_SPACE"), reason="the engine needs IP_PKTINFO")


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNetwork]:
    with fake_network(monkeypatch, tmp_path) as network:
        yield network


class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.transport.sendto(data.upper(), address)


class Collect(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.received: asyncio.Queue[tuple[bytes, Any]] = asyncio.Queue()
        self.errors: asyncio.Queue[Exception] = asyncio.Queue()

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.received.put_nowait((data, address))

    def error_received(self, exc: Exception) -> None:
        self.errors.put_nowait(exc)


async def use_endpoints() -> None:
    loop = asyncio.get_running_loop()
    server, _ = await loop.create_datagram_endpoint(Echo, local_addr=("alice.ntcp", 5353))
    client, protocol = await loop.create_datagram_endpoint(Collect, remote_addr=("alice.ntcp", 5353))
    number = _names.number("alice")
    assert client.get_extra_info("peername") == (number, 5353)
    assert server.get_extra_info("sockname") == (number, 5353)
    client.sendto(b"hello")
    assert await asyncio.wait_for(protocol.received.get(), PATIENCE) == (b"HELLO", (number, 5353))
    free, collected = await loop.create_datagram_endpoint(Collect, family=socket.AF_INET)
    for name, port in (("alice.ntcp", 5353), (BOB, 53)):
        free.sendto(b"x", (name, port))
        data, sender = await asyncio.wait_for(collected.received.get(), PATIENCE)
        assert sender == (_names.number(name.removesuffix(".ntcp")), port)
        assert data.upper() == b"X"
    server.close()
    await asyncio.sleep(0)  # asyncio closes a transport's socket in its next round
    client.sendto(b"gone")
    assert isinstance(await asyncio.wait_for(protocol.errors.get(), PATIENCE), ConnectionRefusedError)
    client.close()
    free.close()


def test_asyncio_endpoints_unmodified(network: FakeNetwork) -> None:
    add_peer(network, "bob", 53)
    with ntcpsock.patched():
        asyncio.run(use_endpoints())


def test_a_process_without_names_pays_nothing(network: FakeNetwork) -> None:
    with datagram_socket() as one, datagram_socket() as two:
        one.bind(("127.0.0.1", 0))
        two.sendto(b"x", one.getsockname())
        assert one.recvfrom(10) == (b"x", ("127.0.0.1", two.getsockname()[1]))
        two.connect(one.getsockname())
        two.send(b"y")
        assert one.recvmsg(10)[0] == b"y"
        assert two._channel is None
        assert one._channel is None
    assert _portal.current() is None


def test_published(network: FakeNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NTCP_NAME", "alice")
    add_node(network, "bob")
    with ntcpsock.patched(), datagram_socket() as server:
        server.bind(("", 0))
        port = server.getsockname()[1]
        assert server._channel is None  # nobody knows that port
        server.close()
        server = datagram_socket()
        with server:
            server.bind(("0.0.0.0", port))
            assert server.getsockname() == ("0.0.0.0", port)
            wait_until(
                lambda: "alice" in network.places and port in network.places["alice"].datagrams.sockets
            )
            sock = in_engine(lambda: network.places["bob"].bind(777))
            in_engine(lambda: sock.try_send_to(b"by name", ("alice", port)))
            assert server.recvfrom(10) == (b"by name", (_names.number("bob"), 777))
            with closing(Plain(socket.AF_INET, socket.SOCK_DGRAM)) as client:
                client.sendto(b"plain", ("127.0.0.1", port))
                data, sender = server.recvfrom(10)
                assert data == b"plain"
                server.sendto(b"back", sender)
                assert client.recv(10) == b"back"


def test_a_sender_without_a_name(network: FakeNetwork) -> None:
    add_node(network, "bob")
    with bound("alice.ntcp", 7) as server:
        bob = network.places["bob"]
        bob.name = None
        sock = in_engine(lambda: bob.bind(1))
        in_engine(lambda: sock.try_send_to(b"x", ("alice", 7)))
        _, sender = server.recvfrom(10)
        name, _ = ntcpsock.getnameinfo(sender, socket.NI_NUMERICSERV)
        assert name == encode_node_id(key_of("bob")) + ".ntcp"
        server.sendto(b"back", sender)
        wait_until(lambda: sock.peek() is not None)


def test_flows_are_bounded(network: FakeNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    from ntcpsock import _datagram_flows

    monkeypatch.setattr(_datagram_flows, "MOST_FLOWS", 4)
    for number in range(10):
        add_peer(network, f"peer{number}", 9)
    with datagram_socket() as sock:
        for _ in range(2):
            for number in range(10):
                sock.sendto(b"hello", (f"peer{number}.ntcp", 9))
                assert sock.recvfrom(100) == (b"hello", (_names.number(f"peer{number}"), 9))
        assert len(_datagram_table.ways) <= 4


def test_sent_while_dialling(network: FakeNetwork) -> None:
    network.dial_delay = 0.3
    add_peer(network, "bob", 53)
    with datagram_socket() as sock:
        for number in range(10):
            sock.sendto(b"%d" % number, (BOB, 53))
        assert [sock.recv(10) for _ in range(10)] == [b"%d" % number for number in range(10)]


def test_sent_and_left(network: FakeNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    network.dial_delay = 0.3
    add_node(network, "bob")
    sent: list[bytes] = []
    try_send = LoopbackPath.try_send

    def record(self: LoopbackPath, datagrams: Any) -> int:
        sent.extend(datagrams)
        return try_send(self, datagrams)

    monkeypatch.setattr(LoopbackPath, "try_send", record)
    with bound("alice.ntcp", 7) as sock:
        in_engine(lambda: network.places["bob"].bind(53))
        sock.sendto(b"last word", (BOB, 53))
        _portal.stop()
    assert any(data.endswith(b"last word") for data in sent)


def test_threads(network: FakeNetwork) -> None:
    add_peer(network, "bob", 53)
    failures: list[BaseException] = []

    def talk(number: int) -> None:
        try:
            with datagram_socket() as sock:
                for turn in range(50):
                    data = b"%d %d" % (number, turn)
                    sock.sendto(data, (BOB, 53))
                    assert sock.recvfrom(100)[0] == data
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not failures


def test_an_engine_that_starts_anew(network: FakeNetwork) -> None:
    add_peer(network, "bob", 53)
    with bound("alice.ntcp", 7) as server, datagram_socket() as sock:
        sock.sendto(b"1", (BOB, 53))
        assert sock.recv(10) == b"1"
        _portal.stop()
        add_peer(network, "bob", 53)
        sock.sendto(b"2", (BOB, 53))
        assert sock.recv(10) == b"2"
        sock.sendto(b"3", (BOB, 53))
        assert sock.recvfrom(10) == (b"3", (_names.number("bob"), 53))
        server.sendto(b"4", (BOB, 53))
        assert server.recv(10) == b"4"
        sock.sendto(b"5", ("alice.ntcp", 7))
        assert server.recv(10) == b"5"
