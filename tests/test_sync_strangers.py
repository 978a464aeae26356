"""Other programs of the same machine get neither into a connection nor into a listener."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fake_node import FakeNetwork
from sync_support import PATIENCE, Background, fake_network, listener, pair, wait_until

from ntcpsock import NTCPSocket, _portal
from ntcpsock._hop import Dialled


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNetwork]:
    with fake_network(monkeypatch, tmp_path) as network:
        yield network


def is_refused(stranger: socket.socket) -> bool:
    try:
        return stranger.recv(1) == b""
    except OSError as error:
        return error.errno in (errno.ECONNRESET, errno.ENOTCONN)


def test_the_engine_s_door_lets_in_only_who_was_announced(
    network: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strangers connect first, between the dialling and the application's own connect."""
    strangers: list[socket.socket] = []
    announce = Dialled.announce

    def crowd(self: Dialled, source: tuple[str, int]) -> None:
        announce(self, source)
        for _ in range(5):
            stranger = socket.socket()
            stranger.settimeout(PATIENCE)
            strangers.append(stranger)
            with suppress(ConnectionResetError):  # refused faster than it could look
                stranger.connect(self.address)

    monkeypatch.setattr(Dialled, "announce", crowd)
    with listener() as server:
        client, accepted = pair(server)
        client.sendall(b"hello")
        assert accepted.recv(10) == b"hello"
        assert len(strangers) == 5
        for stranger in strangers:
            with stranger:
                assert is_refused(stranger)
        client.close()
        accepted.close()


def test_a_stranger_from_the_announced_source_gets_nothing(
    network: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SO_REUSEADDR on both lets a second program bind the same source. Whoever connects second fails to
    connect, and then the engine throws away the first."""
    thieves: list[socket.socket] = []
    announce = Dialled.announce

    def steal(self: Dialled, source: tuple[str, int]) -> None:
        announce(self, source)
        thief = socket.socket()
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.settimeout(PATIENCE)
        thief.bind(source)
        thief.connect(self.address)
        thieves.append(thief)

    monkeypatch.setattr(Dialled, "announce", steal)
    with listener() as server, NTCPSocket() as client:
        client.settimeout(PATIENCE)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="assign requested address"):
            client.connect(("alice.ntcp", 8000))
        [thief] = thieves
        with thief:
            assert is_refused(thief)
        accepted, _ = server.accept()
        with accepted, pytest.raises(ConnectionResetError):
            accepted.recv(1)


def test_a_dialled_stream_that_nobody_takes_is_reset(
    network: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ntcpsock._hop.ARRIVAL_DEADLINE", 0.05)
    with listener() as server:
        portal = _portal.get()
        portal.call(portal.engine.dial, None, "alice", 8000, None, socket.AF_INET)
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(PATIENCE)
            with pytest.raises(ConnectionResetError):
                accepted.recv(1)


def listening_address(server: NTCPSocket) -> tuple[str, int]:
    address: tuple[str, int] = socket.socket.getsockname(server)
    return address


def test_a_listener_accepts_only_what_the_engine_brings(network: FakeNetwork) -> None:
    with listener() as server:
        assert listening_address(server)[0] == "127.0.0.1"
        stranger = socket.create_connection(listening_address(server), PATIENCE)
        client, accepted = pair(server)
        assert accepted.peer is not None
        client.sendall(b"hello")
        assert accepted.recv(10) == b"hello"
        with stranger, client, accepted:
            assert is_refused(stranger)


def test_strangers_do_not_prolong_a_time_out(network: FakeNetwork) -> None:
    with listener() as server:
        server.settimeout(0.4)
        address = listening_address(server)

        def knock() -> None:
            for _ in range(8):
                with socket.create_connection(address, PATIENCE) as stranger:
                    is_refused(stranger)
                time.sleep(0.1)

        started = time.monotonic()
        thread = Background(knock)
        with pytest.raises(TimeoutError):
            server.accept()
        assert time.monotonic() - started < 0.4 + 0.35
        server.close()
        with suppress(OSError):  # the listener is gone
            thread.result()


def test_a_non_blocking_accept_does_not_wait_for_the_next(network: FakeNetwork) -> None:
    with listener() as server:
        server.setblocking(False)
        with socket.create_connection(listening_address(server), PATIENCE) as stranger:
            wait_until(lambda: _refuses(server))
            assert is_refused(stranger)


def _refuses(server: NTCPSocket) -> bool:
    with pytest.raises(BlockingIOError):
        server.accept()
    return True
