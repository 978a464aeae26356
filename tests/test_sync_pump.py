"""What happens on one end of a connection happens on the other: bytes, half-close, reset, back-pressure."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_node import FakeNetwork
from sync_support import Background, fake_network, listener, pair, receive_all, wait_until

from ntcpsock import NTCPSocket, _portal, _pumps


@pytest.fixture(params=["tasks", "loop", "quic"])
def network(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[FakeNetwork]:
    """Each test for both pumps: the one for any stream, and the one for TLS over TCP; and over QUIC."""
    with fake_network(monkeypatch, tmp_path) as network:
        network.encrypted = request.param == "loop"
        network.quic = request.param == "quic"
        yield network


@pytest.fixture
def ends(network: FakeNetwork) -> Iterator[tuple[NTCPSocket, NTCPSocket]]:
    with listener() as server:
        client, accepted = pair(server)
        with client, accepted:
            yield client, accepted


Ends = tuple[NTCPSocket, NTCPSocket]


def pumps() -> int:
    portal = _portal.current()
    return 0 if portal is None else len(portal.engine._pumps)


def linger_0(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("dialer_sends", [True, False])
def test_bytes_arrive_unchanged_both_ways_at_once(ends: Ends, dialer_sends: bool) -> None:
    first, second = ends if dialer_sends else ends[::-1]
    data = os.urandom(1 << 20) * 16

    def send(sock: NTCPSocket) -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    threads = [Background(send, first), Background(send, second), Background(receive_all, second)]
    assert hashlib.sha256(receive_all(first)).digest() == hashlib.sha256(data).digest()
    assert threads[2].result() == data
    wait_until(lambda: pumps() == 0)


@pytest.mark.parametrize("dialer_first", [True, False])
def test_half_close_leaves_the_other_direction_open(ends: Ends, dialer_first: bool) -> None:
    first, second = ends if dialer_first else ends[::-1]
    first.sendall(b"question")
    first.shutdown(socket.SHUT_WR)
    assert receive_all(second) == b"question"
    second.sendall(b"answer")
    assert first.recv(100) == b"answer"
    second.sendall(b", and more")
    second.close()
    assert receive_all(first) == b", and more"
    wait_until(lambda: pumps() == 0)


def test_data_written_before_close_arrives(ends: Ends) -> None:
    client, accepted = ends
    data = os.urandom(300_000)
    client.sendall(data)
    client.close()
    assert receive_all(accepted) == data


@pytest.mark.parametrize("dialer_resets", [True, False])
def test_a_reset_is_a_reset(ends: Ends, dialer_resets: bool) -> None:
    first, second = ends if dialer_resets else ends[::-1]
    linger_0(first)
    first.close()
    with pytest.raises(ConnectionResetError):
        second.recv(1)
    wait_until(lambda: pumps() == 0)


def test_closing_with_unread_bytes_is_a_reset(ends: Ends) -> None:
    """As Linux does it (RFC 1122 section 4.2.2.13): the sender must learn that its bytes were not read."""
    client, accepted = ends
    client.sendall(b"x")
    wait_until(lambda: accepted.recv(1, socket.MSG_PEEK) == b"x")
    accepted.close()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_bytes_before_a_reset_can_be_read(ends: Ends) -> None:
    client, accepted = ends
    client.sendall(b"before")
    wait_until(lambda: accepted.recv(6, socket.MSG_PEEK) == b"before")
    linger_0(client)
    client.close()
    assert accepted.recv(100) == b"before"
    with pytest.raises(ConnectionResetError):
        accepted.recv(1)


def test_writing_to_a_closed_peer_breaks(ends: Ends) -> None:
    client, accepted = ends
    accepted.close()
    assert client.recv(1) == b""
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        write_for_ever(client)


def write_for_ever(sock: NTCPSocket) -> None:
    while True:
        sock.sendall(b"x" * 1000)


def fill(sock: NTCPSocket) -> int:
    """Write until nothing fits any more, in the hop, the engine and the network."""
    sock.settimeout(0.3)
    sent = 0
    try:
        while True:
            sent += sock.send(b"x" * 65536)
    except TimeoutError:
        return sent


def test_back_pressure_holds_the_writer_and_loses_nothing(ends: Ends) -> None:
    client, accepted = ends
    sent = fill(client)
    client.shutdown(socket.SHUT_WR)
    assert len(receive_all(accepted)) == sent


def test_a_reset_is_seen_while_the_peer_takes_nothing(
    network: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pump does not read then; the engine looks after the descriptor instead."""
    monkeypatch.setattr(_pumps, "CHECK_INTERVAL", 0.05)
    with listener() as server:
        client, accepted = pair(server)
        with client, accepted:
            fill(client)
            linger_0(client)
            client.close()
            # The peer does not read either; it is told by the reset, behind what has arrived.
            with pytest.raises(ConnectionResetError):
                receive_all(accepted)
    wait_until(lambda: pumps() == 0)


