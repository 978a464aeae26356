"""Options that mean the way to the peer reach the connection that goes there."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from fake_node import FakeNetwork
from sync_support import PATIENCE, fake_network, listener, pair, wait_until

from ntcpsock import NTCPSocket, _forwarding, _known, _portal
from ntcpsock._session.stream import NTCPStream

TCP = socket.IPPROTO_TCP


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNetwork]:
    with fake_network(monkeypatch, tmp_path) as network:
        network.encrypted = True
        yield network


def carrier(sock: NTCPSocket) -> socket.socket:
    """The TCP connection to the peer behind `sock`."""
    ends = _known.ends(socket.socket.getsockname(sock), socket.socket.getpeername(sock))
    wait_until(lambda: ends in _forwarding._ways)
    way = _forwarding._ways[ends].carrier
    assert way is not None
    return way


def stream(sock: NTCPSocket) -> NTCPStream:
    """What carries the connection of `sock`."""
    carrier(sock)
    found = _forwarding._ways[ends_of(sock)].stream
    assert isinstance(found, NTCPStream)
    return found


def ends_of(sock: NTCPSocket) -> _known.Ends:
    return _known.ends(socket.socket.getsockname(sock), socket.socket.getpeername(sock))


def idle(sock: socket.socket) -> int:
    return sock.getsockopt(TCP, socket.TCP_KEEPIDLE)


def wait_idle(sock: NTCPSocket, seconds: int) -> None:
    wait_until(lambda: idle(carrier(sock)) == seconds)
    assert carrier(sock).getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_options_set_before_connect(network: FakeNetwork) -> None:
    with listener() as server, NTCPSocket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        client.setsockopt(TCP, socket.TCP_KEEPIDLE, 11)
        client.setsockopt(TCP, socket.TCP_USER_TIMEOUT, 9000)
        client.settimeout(PATIENCE)
        client.connect(("alice.ntcp", 8000))
        server.accept()[0].close()
        wait_idle(client, 11)
        assert carrier(client).getsockopt(TCP, socket.TCP_USER_TIMEOUT) == 9000
        assert idle(client) == 11


def test_options_set_afterwards_and_by_a_copy(network: FakeNetwork) -> None:
    with listener() as server:
        client, accepted = pair(server)
        with client, accepted:
            for sock in (client, accepted):
                sock.setsockopt(TCP, socket.TCP_KEEPIDLE, 12)
                assert idle(carrier(sock)) != 12  # no probes were asked for
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                wait_idle(sock, 12)
            with client.dup() as copy:
                copy.setsockopt(TCP, socket.TCP_KEEPIDLE, 10)
            wait_idle(client, 10)


def test_an_accepted_socket_has_its_listener_s(network: FakeNetwork) -> None:
    with listener() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        server.setsockopt(TCP, socket.TCP_KEEPIDLE, 13)
        client, accepted = pair(server)
        with client, accepted:
            assert idle(accepted) == 13
            wait_idle(accepted, 13)


def test_probes_that_keep_nats_awake_are_never_slowed_down(network: FakeNetwork) -> None:
    with listener() as server:
        client, accepted = pair(server)
        with client, accepted:
            way = carrier(client)
            way.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            way.setsockopt(TCP, socket.TCP_KEEPIDLE, 60)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            client.setsockopt(TCP, socket.TCP_KEEPIDLE, 7200)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
            assert idle(way) == 60
            assert way.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_nothing_is_kept_of_connections_that_are_over(network: FakeNetwork) -> None:
    with listener() as server:
        for _ in range(3):
            client, accepted = pair(server)
            for sock in (client, accepted):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                sock.close()
        wait_until(lambda: not _portal.get().engine._pumps)
        assert not _forwarding._ways
        client, accepted = pair(server)
        with client, accepted:
            carrier(client)
            carrier(accepted)

            def forgotten() -> bool:
                # What is over is forgotten when the next option is set; the engine may still be ending it.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
                return not _forwarding._early

            wait_until(forgotten)


def test_who_would_not_wait_for_a_peer_does_not_wait_for_another_path(network: FakeNetwork) -> None:
    with listener() as server:
        client, accepted = pair(server)
        with client, accepted:
            assert stream(client).linger == math.inf
            client.setsockopt(TCP, socket.TCP_USER_TIMEOUT, 9000)
            wait_until(lambda: stream(client).linger == 9.0)
            # The system's own schedule is nobody's wish.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            client.setsockopt(TCP, socket.TCP_USER_TIMEOUT, 0)
            wait_until(lambda: stream(client).linger == math.inf)
            client.setsockopt(TCP, socket.TCP_KEEPCNT, 4)
            client.setsockopt(TCP, socket.TCP_KEEPIDLE, 5)
            client.setsockopt(TCP, socket.TCP_KEEPINTVL, 2)
            wait_until(lambda: stream(client).linger == 13.0)
            client.setsockopt(TCP, socket.TCP_USER_TIMEOUT, 20_000)
            assert stream(client).linger == 13.0
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
            wait_until(lambda: stream(client).linger == 20.0)
            assert stream(accepted).linger == math.inf


def test_an_accepted_connection_has_the_patience_of_its_listener(network: FakeNetwork) -> None:
    with listener() as server:
        server.setsockopt(TCP, socket.TCP_USER_TIMEOUT, 7000)
        client, accepted = pair(server)
        with client, accepted:
            wait_until(lambda: stream(accepted).linger == 7.0)


def test_the_next_carrier_gets_the_options_too(network: FakeNetwork) -> None:
    with listener() as server:
        client, accepted = pair(server)
        with client, accepted:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            client.setsockopt(TCP, socket.TCP_KEEPIDLE, 14)
            wait_idle(client, 14)
            carrier(client).setsockopt(TCP, socket.TCP_KEEPIDLE, 60)
            patience = stream(client).linger
            # Its pump lets go of the stream, and another one begins.
            _portal.get().call(change_pump, stream(client))
            wait_until(lambda: ends_of(client) in _forwarding._ways)
            wait_idle(client, 14)
            assert stream(client).linger == patience < math.inf


async def change_pump(moving: NTCPStream) -> None:
    before = moving.holder
    await moving.suspend()
    moving.go_on()
    while moving.holder in (None, before):
        await trio.sleep(0.001)
