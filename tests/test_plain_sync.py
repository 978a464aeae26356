"""`encryption="off"` through the sync face: the program's own descriptor is the connection wherever it can be."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from sync_support import PATIENCE, Background, listener, pair, receive_all, wait_until
from world import Servers, World

import ntcpsock
from ntcpsock import NTCPSocket, _known, _listening, _portal
from ntcpsock._config import Config
from ntcpsock._errors import EncryptionMismatch, PeerRefused

plain = socket.socket
NAME = ("alice.ntcp", 8000)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    started = Servers(tmp_path_factory.mktemp("world"))
    yield started
    started.stop()


@pytest.fixture
def world(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """This process is alice, without encryption, and dials itself."""
    for variable in ("NTCP_CONFIG", "NTCP_ALLOW"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NTCP_BROKER", servers.world.uri)
    monkeypatch.setenv("NTCP_STATE", str(servers.world.directory / "alice"))
    monkeypatch.setenv("NTCP_NAME", "alice")
    monkeypatch.setenv("NTCP_ENCRYPTION", "off")
    _portal.stop()
    monkeypatch.setattr(_portal, "node_opener", None)
    yield servers.world
    _portal.stop(2)


def kernel_ends(sock: NTCPSocket) -> tuple[Any, Any]:
    return plain.getsockname(sock), plain.getpeername(sock)


def is_punched(sock: NTCPSocket) -> bool:
    """Whether the kernel says that this socket is the connection to the peer."""
    assert sock.path is not None
    return kernel_ends(sock) == (tuple(sock.path.local), tuple(sock.path.remote))


def test_both_ends_are_one_kernel_connection(world: World) -> None:
    with listener() as server:
        accepting = Background(server.accept)
        client = NTCPSocket()
        client.settimeout(PATIENCE)
        client.connect(NAME)
        accepted, address = accepting.result()
        with client, accepted:
            assert kernel_ends(client) == kernel_ends(accepted)[::-1]
            assert is_punched(client)
            assert is_punched(accepted)
            # Names and numbers are as for every other connection by name.
            assert address == accepted.getpeername() == client.getsockname()
            assert accepted.getsockname() == client.getpeername()
            assert client.getpeername()[1] == 8000
            assert client.peer is not None
            assert accepted.peer is not None
            assert accepted.peer.name == "alice"
            assert client.report is not None
            assert client.path is not None
            assert client.path.kind == "lan"
            client.sendall(b"there")
            assert accepted.recv(10) == b"there"
            accepted.sendall(b"back")
            assert client.recv(10) == b"back"


def test_who_speaks_first_loses_nothing(world: World) -> None:
    with listener() as server:

        def serve() -> None:
            for number in range(10):
                accepted, _ = server.accept()
                with accepted:
                    accepted.sendall(b"server %d" % number)
                    accepted.shutdown(socket.SHUT_WR)
                    assert receive_all(accepted) == b"client %d" % number

        serving = Background(serve)
        for number in range(10):
            with ntcpsock.create_connection(NAME, timeout=PATIENCE) as client:
                client.sendall(b"client %d" % number)
                client.shutdown(socket.SHUT_WR)
                assert receive_all(client) == b"server %d" % number
        serving.result()


def test_a_blocking_socket_is_blocking_again(world: World) -> None:
    with listener() as server:
        accepting = Background(server.accept)
        with NTCPSocket() as client:
            assert client.connect_ex(NAME) == 0
            accepted, _ = accepting.result()
            with accepted:
                assert is_punched(client)
                assert client.gettimeout() is None
                assert os.get_blocking(client.fileno())
                assert os.get_blocking(accepted.fileno())
                sending = Background(accepted.sendall, b"late")
                assert client.recv(10) == b"late"
                sending.result()


def test_options_that_were_set_before_hold(world: World) -> None:
    options = [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 321),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 98765),
        (socket.SOL_SOCKET, socket.SO_RCVBUF, 40000),
    ]
    with NTCPSocket() as server, NTCPSocket() as client:
        for sock in (server, client):
            sock.settimeout(PATIENCE)
            for option in options:
                sock.setsockopt(*option)
        before = [client.getsockopt(level, name) for level, name, _ in options]
        server.bind(NAME)
        server.listen()
        accepting = Background(server.accept)
        client.connect(NAME)
        accepted, _ = accepting.result()
        with accepted:
            for sock in (client, accepted):
                assert is_punched(sock)
                assert [sock.getsockopt(level, name) for level, name, _ in options] == before
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0
            # Set afterwards it is where it belongs as well.
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 123)
            assert plain.getsockopt(client, socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 123


def test_a_reset_is_a_reset(world: World) -> None:
    with listener() as server:
        accepting = Background(server.accept)
        with ntcpsock.create_connection(NAME, timeout=PATIENCE) as client:
            accepted, _ = accepting.result()
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted.close()
            with pytest.raises(ConnectionResetError):
                client.recv(1)


def test_objects_made_of_the_descriptor_know_their_peer(world: World) -> None:
    with listener() as server:
        accepting = Background(server.accept)
        client = ntcpsock.create_connection(NAME, timeout=PATIENCE)
        accepted, _ = accepting.result()
        with accepted:
            name = client.getpeername()
            with client.dup() as copy, NTCPSocket(fileno=client.detach()) as again:
                for sock in (copy, again):
                    assert isinstance(sock, NTCPSocket)
                    assert sock.getpeername() == name
                    assert sock.peer is not None
                again.sendall(b"x")
                assert accepted.recv(1) == b"x"


def test_what_is_remembered_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_known, "MOST_PUNCHED", 4)
    with listener() as server:

        def serve() -> None:
            for _ in range(5):
                server.accept()[0].close()

        serving = Background(serve)
        for _ in range(5):
            ntcpsock.create_connection(NAME, timeout=PATIENCE).close()
        serving.result()
        wait_until(lambda: len(_known.connections) <= 4)


# Who is pumped.


def check_carries(client: Any, accepted: Any) -> None:
    client.sendall(b"question")
    assert accepted.recv(100) == b"question"
    accepted.sendall(b"answer")
    assert client.recv(100) == b"answer"
    client.shutdown(socket.SHUT_WR)
    assert accepted.recv(1) == b""
    accepted.sendall(bytes(300_000))
    accepted.shutdown(socket.SHUT_WR)
    assert len(receive_all(client)) == 300_000


def test_a_non_blocking_connect_is_pumped(world: World) -> None:
    with listener() as server, NTCPSocket() as client, select.epoll() as poller:
        client.setblocking(False)
        poller.register(client, select.EPOLLOUT)
        poller.poll(0)
        assert client.connect_ex(NAME) == errno.EINPROGRESS
        accepting = Background(server.accept)
        assert poller.poll(PATIENCE) == [(client.fileno(), select.EPOLLOUT)]
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        accepted, _ = accepting.result()
        with accepted:
            assert not is_punched(client)
            assert is_punched(accepted)
            client.settimeout(PATIENCE)
            check_carries(client, accepted)


def test_a_bound_socket_and_ipv6_are_pumped(world: World) -> None:
    with listener() as server:
        for client in (NTCPSocket(), NTCPSocket(socket.AF_INET6)):
            with client:
                client.settimeout(PATIENCE)
                if client.family == socket.AF_INET:
                    client.bind(("127.0.0.1", 0))
                accepting = Background(server.accept)
                client.connect(NAME)
                accepted, _ = accepting.result()
                with accepted:
                    assert not is_punched(client)
                    check_carries(client, accepted)


@pytest.mark.parametrize("listens_first", [True, False])
def test_who_accepts_in_c_gets_a_pumped_connection(world: World, listens_first: bool) -> None:
    """It may wait for the client's word, or speak first."""
    with listener() as server:
        for _ in range(2):

            def accept() -> socket.socket:
                descriptor, _ = plain._accept(server)  # type: ignore[attr-defined]
                accepted = plain(fileno=descriptor)
                accepted.settimeout(PATIENCE)
                if not listens_first:
                    accepted.sendall(b"hello")
                return accepted

            accepting = Background(accept)
            with ntcpsock.create_connection(NAME, timeout=PATIENCE) as client:
                with accepting.result() as accepted:
                    if not listens_first:
                        assert client.recv(10) == b"hello"
                    check_carries(client, accepted)


