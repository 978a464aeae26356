"""The trio face: conformance of the stream on a real path, `serve`, and unmodified trio code by name."""

from __future__ import annotations

import socket as stdlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from world import World, open_world

import ntcpsock.trio
from ntcpsock._errors import ConfigurationError, NameNotFound, PeerRefused
from ntcpsock._node import Node
from ntcpsock._session.stream import NTCPStream
from ntcpsock._session.tls import Carrier


@asynccontextmanager
async def two_nodes(tmp_path: Path) -> AsyncIterator[tuple[Node, Node]]:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob") as bob:
        yield alice, bob


async def send_until_stuck(stream: NTCPStream) -> None:
    stuck = False
    while not stuck:
        with trio.move_on_after(0.5) as scope:
            await stream.send_all(bytes(65536))
        stuck = scope.cancelled_caught


async def test_streams_conform_on_a_real_path(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (alice, bob), await alice.open_listener(8000) as listener:

        async def make() -> tuple[NTCPStream, NTCPStream]:
            dialled = await bob.open_stream("alice", 8000)
            return dialled, await listener.accept()

        async def make_clogged() -> tuple[NTCPStream, NTCPStream]:
            left, right = await make()
            for stream in (left, right):
                # Buffers of a fixed size: the kernel finds room in those that it sizes by itself.
                for option in (stdlib.SO_SNDBUF, stdlib.SO_RCVBUF):
                    carrier = stream.carrier
                    assert isinstance(carrier, Carrier)
                    carrier.socket.setsockopt(stdlib.SOL_SOCKET, option, 16384)
            # A sender looks for what comes in, and so makes a little room for the other one: both at once.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_until_stuck, left)
                nursery.start_soon(send_until_stuck, right)
            return left, right

        await trio.testing.check_half_closeable_stream(make, make_clogged)


async def test_serve(tmp_path: Path) -> None:
    async def greet(stream: NTCPStream) -> None:
        async with stream:
            await stream.send_all(f"hello {stream.peer.name}".encode())

    async with open_world(tmp_path) as world, world.node("alice"), trio.open_nursery() as nursery:
        (listener,) = await nursery.start(ntcpsock.trio.serve, greet, 8000)
        assert (listener.name, listener.port) == ("alice", 8000)
        async with world.node("bob"), await ntcpsock.trio.open_stream("alice", 8000) as stream:
            assert await stream.receive_some() == b"hello bob"
        nursery.cancel_scope.cancel()


async def test_without_a_node() -> None:
    with pytest.raises(ConfigurationError, match="open_node"):
        await ntcpsock.trio.open_stream("alice", 8000)


async def test_exceptions_of_the_block_come_out_as_they_are(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        with pytest.raises(ZeroDivisionError):
            async with world.node():
                raise ZeroDivisionError


# What follows the next line does not know ntcpsock.


async def unmodified_server(*, task_status: trio.TaskStatus[object]) -> None:
    async def shout(stream: trio.SocketStream) -> None:
        async with stream:
            async for data in stream:
                await stream.send_all(bytes(data).upper())
            await stream.send_all(b"!")

    await trio.serve_tcp(shout, 8000, host="alice.ntcp", task_status=task_status)


async def unmodified_client() -> bytes:
    stream = await trio.open_tcp_stream("alice.ntcp", 8000)
    async with stream:
        await stream.send_all(b"hello")
        await stream.send_eof()
        return b"".join([bytes(data) async for data in stream])


@asynccontextmanager
async def installed() -> AsyncIterator[None]:
    ntcpsock.trio.install()
    try:
        yield
    finally:
        ntcpsock.trio.uninstall()


async def test_unmodified_trio_programs(tmp_path: Path) -> None:
    async with (
        open_world(tmp_path) as world,
        world.node("alice"),
        installed(),
        trio.open_nursery() as nursery,
    ):
        await nursery.start(unmodified_server)
        async with world.node("bob"):
            for _ in range(3):
                assert await unmodified_client() == b"HELLO!"
        nursery.cancel_scope.cancel()


async def test_installed_hooks_leave_plain_addresses_alone(tmp_path: Path) -> None:
    async with installed(), trio.open_nursery() as nursery:

        async def echo(stream: trio.SocketStream) -> None:
            async with stream:
                await stream.send_all(await stream.receive_some())

        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, echo, [listener])
        async with await trio.open_tcp_stream("localhost", listener.socket.getsockname()[1]) as stream:
            await stream.send_all(b"plain")
            assert await stream.receive_some() == b"plain"
        udp = trio.socket.socket(type=stdlib.SOCK_DGRAM)
        await udp.bind(("127.0.0.1", 0))
        await udp.sendto(b"to myself", udp.getsockname())
        assert (await udp.recvfrom(100))[0] == b"to myself"
        udp.close()
        nursery.cancel_scope.cancel()
    with pytest.raises(RuntimeError, match="not installed"):
        ntcpsock.trio.uninstall()


async def socket_pair(world: World) -> tuple[ntcpsock.trio.NTCPSocket, trio.socket.SocketType, object]:
    listener = ntcpsock.trio.socket()
    await listener.bind(("alice.ntcp", 8000))
    listener.listen()
    assert listener.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_ACCEPTCONN)
    client = ntcpsock.trio.socket()
    await client.connect(("alice.ntcp", 8000))
    server, address = await listener.accept()
    listener.close()
    return client, server, address


async def test_socket_methods(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice"):
        client, server, address = await socket_pair(world)
        with client:
            assert client.peer is not None
            assert client.path is not None
            assert client.report is not None
            assert client.peer.name == "alice"
            assert client.getpeername()[0].startswith("127.")
            assert client.getpeername()[1] == 8000
            assert server.getsockname() == client.getpeername()
            assert server.getpeername() == address
            assert await client.send(b"hello") == 5
            assert await server.recv(2) == b"he"
            buffer = bytearray(10)
            assert await server.recv_into(buffer, 2) == 2
            assert await server.recv_into(buffer) == 1
            assert await server.recv(0) == b""
            client.shutdown(stdlib.SHUT_WR)
            assert client.did_shutdown_SHUT_WR
            assert await server.recv(1) == b""
            with pytest.raises(BrokenPipeError):
                await client.send(b"x")
            await server.send(b"still open")
            assert await client.recv(100) == b"still open"
            with pytest.raises(OSError, match="kernel socket"):
                client.fileno()
            with pytest.raises(OSError, match="already connected"):
                await client.connect(("alice.ntcp", 8000))
            with pytest.raises(OSError, match="flags"):
                await client.recv(1, stdlib.MSG_PEEK)
        server.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            await server.send(b"x")


async def test_socket_errors(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice"), installed():
        with ntcpsock.trio.socket() as client, pytest.raises(PeerRefused):
            await client.connect(("alice.ntcp", 1))
        with pytest.raises(OSError, match="all attempts") as caught:
            await trio.open_tcp_stream("nobody.ntcp", 1)
        assert isinstance(caught.value.__cause__, ExceptionGroup)
        assert isinstance(caught.value.__cause__.exceptions[0], NameNotFound)


async def test_closing_at_once_loses_nothing(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096
    async with open_world(tmp_path) as world:
        async with world.node("alice") as alice, await alice.open_listener(8000) as listener:
            async with trio.open_nursery() as nursery:

                async def read() -> None:
                    async with await listener.accept() as stream:
                        assert b"".join([bytes(part) async for part in stream]) == data

                nursery.start_soon(read)
                async with world.node("bob"):
                    client = ntcpsock.trio.socket()
                    await client.connect(("alice.ntcp", 8000))
                    await client.send(data)
                    client.close()
