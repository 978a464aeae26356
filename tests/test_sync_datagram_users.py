"""Datagrams by name are this user's: what another user of the machine sends or looks for comes to nothing. And what C
code sends, of this user, gets through."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fake_node import FakeNetwork
from local_users import NOBODY, as_nobody, need_nobody
from sync_datagram_support import add_peer, bound, datagram_socket
from sync_support import PATIENCE, fake_network, wait_until

import ntcpsock
from ntcpsock import NTCPSocket, _names, _owner, _portal

Plain: Any = NTCPSocket.__mro__[1]
# One of this process's own: several runs on one machine would sit at the same number.
LABEL = f"bob{os.getpid()}"
NAME = LABEL + ".ntcp"
NUMBER = _names.number(LABEL)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says whose a socket is")

#: Sends to `arguments` from every address that it can, and waits for an answer.
SEND = """
to, sources = arguments
result = []
for source in sources:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.3)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(tuple(source))
            sock.sendto(b"intruder", tuple(to))
            result.append(sock.recv(100).decode())
        except OSError as error:
            result.append(errno.errorcode.get(error.errno, "timeout"))
"""


@pytest.fixture
def nobody() -> None:
    need_nobody()


second_user = pytest.mark.usefixtures("nobody")


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNetwork]:
    with fake_network(monkeypatch, tmp_path) as network, ntcpsock.patched():
        yield network


def engines_port() -> int:
    return int(_portal.get().engine.datagrams.port)


@second_user
def test_nobody_speaks_in_our_name(network: FakeNetwork, caplog: pytest.LogCaptureFixture) -> None:
    seen = add_peer(network, LABEL, 5353)
    with datagram_socket() as sock, caplog.at_level(logging.WARNING, "ntcpsock"):
        sock.sendto(b"x", (NAME, 5353))
        assert sock.recv(10) == b"x"
        # Where the engine listens for us: from a port of his own, and from ours.
        own = sock.getsockname()[1]
        result = as_nobody(
            SEND, [[NUMBER, engines_port()], [["127.0.0.1", 0], ["0.0.0.0", own], ["127.0.0.9", own]]]
        )
        assert result == ["timeout", "EADDRINUSE", "EADDRINUSE"]
        assert len(seen) == 1
        assert _portal.get().engine.datagrams.strangers == 1
        assert f"user {NOBODY} was refused" in caplog.text


@second_user
def test_nobody_speaks_in_a_peers_name(network: FakeNetwork) -> None:
    add_peer(network, LABEL, 5353)
    with bound("alice.ntcp", 7) as server, datagram_socket() as client:
        client.sendto(b"x", (NAME, 5353))
        assert client.recv(10) == b"x"
        engine = engines_port()
        for sock in (server, client):
            kernel = Plain.getsockname(sock)[1]
            # From the peer's number, with its port, with another, and with the engine's.
            sources = [[NUMBER, 5353], [NUMBER, 0], [NUMBER, engine], ["127.99.9.9", engine]]
            result = as_nobody(SEND, [["127.0.0.1", kernel], sources])
            assert result == ["timeout", "timeout", "EADDRINUSE", "EADDRINUSE"]
            sock.settimeout(0.05)
            with pytest.raises(TimeoutError):
                sock.recv(10)
            sock.settimeout(PATIENCE)
        client.sendto(b"y", ("alice.ntcp", 7))
        assert server.recv(10) == b"y"


@second_user
def test_nobody_gets_into_a_connection(network: FakeNetwork) -> None:
    seen = add_peer(network, LABEL, 5353)
    with datagram_socket() as sock:
        sock.connect((NAME, 5353))
        sock.send(b"x")
        assert sock.recv(10) == b"x"
        gate = Plain.getpeername(sock)
        kernel = Plain.getsockname(sock)
        assert as_nobody(SEND, [list(gate), [["127.0.0.1", 0], list(kernel)]]) == ["timeout", "EADDRINUSE"]
        assert as_nobody(SEND, [list(kernel), [["127.0.0.1", 0], list(gate)]])[1] == "EADDRINUSE"
        sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            sock.recv(10)
        assert len(seen) == 1


@second_user
def test_a_bound_name_shares_its_port_with_nobody(network: FakeNetwork) -> None:
    with datagram_socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("alice.ntcp", 7))
        kernel = Plain.getsockname(server)
        assert (
            as_nobody(SEND, [["127.0.0.1", 9], [list(kernel), ["0.0.0.0", kernel[1]]]]) == ["EADDRINUSE"] * 2
        )


def test_a_port_that_has_changed_hands_gets_nothing(network: FakeNetwork) -> None:
    server = bound("alice.ntcp", 7)
    kernel = Plain.getsockname(server)
    os.close(server.detach())  # not seen by the library
    with closing(Plain(socket.AF_INET, socket.SOCK_DGRAM)) as other, datagram_socket() as client:
        other.bind(kernel)
        other.settimeout(0.1)
        client.connect(("alice.ntcp", 7))
        client.send(b"secret")
        with pytest.raises(ConnectionRefusedError):
            client.recv(10)
        with pytest.raises(TimeoutError):
            other.recv(10)


# C code, which meets no class of ours.


def resolve(port: int) -> Any:
    [(_, _, _, _, address)] = socket.getaddrinfo(NAME, port, socket.AF_INET, socket.SOCK_DGRAM)
    return address


def test_c_code_gets_through(network: FakeNetwork) -> None:
    seen = add_peer(network, LABEL, 5353, bytes.upper)
    address = resolve(5353)
    assert address == (NUMBER, 5353)
    with closing(Plain(socket.AF_INET, socket.SOCK_DGRAM)) as client:
        client.settimeout(PATIENCE)
        client.connect(address)
        for word in (b"one", b"two"):
            client.send(word)
            assert client.recv(10) == word.upper()
        assert {sender.port for sender in seen} == {client.getsockname()[1]}
    with closing(Plain(socket.AF_INET, socket.SOCK_DGRAM)) as client:
        client.settimeout(PATIENCE)
        client.sendto(b"three", address)
        assert client.recvfrom(10) == (b"THREE", address)


@second_user
def test_another_users_c_code_does_not(network: FakeNetwork) -> None:
    seen = add_peer(network, LABEL, 5353)
    address = resolve(5353)
    assert as_nobody(SEND, [list(address), [["127.0.0.1", 0]]]) == ["timeout"]
    wait_until(lambda: _portal.get().engine.datagrams.strangers == 1)
    assert not seen


def test_where_the_number_is_taken(network: FakeNetwork) -> None:
    seen = add_peer(network, LABEL, 5353)
    with closing(Plain(socket.AF_INET, socket.SOCK_DGRAM)) as squatter:
        squatter.bind((NUMBER, 5353))
        squatter.setblocking(False)
        address = resolve(5353)
        assert address[0] != NUMBER
        assert address[1] == 5353
        with datagram_socket() as sock:
            # As it was told, and by name: each sees what it expects.
            for to, shown in ((address, address), ((NAME, 5353), None)):
                sock.sendto(b"x", to)
                data, sender = sock.recvfrom(10)
                assert data == b"x"
                assert shown is None or sender == shown
            sock.connect((NAME, 5353))
            sock.send(b"y")
            assert sock.recv(10) == b"y"
            assert sock.getpeername() == (NUMBER, 5353)
        with pytest.raises(BlockingIOError):
            squatter.recv(10)
        assert len(seen) == 3


def test_a_port_that_the_program_wants_for_itself(network: FakeNetwork) -> None:
    add_peer(network, LABEL, 5353)
    resolve(5353)
    with datagram_socket() as sock:
        sock.bind(("", 5353))
        assert sock.getsockname() == ("0.0.0.0", 5353)


def test_whose_a_datagram_socket_is(tmp_path: Path) -> None:
    with (
        closing(Plain(socket.AF_INET, socket.SOCK_DGRAM)) as one,
        closing(Plain(socket.AF_INET6, socket.SOCK_DGRAM)) as six,
    ):
        one.bind(("127.0.0.1", 0))
        six.bind(("::", 0))
        for sock in (one, six):
            port = sock.getsockname()[1]
            expected = _owner.Owner(os.getuid(), os.fstat(sock.fileno()).st_ino)
            assert _owner.datagram_owner(("127.0.0.1", port), ("127.0.0.1", 9)) == expected
            assert _owner.datagrams_by_proc(("127.0.0.1", port), ("127.0.0.1", 9)) == expected
        one.connect(("127.0.0.1", 9))
        address = one.getsockname()
        assert _owner.datagram_owner(address, ("127.0.0.1", 9)) is not None
        assert _owner.datagrams_by_proc(address, ("127.0.0.1", 9)) is not None
        assert _owner.datagram_owner(address, ("127.0.0.1", 10)) is None
        assert _owner.datagrams_by_proc(address, ("127.0.0.1", 10)) is None
