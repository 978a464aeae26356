"""A connection whose network failed: the application hears the errno that plain TCP would tell."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from fake_node import FakeNetwork, FakeStream
from sync_support import PATIENCE, fake_network, listener, pair, wait_until

import ntcpsock
from ntcpsock import NTCPSocket, _known, _portal
from ntcpsock._pump_loop import LoopPump

SO_ATTACH_FILTER = 26  # linux/include/uapi/asm-generic/socket.h


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNetwork]:
    with fake_network(monkeypatch, tmp_path) as network:
        yield network


@pytest.fixture
def ends(network: FakeNetwork) -> Iterator[tuple[NTCPSocket, NTCPSocket]]:
    """A dialled and an accepted socket, between them a real TCP connection on which nothing arrives any more."""
    network.encrypted = True
    with listener() as server:
        both = pair(server)
        with both[0], both[1]:
            pumps = _portal.get().engine._pumps
            wait_until(lambda: len(pumps) == 2)
            for pump in pumps._pumps:
                assert isinstance(pump, LoopPump)
                drop_everything(pump.carrier.socket)
            yield both
            for sock in both:
                if sock.fileno() >= 0:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.fixture
def cut(ends: tuple[NTCPSocket, NTCPSocket]) -> NTCPSocket:
    return ends[0]


def drop_everything(sock: socket.socket) -> None:
    """A filter by which the kernel drops what comes in for this socket: a network that has failed."""
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF: return 0
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))


def impatient(sock: NTCPSocket) -> None:
    """Bytes under way that nobody confirms for so many milliseconds break the connection."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 200)
    sock.sendall(b"is anybody there?")


@pytest.mark.parametrize("index", [0, 1], ids=["dialled", "accepted"])
def test_a_timed_out_network_is_etimedout(ends: tuple[NTCPSocket, NTCPSocket], index: int) -> None:
    sock = ends[index]
    impatient(sock)
    with sock.makefile("rb") as file, pytest.raises(TimeoutError) as caught:
        file.read()
    assert caught.value.errno == errno.ETIMEDOUT
    assert sock.recv(1) == b""  # an error is told once
    with pytest.raises(BrokenPipeError):
        sock.send(b"x")


def test_tls_of_the_applications_own_hears_it(cut: NTCPSocket) -> None:
    sock = cut
    impatient(sock)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.sslsocket_class = ntcpsock.SSLSocket
    with context.wrap_socket(sock, do_handshake_on_connect=False) as tls:
        with pytest.raises(TimeoutError) as caught:
            socket.socket.recv(tls, 1)
    assert caught.value.errno == errno.ETIMEDOUT


def test_so_error_tells_it(cut: NTCPSocket) -> None:
    sock = cut
    impatient(sock)
    sock.settimeout(0)
    told: list[int] = []

    def asked() -> bool:
        told.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        return told[-1] != 0

    wait_until(asked)
    assert told[-1] == errno.ETIMEDOUT
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert sock.recv(1) == b""


def test_asyncio_hears_it(cut: NTCPSocket) -> None:
    async def main(sock: NTCPSocket) -> None:
        impatient(sock)
        sock.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=sock)
        with pytest.raises(TimeoutError) as caught:
            await reader.read()
        assert caught.value.errno == errno.ETIMEDOUT
        writer.transport.abort()

    asyncio.run(main(cut))


def test_plain_tcp_says_the_same() -> None:
    """What all these tests compare with."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as sock, server.accept()[0] as other:
            for end in (sock, other):
                drop_everything(end)
            sock.settimeout(PATIENCE)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 200)
            sock.sendall(b"is anybody there?")
            with pytest.raises(TimeoutError) as caught:
                sock.recv(1)
            assert caught.value.errno == errno.ETIMEDOUT
            assert sock.recv(1) == b""
            with pytest.raises(BrokenPipeError):
                sock.send(b"x")


def fail(network: FakeNetwork, number: int) -> None:
    """Both directions of the dialler's stream break with an errno."""

    async def broken(self: FakeStream, *args: object) -> bytes:
        await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError from OSError(number, os.strerror(number))

    done = threading.Event()

    def in_the_engine() -> None:
        stream = network.streams[0]
        stream.send_all = broken.__get__(stream)  # type: ignore[method-assign]
        done.set()

    _portal.get().soon(in_the_engine)
    assert done.wait(PATIENCE)  # else what is sent next may still get out


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ETIMEDOUT, errno.ETIMEDOUT),
        (errno.EHOSTUNREACH, errno.ETIMEDOUT),
        (errno.ECONNABORTED, errno.ECONNRESET),  # the peer broke the protocol
    ],
)
def test_what_is_told_of_which_failure(network: FakeNetwork, number: int, told: int) -> None:
    with listener() as server:
        client, accepted = pair(server)
        with client, accepted, client.dup() as twin:
            fail(network, number)
            client.sendall(b"x")
            with pytest.raises(OSError, match=r"\[Errno") as caught:
                client.recv(1)
            assert caught.value.errno == told
            assert twin.recv(1) == b""  # one kernel socket, one error
    wait_until(lambda: not _known.holders)


def test_a_socket_that_is_closed_meanwhile(network: FakeNetwork) -> None:
    with listener() as server:
        client, accepted = pair(server)
        with accepted:
            fail(network, errno.ETIMEDOUT)
            client.sendall(b"x")
            client.close()
            with pytest.raises(ConnectionResetError):
                accepted.recv(1)
    wait_until(lambda: not _portal.get().engine._pumps)


def test_the_engine_can_stop_meanwhile(network: FakeNetwork) -> None:
    with listener() as server:
        client, accepted = pair(server)
        with client, accepted:
            fail(network, errno.ETIMEDOUT)
            client.sendall(b"x")
            with pytest.raises(ConnectionResetError):
                accepted.recv(1)
            _portal.stop(0)
            with pytest.raises(OSError, match=r"\[Errno"):
                client.recv(1)


def send_for_ever(sock: NTCPSocket) -> None:
    while True:
        sock.send(b"x")


def test_writers_tell_it(network: FakeNetwork) -> None:
    with listener() as server:
        client, accepted = pair(server)
        with client, accepted:
            fail(network, errno.ETIMEDOUT)
            with pytest.raises(TimeoutError) as caught:
                send_for_ever(client)
            assert caught.value.errno == errno.ETIMEDOUT


def test_a_reset_of_the_peers_is_a_reset(network: FakeNetwork) -> None:
    with listener() as server:
        client, accepted = pair(server)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        accepted.close()
        with client, pytest.raises(ConnectionResetError):
            client.recv(1)
