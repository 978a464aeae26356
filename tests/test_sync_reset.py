"""close() after SO_LINGER 0: when it returns, the reset has left for the peer, as a plain socket's has."""

from __future__ import annotations

import errno
import select
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_node import FakeNetwork
from sync_support import PATIENCE, fake_network, listener, pair

from ntcpsock import NTCPSocket, _forwarding

LINGER_0 = struct.pack("ii", 1, 0)


@pytest.fixture(params=["loop", "tasks", "quic"])
def network(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[FakeNetwork]:
    with fake_network(monkeypatch, tmp_path) as network:
        network.encrypted = request.param == "loop"
        network.quic = request.param == "quic"
        yield network


def reset_after(client: NTCPSocket, data: bytes) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
    client.sendall(data)
    client.close()


def test_a_peer_in_this_process_has_seen_it(network: FakeNetwork) -> None:
    with listener() as server:
        for _ in range(20):
            client, accepted = pair(server)
            with accepted:
                accepted.sendall(b"first")
                assert client.recv(100) == b"first"  # both pumps are at work
                reset_after(client, b"last")
                # Through tasks it comes a moment later.
                accepted.settimeout(0 if network.encrypted else PATIENCE)
                assert accepted.recv(100) == b"last"
                with pytest.raises(ConnectionResetError):
                    accepted.recv(100)


def test_a_pump_that_is_just_starting_is_waited_for(network: FakeNetwork) -> None:
    with listener() as server:
        for _ in range(20):
            client = NTCPSocket()
            client.connect(("alice.ntcp", 8000))
            reset_after(client, b"")
            with server.accept()[0] as accepted:
                accepted.settimeout(PATIENCE)
                with pytest.raises(ConnectionResetError):
                    accepted.recv(100)


def test_only_such_a_close_waits(network: FakeNetwork) -> None:
    with listener() as server:
        client, accepted = pair(server)
        with client, accepted:
            assert _forwarding.about_to_reset(client) is None
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
            assert _forwarding.about_to_reset(client) is not None
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3))
            assert _forwarding.about_to_reset(client) is None
    with NTCPSocket() as unconnected:
        unconnected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
        assert _forwarding.about_to_reset(unconnected) is None


def test_many_threads_reset_at_once(network: FakeNetwork) -> None:
    with listener() as server:
        pairs = [pair(server) for _ in range(12)]
        threads = [threading.Thread(target=reset_after, args=(client, b"x")) for client, _ in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for _, accepted in pairs:
            with accepted:
                assert select.select([accepted], [], [], PATIENCE)[0]
                accepted.settimeout(PATIENCE)
                received, error = b"", 0
                while not error:
                    try:
                        received += accepted.recv(100)
                    except OSError as caught:
                        error = caught.errno or -1
                assert (received, error) == (b"x", errno.ECONNRESET)
