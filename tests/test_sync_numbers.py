"""Code that never meets our class connects to a name's number."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fake_node import FakeNetwork
from sync_support import PATIENCE, Background, fake_network, listener, receive_all, wait_until

import ntcpsock
from ntcpsock import NTCPSocket, _gate, _names, _owner, _portal

Plain: Any = NTCPSocket.__mro__[1]
# One of this process's own: several runs on one machine would sit at the same number.
LABEL = f"alice{os.getpid()}"
NAME = LABEL + ".ntcp"
NUMBER = _names.number(LABEL)


# Elsewhere the owner of a connection cannot be asked for, and no gate lets anybody in.
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says whose a connection is")


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNetwork]:
    with fake_network(monkeypatch, tmp_path) as network, ntcpsock.patched():
        yield network


def resolve(port: int = 8000) -> tuple[str, int]:
    [(_, _, _, _, address)] = socket.getaddrinfo(NAME, port, 0, socket.SOCK_STREAM)
    assert address[1] == port
    return str(address[0]), port


def plain_client(address: tuple[str, int]) -> Any:
    client = Plain(socket.AF_INET, socket.SOCK_STREAM)
    client.settimeout(PATIENCE)
    try:
        client.connect(address)
    except BaseException:
        client.close()
        raise
    return client


def is_refused(address: tuple[str, int]) -> bool:
    try:
        plain_client(address).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # accepted, and the dial has failed already
        return False
    return False


def test_a_plain_socket_gets_through(network: FakeNetwork) -> None:
    with listener(NAME) as server:
        for _ in range(2):
            address = resolve()
            assert address == (NUMBER, 8000)
            with closing(plain_client(address)) as client:
                accepted, _ = server.accept()
                with accepted:
                    assert accepted.peer is not None
                    client.sendall(b"hello")
                    assert accepted.recv(10) == b"hello"
                    client.shutdown(socket.SHUT_WR)
                    assert accepted.recv(10) == b""
                    accepted.sendall(b"after the end")
                assert receive_all(client) == b"after the end"


def test_one_that_has_sent_and_half_closed_at_once(network: FakeNetwork) -> None:
    """Its socket is no longer ESTABLISHED when the engine asks whose it is."""
    with listener(NAME) as server, closing(plain_client(resolve())) as client:
        client.sendall(b"all")
        client.shutdown(socket.SHUT_WR)
        with server.accept()[0] as accepted:
            assert receive_all(accepted) == b"all"


def test_ipv6_by_the_mapped_number(network: FakeNetwork) -> None:
    with listener(NAME) as server:
        [entry] = socket.getaddrinfo(NAME, 8000, socket.AF_INET6, socket.SOCK_STREAM)
        with Plain(socket.AF_INET6, socket.SOCK_STREAM) as client:
            client.connect(entry[4])
            with server.accept()[0] as accepted:
                client.sendall(b"six")
                assert accepted.recv(10) == b"six"


def test_a_socket_of_ours_made_from_the_descriptor_knows_its_peer(network: FakeNetwork) -> None:
    with listener(NAME) as server, closing(plain_client(resolve())) as client, server.accept()[0]:
        # The dial was over before the server accepted; what is known of it comes a moment later.
        def adopted() -> NTCPSocket:
            return NTCPSocket(fileno=os.dup(client.fileno()))

        def knows() -> bool:
            with adopted() as ours:
                return ours.peer is not None and ours.peer.name == LABEL

        wait_until(knows)
        with adopted() as ours:
            assert ours.getpeername() == (NUMBER, 8000)


def test_a_program_in_c(network: FakeNetwork) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    with listener(NAME) as server:
        host, port = resolve()

        def serve() -> bytes:
            accepted, _ = server.accept()
            with accepted:
                request: bytes = accepted.recv(65536)
                accepted.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello")
                return request

        background = Background(serve)
        command = [curl, "--silent", "--noproxy", "*", "--max-time", "60", f"http://{host}:{port}/page"]
        done = subprocess.run(command, capture_output=True, check=True)
        assert done.stdout == b"hello"
        assert background.result().startswith(b"GET /page ")


def test_c_code_in_this_process(network: FakeNetwork) -> None:
    """The C library's own calls: no class of Python's is met."""
    libc = ctypes.CDLL(None, use_errno=True)
    with listener(NAME) as server:
        host, port = resolve()
        address = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, socket.inet_aton(host))
        descriptor = libc.socket(socket.AF_INET, socket.SOCK_STREAM, 0)
        try:
            assert libc.connect(descriptor, address, len(address)) == 0
            with server.accept()[0] as accepted:
                assert libc.send(descriptor, b"from C", 6, 0) == 6
                assert accepted.recv(10) == b"from C"
                accepted.sendall(b"to C")
                buffer = ctypes.create_string_buffer(10)
                assert libc.recv(descriptor, buffer, 10, 0) == 4
                assert buffer.value == b"to C"
        finally:
            libc.close(descriptor)


def test_a_name_that_fails_is_a_reset(network: FakeNetwork) -> None:
    address = resolve(1234)
    with pytest.raises(ConnectionResetError), closing(plain_client(address)) as client:
        client.recv(1)


def test_only_ports_that_were_resolved_answer(network: FakeNetwork) -> None:
    resolve(8000)
    assert is_refused((NUMBER, 8001))


@pytest.mark.parametrize(
    "question",
    [
        (NAME, 8000, 0, socket.SOCK_STREAM, 0, socket.AI_PASSIVE),
        (NAME, None, 0, socket.SOCK_STREAM),
        (NAME, None, 0, socket.SOCK_DGRAM),
        ("127.0.0.1", 8000),
    ],
)
def test_questions_that_open_nothing(network: FakeNetwork, question: tuple[Any, ...]) -> None:
    socket.getaddrinfo(*question)
    assert _portal.current() is None


def test_create_connection_needs_no_gate(network: FakeNetwork) -> None:
    with listener(NAME) as server:
        for create_connection in (socket.create_connection, ntcpsock.create_connection):
            with create_connection((NAME, 8000), PATIENCE), server.accept()[0]:
                assert is_refused((NUMBER, 8000))


def test_the_drop_in_s_own_function_does_it_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with fake_network(monkeypatch, tmp_path):
        ntcpsock.getaddrinfo(NAME, 8000)
        assert not is_refused((NUMBER, 8000))


def test_gates_are_bounded(network: FakeNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gate, "MOST_GATES", 2)
    for port in (8000, 8001, 8000, 8002):
        resolve(port)
    assert is_refused((NUMBER, 8001))
    assert not is_refused((NUMBER, 8000))


def test_one_that_nobody_uses_goes_and_one_that_was_used_stays(
    network: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listener(NAME) as server:
        address = resolve(8000)
        with closing(plain_client(address)), server.accept()[0]:
            pass
        with monkeypatch.context() as patch:
            patch.setattr(_gate, "UNUSED_DEADLINE", 0.1)
            unused = resolve(8001)
            # Looked at from the outside: a connection would be a use.
            wait_until(lambda: _owner.listener_owner(unused) is None)
        assert not is_refused(address)
        # Resolved again, it comes again.
        assert not is_refused(resolve(8001))


def test_where_another_program_sits_a_further_number_answers(network: FakeNetwork) -> None:
    with Plain(socket.AF_INET, socket.SOCK_STREAM) as other, listener(NAME) as server:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # earlier tests' connections linger
        other.bind((NUMBER, 8000))
        other.listen()
        address = resolve()
        assert address[0] != NUMBER
        assert address == resolve()
        assert _names.label_of(address[0]) == LABEL
        with closing(plain_client(address)) as client, server.accept()[0] as accepted:
            client.sendall(b"past the squatter")
            assert accepted.recv(100) == b"past the squatter"
        # Sockets of ours go by either, and call the peer by its own number.
        with NTCPSocket() as ours:
            ours.connect(address)
            assert ours.getpeername() == (NUMBER, 8000)
            server.accept()[0].close()


def test_a_port_that_is_taken_at_all_addresses_is_said_once(
    network: FakeNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    with Plain(socket.AF_INET, socket.SOCK_STREAM) as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        with caplog.at_level(logging.INFO):
            for _ in range(2):
                assert resolve(port) == (NUMBER, port)
    assert caplog.text.count("is not reached by number") == 1


def test_the_program_gets_its_port_when_it_wants_it(network: FakeNetwork) -> None:
    """A listener at one loopback address would keep the program from that port of all addresses."""
    with Plain(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("0.0.0.0", 0))
        port = probe.getsockname()[1]
    resolve(port)
    with socket.socket() as server:
        server.bind(("", port))
        server.listen()
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", port))
        with pytest.raises(OSError, match="in use"):
            second.bind(("127.0.0.1", port))


def test_the_program_stops_while_a_gate_dials(network: FakeNetwork) -> None:
    network.silent.add(LABEL)
    with closing(plain_client(resolve())) as client:
        wait_until(lambda: bool(network.opened))
        _portal.stop(2)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_tls_wrapped_before_connect_without_any_hook(network: FakeNetwork) -> None:
    """ssl was imported before the patch: its own class is the system's, and connects in C."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.sslsocket_class = ssl.SSLSocket
    with listener(NAME) as server:
        address = resolve()
        with context.wrap_socket(Plain(socket.AF_INET, socket.SOCK_STREAM)) as client:
            client.settimeout(PATIENCE)
            background = Background(client.connect, address)
            accepted, _ = server.accept()
            with accepted:
                assert accepted.recv(1) == b"\x16"  # a TLS handshake record has come through
            with pytest.raises(OSError, match=r"."):
                background.result()


def test_a_forked_child_has_gates_of_its_own(network: FakeNetwork) -> None:
    resolve()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_a_child, args=(queue,))
    child.start()
    inherited, number = queue.get(timeout=PATIENCE)
    child.join(PATIENCE)
    assert inherited == []
    # The parent's engine sits at the number; it would dial in the parent's name.
    assert number != NUMBER
    assert _names.number(LABEL) == NUMBER


def _in_a_child(queue: Any) -> None:
    found = []
    for descriptor in range(3, 64):
        try:
            copy = Plain(fileno=os.dup(descriptor))
        except OSError:
            continue
        with copy:
            if copy.family == socket.AF_INET and copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                found.append(copy.getsockname())
    queue.put((found, resolve()[0]))


def test_a_low_port_is_often_not_ours_to_take(
    network: FakeNetwork, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Unprivileged(Plain):  # type: ignore[misc]
        def bind(self, address: Any) -> None:
            raise PermissionError(13, "Permission denied")

    def new_hop(family: int) -> Any:
        return Unprivileged(family)

    monkeypatch.setattr(_gate, "new_hop", new_hop)
    with caplog.at_level(logging.INFO):
        assert resolve(80) == (NUMBER, 80)
    assert caplog.text.count("is not reached by number") == 1
