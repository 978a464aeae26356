"""Listeners at all addresses, published under the process's name; and descriptors that change hands."""

from __future__ import annotations

import errno
import logging
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from fake_node import FakeListener, FakeNetwork, FakeNode
from sync_support import PATIENCE, Background, fake_network, listener, pair, wait_until

import ntcpsock
from ntcpsock import NameTaken, NTCPSocket, _known, _names, _portal


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNetwork]:
    with fake_network(monkeypatch, tmp_path) as network:
        yield network


@pytest.fixture
def alice(network: FakeNetwork, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNetwork]:
    monkeypatch.setenv("NTCP_NAME", "alice")
    with ntcpsock.patched():
        yield network


def wildcard(family: int = socket.AF_INET, *, dual: bool = False) -> NTCPSocket:
    sock = NTCPSocket(family)
    sock.settimeout(PATIENCE)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
    sock.bind(("", 0) if family == socket.AF_INET else ("::", 0))
    sock.listen()
    return sock


def is_published(network: FakeNetwork, server: socket.socket) -> bool:
    return ("alice", server.getsockname()[1]) in network.listeners


@pytest.mark.parametrize(
    ("family", "dual", "host"),
    [
        (socket.AF_INET, False, "127.0.0.1"),
        (socket.AF_INET6, True, "::1"),
        (socket.AF_INET6, False, "::1"),
        (socket.AF_INET6, True, "127.0.0.1"),
    ],
)
def test_both_kinds_are_accepted(alice: FakeNetwork, family: int, dual: bool, host: str) -> None:
    with wildcard(family, dual=dual) as server:
        port = server.getsockname()[1]
        assert server.getsockname()[0] in ("0.0.0.0", "::")
        wait_until(lambda: is_published(alice, server))
        for _ in range(2):
            with socket.create_connection((host, port), PATIENCE) as plain:
                accepted, address = server.accept()
                with accepted:
                    assert address[:2] == accepted.getpeername()[:2]
                    assert address[1] == plain.getsockname()[1]
                    assert accepted.getsockname()[1] == port
                    assert (accepted.peer, accepted.path) == (None, None)
                    plain.sendall(b"plain")
                    assert accepted.recv(10) == b"plain"
            with socket.create_connection(("alice.ntcp", port), PATIENCE) as named:
                accepted, address = server.accept()
                with accepted:
                    assert accepted.peer is not None
                    assert accepted.peer.name == "alice"
                    assert accepted.path is not None
                    assert ntcpsock.getnameinfo(address, 0)[0] == "alice.ntcp"
                    assert accepted.getsockname()[:2] == (_names.number("alice", family), port)
                    named.sendall(b"named")
                    assert accepted.recv(10) == b"named"
    wait_until(lambda: not alice.listeners)


