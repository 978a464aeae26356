"""Connecting by name: what the socket says, what it raises, and when."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from fake_node import NODE_ID, FakeNetwork, FakeNode
from sync_support import PATIENCE, Background, fake_network, listener, pair, wait_until

import ntcpsock
from ntcpsock import Config, NTCPSocket, _names, _portal
from ntcpsock._errors import BrokerUnreachable, IdentityMismatch, PeerOffline, TraversalFailed


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNetwork]:
    with fake_network(monkeypatch, tmp_path) as network:
        yield network


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_both_ends_know_each_other(network: FakeNetwork, family: int) -> None:
    server = listener(family=family)
    client, accepted = pair(server)
    number = _names.number("alice", family)
    assert client.getpeername()[:2] == (number, 8000)
    assert server.getsockname()[:2] == accepted.getsockname()[:2] == (number, 8000)
    assert client.getsockname()[0] == accepted.getpeername()[0]
    assert len(client.getpeername()) == (4 if family == socket.AF_INET6 else 2)
    assert client.peer is not None
    assert (client.peer.name, client.peer.port) == ("alice", 8000)
    assert accepted.peer is not None
    assert accepted.peer.node_id == NODE_ID
    for end in (client, accepted):
        assert end.path is not None
        assert end.path.kind == "tcp"
        assert end.report is not None
    for end in (client, accepted, server):
        end.close()


def test_the_descriptor_is_the_same_socket_all_the_time(network: FakeNetwork) -> None:
    server = listener()
    client = NTCPSocket()
    descriptor, inode = client.fileno(), os.fstat(client.fileno()).st_ino
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50000)
    kept = client.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    client.connect(("alice.ntcp", 8000))
    assert (client.fileno(), os.fstat(client.fileno()).st_ino) == (descriptor, inode)
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == kept
    assert client.gettimeout() is None
    accepted, _ = server.accept()
    for end in (client, accepted):
        assert end.get_inheritable() is False
    for end in (client, accepted, server):
        end.close()


def test_create_connection_resolves_and_connects(network: FakeNetwork) -> None:
    with ntcpsock.create_server(("alice.ntcp", 8000)) as server:
        with ntcpsock.create_connection(("Alice.ntcp", 8000), timeout=PATIENCE) as client:
            accepted, address = server.accept()
            with accepted:
                assert isinstance(client, NTCPSocket)
                assert client.peer is not None
                assert ntcpsock.getnameinfo(client.getpeername(), 0) == ("alice.ntcp", "8000")
                assert address == accepted.getpeername()


def test_a_socket_bound_before_keeps_its_port(network: FakeNetwork) -> None:
    server = listener()
    for host in ("127.0.0.1", ""):
        with NTCPSocket() as client:
            client.bind((host, 0))
            port = client.getsockname()[1]
            client.connect(("alice.ntcp", 8000))
            assert client.getsockname()[1] == port
            server.accept()[0].close()
    server.close()


def test_no_name_means_a_nameless_node_and_a_bound_name_dials(network: FakeNetwork) -> None:
    with NTCPSocket() as client, pytest.raises(ntcpsock.NameNotFound):
        client.connect(("alice.ntcp", 1))
    server = listener("alice.ntcp")
    assert [config.name for config in network.opened] == [None, "alice"]
    client, accepted = pair(server)
    assert accepted.peer is not None
    assert accepted.peer.name == "alice"
    for end in (client, accepted, server):
        end.close()
    assert len(network.opened) == 2


def test_a_configured_name_is_the_only_node(network: FakeNetwork) -> None:
    ntcpsock.start(Config(name="bob"))
    assert network.events == ["warm"]
    server = listener("alice.ntcp")
    client, accepted = pair(server)
    assert accepted.peer is not None
    assert accepted.peer.name == "bob"
    assert accepted.getpeername()[0] == _names.number("bob") == client.getsockname()[0]
    assert [config.name for config in network.opened] == ["bob"]
    with pytest.raises(ntcpsock.ConfigurationError):
        ntcpsock.start(Config(name="carol"))
    for end in (client, accepted, server):
        end.close()


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (PeerOffline("offline"), errno.ECONNREFUSED),
        (TraversalFailed("failed"), errno.EHOSTUNREACH),
        (BrokerUnreachable("no broker"), errno.ENETUNREACH),
        (IdentityMismatch("other key"), errno.ECONNABORTED),
    ],
)
def test_errors_arrive_as_they_are(network: FakeNetwork, error: ntcpsock.NTCPError, number: int) -> None:
    network.dial_errors["bob"] = error
    with NTCPSocket() as client:
        with pytest.raises(type(error)) as caught:
            client.connect(("bob.ntcp", 1))
        assert caught.value is error
        assert client.report is error.report is not None
        assert client.connect_ex(("bob.ntcp", 1)) == number


def test_a_failed_socket_is_as_before(network: FakeNetwork) -> None:
    """Nothing is bound or connected before the peer is there: the same descriptor may try elsewhere."""
    network.dial_errors["bob"] = PeerOffline("offline")
    server = listener()
    with NTCPSocket() as client:
        with pytest.raises(ConnectionRefusedError):
            client.connect(("bob.ntcp", 1))
        assert client.getsockname() == ("0.0.0.0", 0)
        with pytest.raises(OSError, match="not connected"):
            client.getpeername()
        client.connect(("alice.ntcp", 8000))
    server.accept()[0].close()
    server.close()


def test_names_and_ports_that_nobody_has(network: FakeNetwork) -> None:
    server = listener()
    with NTCPSocket() as client:
        with pytest.raises(socket.gaierror):
            client.connect(("bob.ntcp", 1))
        with pytest.raises(socket.gaierror):
            client.connect_ex(("bob.ntcp", 1))
        with pytest.raises(ConnectionRefusedError):
            client.connect(("alice.ntcp", 1))
        assert client.connect_ex(("alice.ntcp", 1)) == errno.ECONNREFUSED
        assert client.connect_ex(("alice.ntcp", 0)) == errno.ECONNREFUSED
    server.close()


def test_an_error_that_is_none_of_ours_becomes_an_oserror(network: FakeNetwork) -> None:
    network.dial_errors["bob"] = ExceptionGroup("x", [ValueError("inside"), PeerOffline("offline")])
    network.dial_errors["carol"] = LookupError("inside")
    with NTCPSocket() as client:
        with pytest.raises(PeerOffline):
            client.connect(("bob.ntcp", 1))
        with pytest.raises(ntcpsock.NTCPError, match="LookupError: inside"):
            client.connect(("carol.ntcp", 1))


def test_the_time_out_is_the_socket_s(network: FakeNetwork) -> None:
    network.silent.add("bob")
    with NTCPSocket() as client:
        client.settimeout(0.2)
        started = time.monotonic()
        with pytest.raises(TimeoutError) as caught:
            client.connect(("bob.ntcp", 1))
        assert 0.2 <= time.monotonic() - started < PATIENCE
        assert isinstance(caught.value, ntcpsock.TraversalTimeout)
        assert client.report is not None
        assert client.connect_ex(("bob.ntcp", 1)) == errno.EAGAIN  # as the system's


def test_opening_the_node_is_part_of_the_time_out(
    network: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def slow(config: Config) -> AsyncIterator[None]:
        await trio.sleep(PATIENCE)
        yield

    monkeypatch.setattr(_portal, "node_opener", slow)
    with NTCPSocket() as client:
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.connect(("bob.ntcp", 1))


def test_ctrl_c_ends_a_connect_and_its_operation(
    network: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.silent.add("bob")
    main = threading.main_thread().ident
    assert main is not None
    dialling = threading.Event()
    dial = FakeNode.open_stream

    def say_so(*args: Any, **options: Any) -> Any:
        dialling.set()
        return dial(*args, **options)

    monkeypatch.setattr(FakeNode, "open_stream", say_so)

    def interrupt() -> None:
        assert dialling.wait(PATIENCE)
        signal.pthread_kill(main, signal.SIGINT)

    thread = Background(interrupt)
    with NTCPSocket() as client, pytest.raises(KeyboardInterrupt):
        client.connect(("bob.ntcp", 1))
    thread.result()
    wait_until(lambda: network.events == ["cancelled dial of bob"])


def test_what_cannot_connect(network: FakeNetwork) -> None:
    server = listener()
    client, accepted = pair(server)
    with pytest.raises(OSError, match="already connected") as caught:
        client.connect(("alice.ntcp", 8000))
    assert caught.value.errno == errno.EISCONN
    assert client.connect_ex(("alice.ntcp", 8000)) == errno.EISCONN
    with pytest.raises(OSError, match="connected") as caught:
        server.connect(("alice.ntcp", 8000))
    assert caught.value.errno == errno.EISCONN
    client.close()
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        client.connect(("alice.ntcp", 8000))
    assert caught.value.errno == errno.EBADF
    for end in (accepted, server):
        end.close()


def test_what_is_not_supported_says_so() -> None:
    try:
        raw = NTCPSocket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    except PermissionError:
        pytest.skip("raw sockets are root's")
    with raw:
        with pytest.raises(OSError, match="names are reached by SOCK_STREAM and SOCK_DGRAM") as caught:
            raw.connect(("alice.ntcp", 1))
        assert caught.value.errno == errno.EOPNOTSUPP


@pytest.mark.parametrize("method", ["connect", "connect_ex", "bind"])
@pytest.mark.parametrize("rest", [(), ("80",), (None,), (-1,), (65536,), (1.5,), (80, 0), (80, 0, 0, 0, 0)])
def test_bad_addresses_fail_as_the_system_s(method: str, rest: tuple[object, ...]) -> None:
    def outcome(sock: socket.socket, host: str) -> tuple[type, str]:
        with sock, pytest.raises((TypeError, OverflowError)) as caught:
            getattr(sock, method)((host, *rest))
        return caught.type, str(caught.value)

    assert outcome(NTCPSocket(), "alice.ntcp") == outcome(socket.socket(), "127.0.0.1")


def test_plain_addresses_never_meet_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_portal, "get", lambda: pytest.fail("the engine was asked for"))
    with NTCPSocket() as server:
        server.bind(("localhost", 0))
        server.listen()
        with NTCPSocket() as client:
            client.connect(server.getsockname())
            accepted, address = server.accept()
            with accepted:
                assert address == client.getsockname()
                assert type(accepted) is NTCPSocket
                assert (accepted.peer, accepted.path, accepted.report) == (None, None, None)
        with NTCPSocket() as client:
            assert client.connect_ex(server.getsockname()) == 0
    with NTCPSocket() as client, pytest.raises(TypeError):
        client.connect("alice.ntcp")
