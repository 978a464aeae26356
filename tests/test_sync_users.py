"""Another user of the same machine gets into none of this user's connections by name, whatever he knows."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fake_node import FakeNetwork
from local_users import CONNECT, LISTEN, NOBODY, Squatter, as_nobody, need_nobody
from sync_support import PATIENCE, Background, fake_network, listener, pair, wait_until

import ntcpsock
from ntcpsock import NTCPSocket, _names, _owner, _portal
from ntcpsock._hop import Dialled
from ntcpsock._inquiry import Inquiry
from ntcpsock._listening import Listening

Plain: Any = NTCPSocket.__mro__[1]
# One of this process's own: several runs on one machine would sit at the same number.
LABEL = f"alice{os.getpid()}"
NAME = LABEL + ".ntcp"
NUMBER = _names.number(LABEL)

second_user = pytest.mark.usefixtures("nobody")

#: What a refused connection looks like: a reset, at whichever call, or an end without a byte.
REFUSED = (["error", "ECONNRESET"], ["error", "EPIPE"], ["error", "ECONNREFUSED"], ["received", ""])


@pytest.fixture
def nobody() -> None:
    need_nobody()


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNetwork]:
    with fake_network(monkeypatch, tmp_path) as network, ntcpsock.patched():
        yield network


def resolve() -> tuple[str, int]:
    return str(socket.getaddrinfo(NAME, 8000, 0, socket.SOCK_STREAM)[0][4][0]), 8000


def plain_client(address: tuple[str, int]) -> Any:
    client = Plain(socket.AF_INET, socket.SOCK_STREAM)
    client.settimeout(PATIENCE)
    try:
        client.connect(address)
    except BaseException:
        client.close()
        raise
    return client


@second_user
def test_at_a_number_that_answers(network: FakeNetwork, caplog: pytest.LogCaptureFixture) -> None:
    with listener(NAME) as server:
        address = resolve()
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert as_nobody(CONNECT, address) in REFUSED
        assert network.streams == []  # not even dialled
        assert _portal.get().engine.gates.strangers == 3
        assert caplog.text.count(f"user {NOBODY} was refused") == 1
        with closing(plain_client(address)) as client, server.accept()[0] as accepted:
            client.sendall(b"mine")
            assert accepted.recv(10) == b"mine"


@second_user
def test_whom_the_program_stands_in_for_does_not_get_in(network: FakeNetwork) -> None:
    """Servers that serve local users take their effective user for a moment."""
    with listener(NAME):
        address = resolve()
        os.seteuid(NOBODY)
        try:
            with pytest.raises(ConnectionError), closing(plain_client(address)) as client:
                client.recv(1)
        finally:
            os.seteuid(0)
        assert as_nobody(CONNECT, address) in REFUSED
        assert network.streams == []


@second_user
def test_who_sits_at_the_number_before_meets_nobody(network: FakeNetwork) -> None:
    """Everybody can tell the number of a name, and listen there first."""
    squatter = Squatter((NUMBER, 8000))
    try:
        with listener(NAME) as server:
            address = resolve()
            assert address[0] != NUMBER
            with closing(plain_client(address)) as client, server.accept()[0] as accepted:
                client.sendall(b"to alice")
                assert accepted.recv(10) == b"to alice"
    finally:
        assert squatter.leave() == ["nobody came"]


@second_user
def test_nobody_sits_where_the_engine_sits(network: FakeNetwork) -> None:
    with listener(NAME) as server:
        client, accepted = pair(server, NAME)
        with client, accepted, NTCPSocket() as parked:
            parked.setblocking(False)
            network.silent.add("bob")
            with pytest.raises(BlockingIOError):
                parked.connect(("bob.ntcp", 8000))
            engine = _portal.get().engine
            park = engine.car_parks[socket.AF_INET]
            places = [
                resolve(),
                engine._doors[socket.AF_INET].address,
                park.address,
                park.refusing,
                Plain.getsockname(server),
            ]
            for place in places:
                assert as_nobody(LISTEN, place) == ["EADDRINUSE"] * 4, place


@second_user
def test_at_a_listener_under_a_name(network: FakeNetwork) -> None:
    with listener(NAME) as server:
        background = Background(server.accept)
        assert as_nobody(CONNECT, Plain.getsockname(server)) in REFUSED
        with NTCPSocket() as client:
            client.connect((NAME, 8000))
            accepted, _ = background.result()
            with accepted:
                assert accepted.peer is not None
                client.sendall(b"mine")
                assert accepted.recv(10) == b"mine"
        assert server._named is not None
        assert server._named.listener is not None
        assert server._named.listener.strangers == 1


@second_user
def test_at_the_engine_s_door(network: FakeNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the dialling and the application's own connect."""
    outcomes = []
    announce = Dialled.announce

    def intrude(self: Dialled, source: tuple[str, int]) -> None:
        announce(self, source)
        outcomes.append(as_nobody(CONNECT, self.address))

    monkeypatch.setattr(Dialled, "announce", intrude)
    with listener(NAME) as server:
        client, accepted = pair(server, NAME)
        with client, accepted:
            client.sendall(b"mine")
            assert accepted.recv(10) == b"mine"
    assert len(outcomes) == 1
    assert outcomes[0] in REFUSED