def test_who_accepts_late_gets_a_pumped_connection(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_listening, "FIRST_CLAIM_PATIENCE", 0.0)
    with listener() as server, ntcpsock.create_connection(NAME, timeout=PATIENCE) as client:
        pumps = _portal.get().engine._pumps
        wait_until(lambda: len(pumps) > 0)
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(PATIENCE)
            assert not is_punched(accepted)
            check_carries(client, accepted)


def test_a_forked_child_has_no_copy_of_what_is_pumped(world: World) -> None:
    """It would keep the connection open after its parent has closed it."""
    with listener() as server, NTCPSocket() as client:
        client.settimeout(PATIENCE)
        client.bind(("127.0.0.1", 0))
        accepting = Background(server.accept)
        client.connect(NAME)
        accepted, _ = accepting.result()
        with accepted:
            client.sendall(b"x")
            assert accepted.recv(1) == b"x"  # the pump is running
            assert client.path is not None
            carrier = tuple(client.path.local), tuple(client.path.remote)
            assert carrier in connections_of_this_process()
            child = os.fork()
            if child == 0:
                os._exit(carrier in connections_of_this_process())
            assert os.waitpid(child, 0)[1] == 0
            accepted.settimeout(PATIENCE)
            check_carries(client, accepted)


def connections_of_this_process() -> list[Any]:
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            sock = plain(fileno=int(descriptor))
        except OSError:
            continue
        try:
            found.append((sock.getsockname(), sock.getpeername()))
        except OSError:
            continue
        finally:
            sock.detach()
    return found


