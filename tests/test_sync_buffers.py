"""Small socket buffers of the program's bound what is under way to the peer, whenever they were set."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_node import FakeNetwork
from sync_support import PATIENCE, fake_network, listener, pair, wait_until

from ntcpsock import NTCPSocket, _forwarding, _known

SMALL = 4096
SEND, RECEIVE = (socket.SOL_SOCKET, socket.SO_SNDBUF), (socket.SOL_SOCKET, socket.SO_RCVBUF)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNetwork]:
    with fake_network(monkeypatch, tmp_path) as network:
        network.encrypted = True
        yield network


def way(sock: NTCPSocket) -> _forwarding.Way:
    ends = _known.ends(socket.socket.getsockname(sock), socket.socket.getpeername(sock))
    wait_until(lambda: ends in _forwarding._ways)
    return _forwarding._ways[ends]


def connect_non_blocking(client: NTCPSocket) -> None:
    client.setblocking(False)
    assert client.connect_ex(("alice.ntcp", 8000)) == errno.EINPROGRESS
    assert select.select([], [client], [], PATIENCE)[1]


def fill(sock: socket.socket) -> int:
    """How many bytes go on their way while nobody reads."""
    sock.setblocking(False)
    sent = 0
    while select.select([], [sock], [], 0.3)[1]:
        sent += sock.send(bytes(65536))
    return sent


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_sender_that_nobody_reads_is_held_back(network: FakeNetwork, when: str) -> None:
    with listener() as server, NTCPSocket() as client:
        if when == "before":
            client.setsockopt(*SEND, SMALL)
        server.setsockopt(*RECEIVE, SMALL)
        client.connect(("alice.ntcp", 8000))
        client.setsockopt(*SEND, SMALL)
        with server.accept()[0]:
            assert fill(client) < 384 * 1024


@pytest.mark.parametrize("blocking", [True, False])
def test_set_before_connect_they_reach_hop_and_carrier(network: FakeNetwork, blocking: bool) -> None:
    with listener() as server, NTCPSocket() as client:
        client.setsockopt(*SEND, SMALL)
        client.setsockopt(*RECEIVE, 2 * SMALL)
        if blocking:
            client.connect(("alice.ntcp", 8000))
        else:
            connect_non_blocking(client)
        server.accept()[0].close()
        hop, carrier, *_ = way(client)
        assert carrier is not None
        wait_until(lambda: hop.getsockopt(*SEND) == client.getsockopt(*RECEIVE))
        # Those that receive hold a segment of loopback's, and the connection to the peer some TLS records.
        wait_until(lambda: hop.getsockopt(*RECEIVE) == carrier.getsockopt(*RECEIVE) == 2 * 40960)
        wait_until(lambda: carrier.getsockopt(*SEND) == 2 * 32768)


def test_a_listener_s_count_for_what_comes_in(network: FakeNetwork) -> None:
    with listener() as server:
        server.setsockopt(*RECEIVE, SMALL)
        client, accepted = pair(server)
        with client, accepted:
            wait_until(lambda: way(accepted).hop.getsockopt(*SEND) == accepted.getsockopt(*RECEIVE))
            assert way(client).hop.getsockopt(*SEND) == 2 * _forwarding.HOP_BUFFER


def test_buffers_that_nobody_set_stay_the_kernel_s(network: FakeNetwork) -> None:
    with listener() as server:
        client, accepted = pair(server)
        with client, accepted:
            assert not _forwarding.wishes(client)
            assert way(client).hop.getsockopt(*RECEIVE) == 2 * _forwarding.HOP_BUFFER
            client.setsockopt(*SEND, _forwarding.HOP_BUFFER)  # large ones are no bound
            assert not _forwarding.wishes(client)


def test_all_bytes_come_through_small_buffers(network: FakeNetwork) -> None:
    data = bytes(range(256)) * 4096
    with listener() as server, NTCPSocket() as client:
        server.setsockopt(*RECEIVE, SMALL)
        client.setsockopt(*SEND, SMALL)
        client.connect(("alice.ntcp", 8000))
        with server.accept()[0] as accepted:
            accepted.settimeout(PATIENCE)
            client.setblocking(False)
            received, sent = bytearray(), 0
            while len(received) < len(data):
                readable, writable, _ = select.select(
                    [accepted], [client] if sent < len(data) else [], [], PATIENCE
                )
                assert readable or writable
                if writable:
                    sent += client.send(data[sent : sent + 65536])
                if readable:
                    received += accepted.recv(65536)
            assert bytes(received) == data