@second_user
def test_at_the_park_of_waiting_connects(network: FakeNetwork) -> None:
    network.silent.add(LABEL)
    with NTCPSocket() as parked:
        parked.setblocking(False)
        with pytest.raises(BlockingIOError):
            parked.connect((NAME, 8000))
        park = _portal.get().engine.car_parks[socket.AF_INET]
        # Its SYN is dropped as everybody's is: the queue is full.
        assert as_nobody(CONNECT, park.address) == ["error", "timeout"]
        assert as_nobody(CONNECT, park.refusing) == ["error", "ECONNREFUSED"]
        # The descriptor that waits answers its own address only: a SYN from elsewhere meets no listener.
        assert as_nobody(CONNECT, Plain.getsockname(parked)) == ["error", "ECONNREFUSED"]
        assert parked._parked is not None
        assert parked._parked.pending


@second_user
def test_who_takes_the_port_of_a_listener_that_is_gone(network: FakeNetwork) -> None:
    """Closed in C, where we did not see it: the engine still believes that the program listens."""
    server = listener(NAME)
    address = Plain.getsockname(server)
    os.close(server.fileno())
    squatter = Squatter(address)
    try:
        with NTCPSocket() as client:
            client.settimeout(PATIENCE)
            client.connect((NAME, 8000))
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        wait_until(lambda: (LABEL, 8000) not in network.listeners)
    finally:
        assert squatter.leave() == ["nobody came"]
        server.detach()


def test_who_takes_it_while_the_engine_connects(
    network: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked at again when the connection is made, before a byte goes."""
    asked = []

    def is_there(self: Listening) -> bool:
        asked.append(self)
        return len(asked) % 2 == 1  # yes before, no after

    monkeypatch.setattr(Listening, "is_there", is_there)
    with listener(NAME) as server, NTCPSocket() as client:
        client.settimeout(PATIENCE)
        client.connect((NAME, 8000))
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        # What was connected meanwhile has got nothing, and our own accept lets it not in.
        server.settimeout(0.2)
        with pytest.raises(OSError, match=r"."):
            server.accept()
        assert len(asked) == 2


def test_of_listeners_that_share_a_port_each_is_the_program_s(network: FakeNetwork) -> None:
    first, second = Plain(), Plain()
    with first, second:
        for sock in (first, second):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        first.bind(("127.0.0.1", 0))
        first.listen()
        target = first.getsockname()
        alone, shared = (
            Listening(LABEL, 8000, 1, socket.AF_INET, target, lambda error: None, shared=shared)
            for shared in (False, True)
        )
        assert alone.is_there()
        assert shared.is_there()
        second.bind(target)
        second.listen()
        first.close()
        assert not alone.is_there()
        assert shared.is_there()
        second.close()
        assert not shared.is_there()


def test_where_it_cannot_be_asked_just_now_the_listener_stays(
    network: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*arguments: Any, **keywords: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    with listener(NAME) as server:
        with monkeypatch.context() as patch, NTCPSocket() as client:
            patch.setattr(_owner, "by_diag", exhausted)
            patch.setattr(_owner, "by_proc", exhausted)
            client.settimeout(PATIENCE)
            client.connect((NAME, 8000))
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        client, accepted = pair(server, NAME)
        client.close()
        accepted.close()


#: Asks at the abstract Unix address arguments[0] (hexadecimal) who has arrived, with a secret that it has guessed.
ASK = """
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
    sock.settimeout(5)
    sock.connect(bytes.fromhex(arguments))
    sock.send(bytes(16) + b"127.0.0.1 1")
    try:
        result = ["received", sock.recv(1000).hex()]
    except OSError as error:
        result = ["error", errno.errorcode.get(error.errno, "timeout")]
"""

#: Answers whatever is asked at an abstract Unix address, once.
LIE = """
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.bind(bytes.fromhex(arguments))
sock.listen()
print(json.dumps(["listens"]), flush=True)
asker, _ = sock.accept()
try:
    result = ["asked", asker.recv(1000).hex()]
except OSError:
    result = ["asked", ""]
"""


@second_user
def test_who_asks_for_arrivals_without_the_secret(network: FakeNetwork) -> None:
    with listener(NAME) as server:
        assert server._named is not None
        assert server._named.listener is not None
        inquiry = server._named.listener.inquiry
        assert inquiry is not None
        assert as_nobody(ASK, inquiry.address.hex()) in (["received", ""], ["error", "ECONNRESET"])


@second_user
def test_who_answers_for_the_engine_is_not_asked() -> None:
    """A worker makes sure whose engine it is before it shows its secret."""
    address = b"\0ntcpsock-test-" + os.urandom(8).hex().encode()
    liar = Squatter(address.hex(), LIE)
    try:
        assert Inquiry(address, b"s" * 16, os.geteuid()).ask(("127.0.0.1", 1)) is None
    finally:
        assert liar.leave() == ["asked", ""]
