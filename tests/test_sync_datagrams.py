"""Datagram sockets by name on the sync face: kernel sockets, whose destinations only are other ones."""

from __future__ import annotations

import errno
import gc
import os
import select
import selectors
import socket
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from fake_node import FakeNetwork
from sync_datagram_support import BOB, Plain, add_node, add_peer, bound, datagram_socket, in_engine
from sync_support import PATIENCE, fake_network, wait_until

import ntcpsock
from ntcpsock import NTCPSocket, _names
from ntcpsock._datagram_sizes import IP_MTU, IP_MTU_DISCOVER, IPV6_DONTFRAG, IPV6_MTU_DISCOVER
from ntcpsock._errors import BrokerUnreachable, NameNotFound, PeerOffline
from ntcpsock._report import Report

pytestmark = pytest.mark.skipif(not hasattr(socket, "CMSG_SPACE"), reason="the engine needs IP_PKTINFO")


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNetwork]:
    with fake_network(monkeypatch, tmp_path) as network:
        yield network


def test_send_to_a_name(network: FakeNetwork) -> None:
    seen = add_peer(network, "bob", 53, bytes.upper)
    with datagram_socket() as sock:
        assert sock.sendto(b"hello", (BOB, 53)) == 5
        data, sender = sock.recvfrom(100)
        assert (data, sender) == (b"HELLO", (_names.number("bob"), 53))
        assert ntcpsock.getnameinfo(sender, socket.NI_NUMERICSERV) == (BOB, "53")
        # By its number, and an answer to where it came from.
        sock.sendto(b"again", sender)
        assert sock.recvfrom(100) == (b"AGAIN", sender)
        assert {address.port for address in seen} == {sock.getsockname()[1]}
        assert network.dials == [("bob", 53)]


def test_a_bound_name_receives(network: FakeNetwork) -> None:
    add_node(network, "bob")
    with bound("alice.ntcp", 5353) as server:
        assert server.getsockname() == (_names.number("alice"), 5353)
        bob = network.places["bob"]
        sock = in_engine(lambda: bob.bind(777))
        in_engine(lambda: sock.try_send_to(b"knock", ("alice", 5353)))
        data, sender = server.recvfrom(100)
        assert (data, sender) == (b"knock", (_names.number("bob"), 777))
        server.sendto(b"who is there", sender)
        wait_until(lambda: sock.peek() is not None)
        assert in_engine(sock.try_receive_from) == (b"who is there", ("alice.ntcp", 5353))


def test_between_sockets_of_one_process(network: FakeNetwork) -> None:
    with bound("alice.ntcp", 7) as server, datagram_socket() as client:
        for number in range(50):
            client.sendto(b"%d" % number, ("alice.ntcp", 7))
        for number in range(50):
            data, sender = server.recvfrom(100)
            assert data == b"%d" % number
            server.sendto(data + b"!", sender)
        assert sender == (_names.number("alice"), client.getsockname()[1])
        for number in range(50):
            assert client.recv(100) == b"%d!" % number


@pytest.mark.parametrize(
    ("family", "level", "option", "value"),
    [
        (socket.AF_INET, socket.IPPROTO_IP, IP_MTU_DISCOVER, 2),
        (socket.AF_INET, socket.IPPROTO_IP, IP_MTU_DISCOVER, 3),
        (socket.AF_INET6, socket.IPPROTO_IP, IP_MTU_DISCOVER, 2),
        (socket.AF_INET6, socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, 2),
        (socket.AF_INET6, socket.IPPROTO_IPV6, IPV6_DONTFRAG, 1),
    ],
)
def test_a_datagram_that_is_not_to_be_cut(
    network: FakeNetwork, family: socket.AddressFamily, level: int, option: int, value: int
) -> None:
    add_peer(network, "bob", 53)
    with datagram_socket(family) as sock:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        before = sock.getsockopt(level, option)
        sock.setsockopt(level, option, value)
        with pytest.raises(OSError, match="not connected"):
            sock.getsockopt(socket.IPPROTO_IP, IP_MTU)
        # Before there is a path nobody knows how large one may be.
        sock.sendto(bytes(1500), (BOB, 53))
        assert len(sock.recv(2000)) == 1500
        sock.connect((BOB, 53))
        largest = sock.getsockopt(socket.IPPROTO_IP, IP_MTU) - 28
        assert largest == 1195
        assert sock.send(bytes(largest)) == largest
        assert len(sock.recv(2000)) == largest
        with closing(sock.dup()) as other:
            for send in (
                partial(sock.send, bytes(1196)),
                partial(sock.sendto, bytes(1196), (BOB, 53)),
                partial(sock.sendmsg, [bytes(1000), bytes(196)]),
                partial(other.send, bytes(1196)),
            ):
                with pytest.raises(
                    OSError, match=r"Message too long: 1196 bytes; 1195 go to bob\.ntcp"
                ) as caught:
                    send()
                assert caught.value.errno == errno.EMSGSIZE
        sock.setsockopt(level, option, before)
        assert sock.send(bytes(1500)) == 1500
        assert len(sock.recv(2000)) == 1500


