"""Listening under a name: registration, accept, and the end of it."""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import socket
import struct
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_node import FakeNetwork
from sync_support import PATIENCE, Background, fake_network, listener, pair, wait_until

import ntcpsock
from ntcpsock import NTCPSocket, _names, _portal
from ntcpsock._errors import BrokerUnreachable, NameTaken


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNetwork]:
    with fake_network(monkeypatch, tmp_path) as network:
        yield network


def test_bind_remembers_and_listen_registers(network: FakeNetwork) -> None:
    with NTCPSocket() as server:
        server.bind(("alice.ntcp", 8000))
        assert server.getsockname() == (_names.number("alice"), 8000)
        assert network.opened == []
        server.listen(7)
        assert network.listeners["alice", 8000].backlog == 7
        server.listen(9)  # again: only the queue's length
    assert network.events == ["listening alice:8000", "ended alice:8000"]


def test_port_0_takes_a_free_one(network: FakeNetwork) -> None:
    with NTCPSocket() as server:
        server.bind(("alice.ntcp", 0))
        port = server.getsockname()[1]
        assert port > 0
        server.listen()
        assert list(network.listeners) == [("alice", port)]


def test_the_own_number_is_the_own_name(network: FakeNetwork) -> None:
    number = ntcpsock.gethostbyname("alice.ntcp")
    with NTCPSocket() as server:
        server.bind((number, 8000))
        server.listen()
        client, accepted = pair(server, number)
        assert client.peer is not None
        client.close()
        accepted.close()


def test_two_names_share_the_node(network: FakeNetwork) -> None:
    with listener("alice.ntcp") as first, listener("bob.ntcp") as second:
        assert [config.name for config in network.opened] == ["alice"]
        for server, name in ((first, "alice.ntcp"), (second, "bob.ntcp")):
            client, accepted = pair(server, name)
            assert accepted.getsockname()[0] == _names.number(name.removesuffix(".ntcp"))
            client.close()
            accepted.close()


@pytest.mark.parametrize("error", [NameTaken("taken"), BrokerUnreachable("no broker")])
def test_a_refused_registration_comes_out_of_listen(network: FakeNetwork, error: OSError) -> None:
    network.listen_error = error
    with NTCPSocket() as server:
        server.bind(("alice.ntcp", 8000))
        with pytest.raises(type(error)):
            server.listen()
        assert not server.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        network.listen_error = None
        server.listen()  # the second try may succeed


def test_a_node_that_does_not_open_can_be_tried_again(network: FakeNetwork) -> None:
    network.open_error = BrokerUnreachable("no broker")
    with NTCPSocket() as server:
        server.bind(("alice.ntcp", 8000))
        with pytest.raises(BrokerUnreachable):
            server.listen()
        network.open_error = None
        server.listen()


def test_the_same_port_twice_is_in_use(network: FakeNetwork) -> None:
    with NTCPSocket() as first, NTCPSocket() as second:
        first.bind(("alice.ntcp", 8000))
        with pytest.raises(OSError, match="already in use") as caught:
            second.bind(("alice.ntcp", 8000))
        assert caught.value.errno == errno.EADDRINUSE
        first.listen()
        with pytest.raises(OSError, match="already in use"):
            second.bind(("alice.ntcp", 8000))
        second.bind(("alice.ntcp", 8001))


def test_the_same_port_is_shared_until_somebody_listens(network: FakeNetwork) -> None:
    with NTCPSocket() as first, NTCPSocket() as second:
        for sock in (first, second):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("alice.ntcp", 8000))
        first.listen()
        with pytest.raises(OSError, match="already in use") as caught:
            second.listen()
        assert caught.value.errno == errno.EADDRINUSE


def test_a_dialler_keeps_the_port_that_it_has_bound(network: FakeNetwork) -> None:
    with listener(), NTCPSocket() as client:
        client.bind(("bob.ntcp", 7000))
        client.connect(("alice.ntcp", 8000))
        assert client.getsockname()[1] == 7000
        with NTCPSocket(fileno=client.detach()) as successor:
            assert successor.getsockname()[1] == 7000