def test_who_hears_the_port_from_the_program_finds_it(
    alice: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FTP in active mode says its port as soon as listen() has returned."""
    open_listener = FakeNode.open_listener

    async def slowly(self: FakeNode, port: int, **more: Any) -> FakeListener:
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        return await open_listener(self, port, **more)

    monkeypatch.setattr(FakeNode, "open_listener", slowly)
    for _ in range(20):
        with wildcard() as server:
            assert is_published(alice, server)


def test_a_broker_that_is_silent_does_not_hold_the_program_up(
    alice: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = trio.Event()
    open_listener = FakeNode.open_listener

    async def silent(self: FakeNode, port: int, **more: Any) -> FakeListener:
        await gate.wait()
        return await open_listener(self, port, **more)

    monkeypatch.setattr(FakeNode, "open_listener", silent)
    with wildcard() as server:
        assert not is_published(alice, server)
        with socket.create_connection(("127.0.0.1", server.getsockname()[1]), PATIENCE):
            server.accept()[0].close()
        _portal.get().soon(gate.set)
        wait_until(lambda: is_published(alice, server))


def test_who_comes_from_a_number_is_not_that_peer(alice: FakeNetwork) -> None:
    with wildcard() as server:
        wait_until(lambda: is_published(alice, server))
        plain: Any = NTCPSocket.__mro__[1]
        with plain() as other:
            other.bind((_names.number("bob"), 0))
            other.connect(("127.0.0.1", server.getsockname()[1]))
            accepted, _ = server.accept()
            with accepted:
                assert accepted.peer is None


def test_without_a_name_nothing_is_published(network: FakeNetwork) -> None:
    threads = threading.active_count()
    with ntcpsock.patched(), wildcard():
        assert threading.active_count() == threads
        assert _portal.current() is None
    assert network.opened == []


def test_without_install_nothing_is_published(network: FakeNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NTCP_NAME", "alice")
    with wildcard():
        assert _portal.current() is None
    with ntcpsock.patched():
        pass
    with wildcard():
        assert _portal.current() is None


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_what_is_bound_to_one_address_is_not_published(alice: FakeNetwork, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family):
        assert _portal.current() is None


def test_the_name_of_the_configuration_file_counts(
    network: FakeNetwork, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "ntcp.toml").write_text('name = "alice"\n')
    monkeypatch.setenv("NTCP_CONFIG", str(tmp_path / "ntcp.toml"))
    with ntcpsock.patched(), wildcard() as server:
        wait_until(lambda: is_published(network, server))


def test_a_broker_that_is_away_delays_nothing(
    alice: FakeNetwork, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ntcpsock._listening.FIRST_PUBLISH_PAUSE", 0.01)
    alice.open_error = ntcpsock.BrokerUnreachable("no answer")
    with wildcard() as server:
        with socket.create_connection(("127.0.0.1", server.getsockname()[1])):
            accepted, _ = server.accept()
            accepted.close()
        wait_until(lambda: "cannot be published yet: no answer" in caplog.text)
        alice.open_error = None
        wait_until(lambda: is_published(alice, server))
    assert caplog.text.count("cannot be published yet") == 1


def test_a_name_that_is_another_s_is_said_once(alice: FakeNetwork, caplog: pytest.LogCaptureFixture) -> None:
    alice.listen_error = NameTaken("alice belongs to another key")
    with wildcard() as server:
        wait_until(lambda: "is not published: alice belongs" in caplog.text)
        with socket.create_connection(("127.0.0.1", server.getsockname()[1])):
            server.accept()[0].close()


def test_a_name_that_cannot_be_one_is_logged(
    network: FakeNetwork, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NTCP_NAME", "a b")
    with ntcpsock.patched(), caplog.at_level(logging.ERROR), wildcard() as server:
        assert server.getsockname()[1]
    assert "is not a node name" in caplog.text


def test_a_listener_of_the_network_that_fails_is_made_again(
    alice: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ntcpsock._listening.FIRST_PUBLISH_PAUSE", 0.01)
    with wildcard() as server:
        wait_until(lambda: is_published(alice, server))
        first = alice.listeners["alice", server.getsockname()[1]]
        _portal.get().soon(first.fail, OSError(errno.EIO, "lost"))
        wait_until(lambda: alice.listeners.get(("alice", server.getsockname()[1])) not in (None, first))
        with socket.create_connection(("127.0.0.1", server.getsockname()[1])):
            server.accept()[0].close()


def test_the_same_port_twice(alice: FakeNetwork) -> None:
    """As asyncio binds: one socket for each family."""
    with wildcard() as one, NTCPSocket(socket.AF_INET6) as two:
        two.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        two.bind(("::", one.getsockname()[1]))
        two.listen()
        wait_until(lambda: is_published(alice, one))
        with socket.create_connection(("alice.ntcp", one.getsockname()[1]), PATIENCE):
            with one.accept()[0] as accepted:
                assert accepted.peer is not None


# -- descriptors that change hands


def test_connections_are_known_by_their_descriptor(network: FakeNetwork) -> None:
    with listener() as server:
        for end in (0, 1):
            ends = pair(server)
            expected = (ends[end].peer, ends[end].path, ends[end].getpeername(), ends[end].getsockname())
            with NTCPSocket(fileno=os.dup(ends[end].fileno())) as copy:
                assert (copy.peer, copy.path, copy.getpeername(), copy.getsockname()) == expected
            from_fd: Any = ntcpsock.fromfd
            with from_fd(ends[end].fileno(), socket.AF_INET, socket.SOCK_STREAM) as copy:
                assert copy.peer == expected[0]
            with NTCPSocket(fileno=ends[end].detach()) as again:
                assert (again.peer, again.path, again.getpeername(), again.getsockname()) == expected
            ends[1 - end].close()
    wait_until(lambda: not _known.connections)


def test_a_listener_is_known_by_its_descriptor(network: FakeNetwork) -> None:
    server = listener()
    with NTCPSocket(fileno=server.detach()) as again:
        again.settimeout(PATIENCE)
        assert again.getsockname() == (_names.number("alice"), 8000)
        client, accepted = pair(again)
        assert accepted.peer is not None
        client.close()
        accepted.close()
    wait_until(lambda: not network.listeners)


def test_nothing_is_asked_of_the_kernel_without_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not _known.connections
    for table in ("listening", "bound"):  # exceptions of earlier tests hold some
        monkeypatch.setattr(_known, table, {})
    monkeypatch.setattr(_known, "adopt", None)
    with NTCPSocket() as one, NTCPSocket(fileno=os.dup(one.fileno())) as two:
        assert two.peer is None


def test_plain_descriptors_beside_named_ones(network: FakeNetwork) -> None:
    with listener() as server:
        client, accepted = pair(server)
        with client, accepted:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with NTCPSocket(socket.AF_INET, kind) as one, NTCPSocket(fileno=os.dup(one.fileno())) as two:
                    assert two.peer is None
            left, right = socket.socketpair()
            with right, NTCPSocket(fileno=left.detach()) as other:
                assert other.peer is None


def test_tls_of_the_application_s_own(network: FakeNetwork, tls_contexts: Any) -> None:
    server_context, client_context = tls_contexts
    client_context.sslsocket_class = ntcpsock.SSLSocket
    server_context.sslsocket_class = ntcpsock.SSLSocket
    with server_context.wrap_socket(listener(), server_side=True) as server:

        def serve() -> Any:
            accepted, address = server.accept()
            with accepted:
                accepted.sendall(accepted.recv(10).upper())
                return accepted.peer, accepted.path, address, accepted.getpeername()

        # Wrapped before it connects, and after.
        for early in (True, False):
            background = Background(serve)
            plain = NTCPSocket()
            plain.settimeout(PATIENCE)
            if not early:
                plain.connect(("alice.ntcp", 8000))
            with client_context.wrap_socket(plain, server_hostname="alice.ntcp") as client:
                if early:
                    client.connect(("alice.ntcp", 8000))
                assert client.peer is not None
                assert client.peer.name == "alice"
                assert client.getpeername() == (_names.number("alice"), 8000)
                client.sendall(b"hello")
                assert client.recv(10) == b"HELLO"
            peer, path, address, from_address = background.result()
            assert peer is not None
            assert path is not None
            assert address == from_address
    wait_until(lambda: not network.listeners)


@pytest.fixture(scope="module")
def tls_contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "alice.ntcp")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("alice.ntcp")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    return server, ssl.create_default_context(cafile=str(file))


def test_the_engine_publishes_nothing_of_its_own(
    network: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NTCP_NAME", "alice")
    with ntcpsock.patched():
        ntcpsock.start()

        async def listen() -> bool:
            sock: Any = socket.create_server(("", 0))
            with sock:
                return sock._published is None

        assert _portal.get().call(listen)
    assert not network.listeners