def test_to_ordinary_addresses_the_kernel_knows_how_large(network: FakeNetwork) -> None:
    """The option is the kernel's own, and so is what comes of it."""
    with datagram_socket() as sock, datagram_socket() as other:
        other.bind(("127.0.0.1", 0))
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, 2)
        sock.connect(other.getsockname())
        assert sock.send(bytes(2000)) == 2000
        assert len(other.recv(3000)) == 2000
        assert sock.getsockopt(socket.IPPROTO_IP, IP_MTU) == Plain.getsockopt(sock, socket.IPPROTO_IP, IP_MTU)


def test_a_socket_that_cuts_nothing_ends_with_its_last_name(network: FakeNetwork) -> None:
    sock = datagram_socket()
    sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, 2)
    descriptor, send = sock.fileno(), sock.send
    with pytest.warns(ResourceWarning):
        del sock
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        send(b"x")


def test_connected(network: FakeNetwork) -> None:
    seen = add_peer(network, "bob", 53, bytes.upper)
    with datagram_socket() as sock:
        sock.connect((BOB, 53))
        assert sock.getpeername() == (_names.number("bob"), 53)
        assert sock.send(b"one") == 3
        assert sock.recv(100) == b"ONE"
        sock.sendall(b"two")
        assert sock.recvfrom(100) == (b"TWO", (_names.number("bob"), 53))
        assert {address.port for address in seen} == {sock.getsockname()[1]}
        # Connected anew, as UDP allows it.
        with closing(Plain(socket.AF_INET, socket.SOCK_DGRAM)) as other:
            other.bind(("127.0.0.1", 0))
            sock.connect(other.getsockname())
            sock.send(b"plain")
            assert other.recv(100) == b"plain"
            assert sock.getpeername() == other.getsockname()
            sock.connect((BOB, 53))
            sock.send(b"three")
            assert sock.recv(100) == b"THREE"


def test_connect_ex(network: FakeNetwork) -> None:
    add_peer(network, "bob", 53)
    with datagram_socket() as sock:
        assert sock.connect_ex((BOB, 53)) == 0
        sock.send(b"x")
        assert sock.recv(1) == b"x"
        with pytest.raises(NameNotFound):
            sock.connect_ex(("nobody.ntcp", 53))


def test_refused(network: FakeNetwork) -> None:
    add_peer(network, "bob", 53)
    with datagram_socket() as sock:
        sock.connect((BOB, 54))
        sock.send(b"x")  # dials, and is refused there
        with pytest.raises(ConnectionRefusedError):
            sock.recv(100)
        assert sock.report is not None
        sock.connect((BOB, 53))
        sock.send(b"y")
        assert sock.recv(100) == b"y"
        sock.connect((BOB, 54))  # now over a road
        sock.send(b"z")
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        assert poll.poll(PATIENCE * 1000)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
        # What is not connected hears nothing, as with UDP.
        with datagram_socket() as other:
            other.sendto(b"x", (BOB, 54))
            other.sendto(b"x", (BOB, 53))
            assert other.recv(100) == b"x"


def test_a_node_that_is_away(network: FakeNetwork) -> None:
    add_peer(network, "bob", 53)
    report = Report("bob:53", "dialer")
    network.dial_errors["bob"] = PeerOffline("bob is away", report=report)
    with datagram_socket() as sock:
        sock.connect((BOB, 53))
        sock.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(100)
        assert sock.report is report


def test_names_that_are_not_known(network: FakeNetwork) -> None:
    add_peer(network, "bob", 53)
    with datagram_socket() as sock:
        for call in (
            lambda: sock.sendto(b"x", ("nobody.ntcp", 53)),
            lambda: sock.connect(("nobody.ntcp", 53)),
            lambda: sock.sendmsg([b"x"], (), 0, ("nobody.ntcp", 53)),
        ):
            with pytest.raises(socket.gaierror):
                call()
        # One that does not block is not kept waiting: it hears of it as UDP tells what is not reached.
        sock.setblocking(False)
        sock.connect(("nobody.ntcp", 53))
        sock.send(b"x")
        wait_until(lambda: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED)