def test_asyncio_at_both_ends(world: World) -> None:
    async def main() -> bytes:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.read())
            writer.close()

        with NTCPSocket() as sock, ntcpsock.patched():
            sock.bind(NAME)
            server = await asyncio.start_server(answer, sock=sock)
            reader, writer = await asyncio.open_connection(*NAME)
            writer.write(b"to and fro")
            writer.write_eof()
            said = await reader.read()
            writer.close()
            await writer.wait_closed()
            server.close()
            return said

    assert asyncio.run(asyncio.wait_for(main(), PATIENCE)) == b"to and fro"


# What goes wrong.


def test_a_port_that_is_refused_leaves_the_socket_usable(world: World) -> None:
    with listener() as server, NTCPSocket() as client:
        client.settimeout(PATIENCE)
        with pytest.raises(PeerRefused):
            client.connect(("alice.ntcp", 8001))
        assert client.report is not None
        assert client.gettimeout() == PATIENCE
        accepting = Background(server.accept)
        client.connect(NAME)
        accepted, _ = accepting.result()
        with accepted:
            accepted.settimeout(PATIENCE)
            check_carries(client, accepted)


def test_a_mismatch_is_the_same_error_here(world: World, servers: Servers) -> None:
    async def run_other(*, task_status: Any) -> None:
        async with world.node("bob", encryption="tls") as node, await node.open_listener(8000):
            task_status.started()
            await trio.sleep_forever()

    trio.from_thread.run(world.nursery.start, run_other, trio_token=servers.token)
    with NTCPSocket() as client:
        client.settimeout(PATIENCE)
        with pytest.raises(EncryptionMismatch, match="bob") as caught:
            client.connect(("bob.ntcp", 8000))
        assert caught.value.errno == errno.EPROTO
        assert client.connect_ex(("bob.ntcp", 8000)) == errno.EPROTO
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.connect(("bob.ntcp", 8000))
        select.select([], [client], [], PATIENCE)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EPROTO


def test_a_timeout_and_a_close_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    descriptors = set(os.listdir("/proc/self/fd"))
    with listener() as server:
        acceptor = _portal.get().engine._named.node._acceptor

        async def never(_: bytes) -> None:
            await trio.sleep_forever()

        with monkeypatch.context() as patch:
            patch.setattr(acceptor.dials, "token", never)
            with NTCPSocket() as client:
                client.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    client.connect(NAME)
                assert client.gettimeout() == 0.3
            closed = NTCPSocket()
            connecting = Background(closed.connect, NAME)
            wait_until(lambda: bool(acceptor.dials.awaited) or bool(acceptor.doorkeeper.strangers))
            closed.close()
        with pytest.raises((TimeoutError, ConnectionError, OSError), match=r".+"):
            connecting.result()
        client, accepted = pair(server)
        client.close()
        assert accepted.recv(1) == b""
        accepted.close()
    _portal.stop(2)
    wait_until(lambda: set(os.listdir("/proc/self/fd")) <= descriptors)


def test_only_config_of_the_process_counts(world: World) -> None:
    with NTCPSocket(config=Config.load(encryption="off")) as client:
        client.settimeout(PATIENCE)
        with pytest.raises(OSError, match="nobody"):
            client.connect(("nobody.ntcp", 1))
        # Before anything was punched the socket is as new.
        assert plain.getsockname(client)[1] == 0