def test_a_bound_descriptor_listens_under_its_name_whoever_holds_it(network: FakeNetwork) -> None:
    with NTCPSocket() as first:
        first.bind(("alice.ntcp", 8000))
        with NTCPSocket(fileno=os.dup(first.fileno())) as second:
            second.settimeout(PATIENCE)
            second.listen()
            client, accepted = pair(second)
            with client, accepted:
                assert accepted.peer is not None


def test_close_frees_the_port_at_once(network: FakeNetwork) -> None:
    for _ in range(20):
        listener().close()
    assert network.listeners == {}


def test_a_collected_listener_ends(network: FakeNetwork) -> None:
    server = listener()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del server
        gc.collect()
    wait_until(lambda: network.listeners == {})
    listener().close()


def test_dup_shares_the_listener(network: FakeNetwork) -> None:
    server = listener()
    copy = server.dup()
    server.close()
    client, accepted = pair(copy)
    assert accepted.peer is not None
    copy.close()
    assert network.listeners == {}
    client.close()
    accepted.close()


def test_a_detached_listener_goes_on_until_its_descriptor_is_closed(network: FakeNetwork) -> None:
    server = listener()
    descriptor = server.detach()
    assert ("alice", 8000) in network.listeners
    os.close(descriptor)
    client = NTCPSocket()
    client.settimeout(PATIENCE)
    client.connect(("alice.ntcp", 8000))
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    client.close()
    wait_until(lambda: network.listeners == {})


def test_accept_honours_the_time_out(network: FakeNetwork) -> None:
    with listener() as server:
        server.settimeout(0.05)
        with pytest.raises(TimeoutError):
            server.accept()
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_an_accepted_socket_has_no_time_out_of_its_listener(network: FakeNetwork) -> None:
    with listener() as server:
        client = ntcpsock.create_connection(("alice.ntcp", 8000))
        accepted, _ = server.accept()
        assert accepted.gettimeout() is None
        accepted.close()
        client.close()


def test_select_sees_an_arrival(network: FakeNetwork) -> None:
    with listener() as server:
        assert select.select([server], [], [], 0)[0] == []
        client = ntcpsock.create_connection(("alice.ntcp", 8000))
        assert select.select([server], [], [], PATIENCE)[0] == [server]
        server.setblocking(False)
        accepted, _ = server.accept()
        accepted.close()
        client.close()


def test_ctrl_c_ends_an_accept(network: FakeNetwork) -> None:
    main = threading.main_thread().ident
    assert main is not None
    with listener() as server:

        def interrupt() -> None:
            # Early or late, in accept or just before it: the exception comes out there.
            threading.Event().wait(0.05)
            signal.pthread_kill(main, signal.SIGINT)

        thread = Background(interrupt)
        with pytest.raises(KeyboardInterrupt):
            server.accept()
        thread.result()


def test_a_lost_registration_wakes_accept(network: FakeNetwork) -> None:
    with listener() as server:
        waiting = Background(server.accept)
        _portal.get().soon(network.listeners["alice", 8000].fail, NameTaken("taken meanwhile"))
        with pytest.raises(NameTaken):
            waiting.result()


def test_a_connection_that_was_reset_before_accept_is_accepted(network: FakeNetwork) -> None:
    """As TCP does it on Linux. What came before the reset can be read."""
    with listener() as server:
        for _ in range(3):
            client = ntcpsock.create_connection(("alice.ntcp", 8000))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        wait_until(lambda: len(_portal.get().engine._pumps) == 0)
        for _ in range(3):
            accepted, _ = server.accept()
            with accepted, pytest.raises(ConnectionResetError):
                accepted.recv(1)


def test_the_backlog_bounds_what_waits(network: FakeNetwork) -> None:
    """More arrive than the queues hold; all of them are served in the end."""
    server = NTCPSocket()
    server.settimeout(PATIENCE)
    server.bind(("alice.ntcp", 8000))
    server.listen(1)

    def dial(index: int) -> bytes:
        with ntcpsock.create_connection(("alice.ntcp", 8000), timeout=PATIENCE) as client:
            client.sendall(b"%d" % index)
            client.shutdown(socket.SHUT_WR)
            return bytes(client.recv(10))

    clients = [Background(dial, index) for index in range(12)]
    for _ in clients:
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(PATIENCE)
            accepted.sendall(accepted.recv(10))
    assert [client.result() for client in clients] == [b"%d" % index for index in range(12)]
    server.close()