def test_no_broker(network: FakeNetwork) -> None:
    network.open_error = BrokerUnreachable("no broker")
    with datagram_socket() as sock:
        with pytest.raises(BrokerUnreachable) as caught:
            sock.sendto(b"x", (BOB, 53))
        assert caught.value.errno == errno.ENETUNREACH
        network.open_error = None
        add_peer(network, "bob", 53)
        sock.sendto(b"x", (BOB, 53))
        assert sock.recv(1) == b"x"


def test_sizes(network: FakeNetwork) -> None:
    add_peer(network, "bob", 53, lambda data: b"%d" % len(data))
    with datagram_socket() as sock:
        for size in (0, 1, 1200, 9000, 65507):
            sock.sendto(bytes(size), (BOB, 53))
            assert sock.recv(100) == b"%d" % size
        with pytest.raises(OSError, match="too long") as caught:
            sock.sendto(bytes(65508), (BOB, 53))
        assert caught.value.errno == errno.EMSGSIZE


def test_every_way_to_send_and_to_receive(network: FakeNetwork) -> None:
    add_peer(network, "bob", 53)
    number = (_names.number("bob"), 53)
    with datagram_socket() as sock:
        sock.sendto(b"a", 0, (BOB, 53))
        assert sock.recvfrom(10, 0) == (b"a", number)
        sock.sendmsg([b"b", b"c"], [], 0, (BOB, 53))
        assert sock.recvmsg(10) == (b"bc", [], 0, number)
        sock.sendto(bytearray(b"d"), (BOB, 53))
        buffer = bytearray(10)
        assert sock.recvmsg_into([buffer]) == (1, [], 0, number)
        sock.sendto(memoryview(b"ef"), (BOB.upper(), 53))
        assert sock.recvfrom_into(buffer, nbytes=10) == (2, number)
        assert buffer[:2] == b"ef"
        sock.sendto(b"gh", (BOB, 53))
        assert sock.recv(1, socket.MSG_PEEK) == b"g"
        assert sock.recv_into(buffer) == 2
        sock.sendto(b"too long", (BOB, 53))
        data, _, flags, _ = sock.recvmsg(3)
        assert (data, bool(flags & socket.MSG_TRUNC)) == (b"too", True)


def test_errors_of_the_system(network: FakeNetwork) -> None:
    add_peer(network, "bob", 53)
    with datagram_socket() as sock:
        for address, error in (
            ((BOB, -1), OverflowError),
            ((BOB, 65536), OverflowError),
            ((BOB, "53"), TypeError),
            ((BOB,), TypeError),
            ((BOB, 53, 0), TypeError),
            ((BOB, 0), OSError),
        ):
            with pytest.raises(error):
                sock.sendto(b"x", address)
        with pytest.raises(TypeError):
            sock.sendto(b"x")
        with pytest.raises(TypeError):
            sock.sendto("x", (BOB, 53))
    with pytest.raises(OSError, match="Bad file descriptor"):
        sock.sendto(b"x", (BOB, 53))


def test_ipv6_sockets(network: FakeNetwork) -> None:
    add_peer(network, "bob", 53)
    with bound("alice.ntcp", 7, socket.AF_INET6) as server, datagram_socket(socket.AF_INET6) as client:
        client.sendto(b"x", (BOB, 53))
        assert client.recvfrom(10) == (b"x", ("::ffff:" + _names.number("bob"), 53, 0, 0))
        client.sendto(b"y", ("alice.ntcp", 7, 0, 0))
        data, sender = server.recvfrom(10)
        assert sender[:2] == ("::ffff:" + _names.number("alice"), client.getsockname()[1])
        server.sendto(data, sender)
        assert client.recv(10) == b"y"
        only_ipv6 = datagram_socket(socket.AF_INET6)
        only_ipv6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        with only_ipv6, pytest.raises(OSError, match="IPV6_V6ONLY"):
            only_ipv6.sendto(b"x", (BOB, 53))


def test_ports_of_a_name(network: FakeNetwork) -> None:
    with bound("alice.ntcp") as one, bound("alice.ntcp") as two:
        assert one.getsockname()[1] != two.getsockname()[1]
        with pytest.raises(OSError, match="in use") as caught:
            bound("alice.ntcp", one.getsockname()[1])
        assert caught.value.errno == errno.EADDRINUSE
        with pytest.raises(OSError, match="Invalid argument"):
            one.bind(("alice.ntcp", 9))
        port = one.getsockname()[1]
        one.close()
        bound("alice.ntcp", port).close()
        # Closed behind our back.
        third = bound("alice.ntcp", port)
        os.close(third.detach())
        with bound("alice.ntcp", port) as fourth, datagram_socket() as client:
            client.sendto(b"x", ("alice.ntcp", port))
            assert fourth.recv(1) == b"x"


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_forgotten_socket_frees_its_port(network: FakeNetwork) -> None:
    sock: NTCPSocket | None = bound("alice.ntcp", 7)
    assert sock is not None
    sock = None
    gc.collect()
    bound("alice.ntcp", 7).close()