def test_a_reset_after_half_close_is_seen(network: FakeNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pumps, "CHECK_INTERVAL", 0.05)
    with listener() as server:
        client, accepted = pair(server)
        with client, accepted:
            client.shutdown(socket.SHUT_WR)
            assert accepted.recv(1) == b""
            linger_0(client)
            client.close()
            wait_until(lambda: pumps() <= 1)  # the peer may have been told at once
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                write_for_ever(accepted)
    wait_until(lambda: pumps() == 0)


def test_urgent_bytes_stay_in_the_stream(ends: Ends) -> None:
    first, second = ends
    first.sendall(b"before")
    first.send(b"ABOR\r\n", socket.MSG_OOB)
    first.sendall(b"after")
    first.shutdown(socket.SHUT_WR)
    assert receive_all(second) == b"beforeABOR\r\nafter"


def test_makefile_reads_and_writes_lines(ends: Ends) -> None:
    client, accepted = ends
    with client.makefile("rw", newline="\n") as there, accepted.makefile("rwb") as here:
        there.write("first\nsecond\n")
        there.flush()
        assert [here.readline(), here.readline()] == [b"first\n", b"second\n"]
        here.write(b"answer\n")
        here.flush()
        assert there.readline() == "answer\n"
        client.close()  # the file keeps the descriptor
        here.write(b"still\n")
        here.flush()
        assert there.readline() == "still\n"


def test_the_rest_of_the_methods_are_the_kernel_s(ends: Ends, tmp_path: Path) -> None:
    client, accepted = ends
    buffer = bytearray(10)
    client.sendmsg([b"ab", b"cd"])
    assert accepted.recv_into(buffer) == 4
    file = tmp_path / "file"
    file.write_bytes(b"sent from a file")
    with file.open("rb") as source:
        assert client.sendfile(source) == 16
    assert accepted.recv(100, socket.MSG_WAITALL | socket.MSG_PEEK)[:4] == b"sent"
    accepted.settimeout(0.01)
    assert accepted.recv(100) == b"sent from a file"
    with pytest.raises(TimeoutError):
        accepted.recv(1)
    with client.dup() as copy:
        client.close()
        copy.sendall(b"by the copy")
        assert copy.peer is not None
        accepted.settimeout(10)
        assert accepted.recv(100) == b"by the copy"
    assert accepted.recv(1) == b""


def test_detach_hands_on_the_kernel_s_socket(ends: Ends) -> None:
    client, accepted = ends
    with socket.socket(fileno=client.detach()) as plain:
        plain.sendall(b"hello")
        assert accepted.recv(10) == b"hello"


def test_a_thousand_connections_leave_nothing_behind(network: FakeNetwork) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    with listener() as server:
        for end in pair(server):
            end.close()
        wait_until(lambda: pumps() == 0)
        before = descriptors()
        for index in range(200 if network.quic else 1000):  # a handshake of QUIC takes 5 ms at both ends
            client, accepted = pair(server)
            client.sendall(b"x")
            assert accepted.recv(1) == b"x"
            for end in (client, accepted) if index % 2 else (accepted, client):
                end.close()
        wait_until(lambda: pumps() == 0)
        network.streams.clear()
        wait_until(lambda: descriptors() <= before)
        engine = _portal.get().engine
        assert all(not door.expected for door in engine._doors.values())
        assert all(len(one.arrivals) == 0 for one in engine.listeners.ports.values())