def test_plain_and_by_name_on_one_socket(network: FakeNetwork) -> None:
    add_peer(network, "bob", 53)
    with datagram_socket() as sock, closing(Plain(socket.AF_INET, socket.SOCK_DGRAM)) as other:
        other.bind(("127.0.0.1", 0))
        sock.sendto(b"plain", other.getsockname())
        sock.sendto(b"named", (BOB, 53))
        data, sender = other.recvfrom(10)
        assert data == b"plain"
        assert sock.recvfrom(10) == (b"named", (_names.number("bob"), 53))
        other.sendto(b"back", sender)
        assert sock.recvfrom(10) == (b"back", other.getsockname())


def test_dup_and_fromfd_and_detach(network: FakeNetwork) -> None:
    with bound("alice.ntcp", 7) as server:
        copy = server.dup()
        server.close()
        with copy, datagram_socket() as client:
            client.sendto(b"1", ("alice.ntcp", 7))
            assert copy.recvfrom(10)[1] == (_names.number("alice"), client.getsockname()[1])
            sender = (_names.number("alice"), client.getsockname()[1])
            other = NTCPSocket(fileno=os.dup(copy.fileno()))
            with other:
                other.settimeout(PATIENCE)
                assert other.getsockname() == (_names.number("alice"), 7)
                client.sendto(b"2", ("alice.ntcp", 7))
                assert other.recvfrom(10) == (b"2", sender)
            client.sendto(b"3", ("alice.ntcp", 7))
            assert copy.recv(10) == b"3"


def test_events(network: FakeNetwork) -> None:
    add_peer(network, "bob", 53)
    with datagram_socket() as sock:
        epoll, poll = select.epoll(), select.poll()
        with closing(epoll):
            epoll.register(sock, select.EPOLLIN)
            poll.register(sock, select.POLLIN)
            assert not epoll.poll(0)
            sock.setblocking(False)
            sock.sendto(b"x", (BOB, 53))
            assert select.select([sock], [], [], PATIENCE)[0] == [sock]
            assert epoll.poll(PATIENCE)
            assert poll.poll(PATIENCE)
            assert sock.recv(1) == b"x"
            with selectors.DefaultSelector() as selector:
                selector.register(sock, selectors.EVENT_READ)
                assert not selector.select(0)
            with pytest.raises(BlockingIOError):
                sock.recvfrom(1)


def test_time_outs(network: FakeNetwork) -> None:
    add_peer(network, "bob", 53, lambda data: data)
    with datagram_socket() as sock:
        sock.sendto(b"x", (BOB, 53))
        sock.recv(1)
        sock.settimeout(0.01)
        with pytest.raises(TimeoutError):
            sock.recvfrom(1)


def test_many_peers_on_one_socket(network: FakeNetwork) -> None:
    for number in range(100):
        add_peer(network, f"peer{number}", 9, lambda data, number=number: data + b" %d" % number)  # type: ignore[misc]
    with datagram_socket() as sock:
        for number in range(100):
            sock.sendto(b"hello", (f"peer{number}.ntcp", 9))
        found = {sock.recvfrom(100) for _ in range(100)}
        assert found == {(b"hello %d" % number, (_names.number(f"peer{number}"), 9)) for number in range(100)}


def test_senders_with_one_port_each_are_told_apart(network: FakeNetwork) -> None:
    with bound("alice.ntcp", 7) as server:
        clients = [datagram_socket() for _ in range(20)]
        for client in clients:
            client.sendto(b"%d" % client.fileno(), ("alice.ntcp", 7))
        for _ in clients:
            data, sender = server.recvfrom(10)
            server.sendto(data, sender)
        for client in clients:
            assert client.recv(10) == b"%d" % client.fileno()
            client.close()


def test_many_at_once_arrive_one_by_one(network: FakeNetwork) -> None:
    """They cross between program and engine in batches, of which neither end sees anything."""
    add_peer(network, "bob", 53)
    sizes = [100] * 20 + [99, 0, 100, 3000, 3000, 1]
    with datagram_socket() as sock:
        sock.connect((BOB, 53))
        sock.send(b"first")
        assert sock.recv(100) == b"first"
        sent = [bytes([number]) * size for number, size in enumerate(sizes)]
        for payload in sent:
            sock.send(payload)
        assert [sock.recv(5000) for _ in sizes] == sent
