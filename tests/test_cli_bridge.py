"""The bridge between two connections, on plain TCP: ends, resets, cancellation; and connecting, with its errors."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import typer

from ntcpsock.cli.bridge import Bridge, TcpEnd, open_tcp
from ntcpsock.cli.local import addresses_of, open_local
from ntcpsock.cli.places import parse_place


async def tcp_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    (listener,) = await open_local("127.0.0.1", 0)
    async with listener:
        ((host, port),) = addresses_of([listener])
        client = await open_tcp(host, port, timeout=10)
        return client, await listener.accept()


@asynccontextmanager
async def bridged() -> AsyncIterator[tuple[trio.SocketStream, trio.SocketStream, Bridge, trio.Nursery]]:
    """client <-> bridge <-> service; the bridge runs in the nursery."""
    client, near = await tcp_pair()
    service, far = await tcp_pair()
    bridge = Bridge(TcpEnd(near), TcpEnd(far))
    async with client, service, trio.open_nursery() as nursery:
        nursery.start_soon(bridge.run)
        yield client, service, bridge, nursery


async def read_all(stream: trio.SocketStream) -> bytes:
    return b"".join([bytes(chunk) async for chunk in stream])


async def test_both_directions_end_apart() -> None:
    with trio.fail_after(60):
        async with bridged() as (client, service, bridge, _):
            await client.send_all(b"question")
            await client.send_eof()
            assert await read_all(service) == b"question"
            await service.send_all(b"answer")
            await service.aclose()
            assert await read_all(client) == b"answer"
        assert (bridge.sent, bridge.received, bridge.broken_by) == (8, 6, None)


@pytest.mark.parametrize("who", ["near", "far"])
async def test_reset_of_either_side(who: str) -> None:
    with trio.fail_after(60):
        async with bridged() as (client, service, bridge, _):
            await client.send_all(b"x")
            assert await service.receive_some(1) == b"x"
            first, second = (client, service) if who == "near" else (service, client)
            TcpEnd(first).reset()
            with pytest.raises(trio.BrokenResourceError) as caught:
                await second.receive_some(1)
            assert isinstance(caught.value.__cause__, ConnectionResetError)
        assert bridge.broken_by is getattr(bridge, who)
        assert bridge.error is not None


async def test_reset_behind_an_end() -> None:
    # After its end the client is not read any more: only a look at its state shows that it is gone.
    with trio.fail_after(60):
        async with bridged() as (client, service, bridge, _):
            await client.send_eof()
            assert await read_all(service) == b""
            bridge.check()
            assert not is_broken(bridge)
            TcpEnd(client).reset()
            while not is_broken(bridge):
                bridge.check()
                await trio.sleep(0.01)
            # Who has read the end is told of a reset by the next write but one.
            with pytest.raises(trio.BrokenResourceError):
                await write_until_broken(service)
        assert bridge.broken_by is bridge.near


def is_broken(bridge: Bridge) -> bool:
    return bridge.broken_by is not None


async def write_until_broken(stream: trio.SocketStream) -> None:
    while True:
        await stream.send_all(b"x")
        await trio.sleep(0.01)


async def test_both_ended_is_no_reset() -> None:
    with trio.fail_after(60):
        async with bridged() as (client, service, bridge, _):
            for stream in (client, service):
                await stream.send_eof()
            assert await read_all(client) == await read_all(service) == b""
            bridge.check()
        assert bridge.broken_by is None


async def test_cancelled_half_way() -> None:
    client, near = await tcp_pair()
    service, far = await tcp_pair()
    with trio.fail_after(60):
        async with client, service:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(Bridge(TcpEnd(near), TcpEnd(far)).run)
                await client.send_all(b"half of it")
                assert await service.receive_some(100) == b"half of it"
                nursery.cancel_scope.cancel()
            for stream in (client, service):
                with pytest.raises(trio.BrokenResourceError):
                    await stream.receive_some(1)


async def test_connecting_fails() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ConnectionRefusedError, match=rf"127.0.0.1:{port}: Connection refused") as refused:
        await open_tcp("127.0.0.1", port, timeout=10)
    assert refused.value.errno == errno.ECONNREFUSED
    with pytest.raises(ConnectionRefusedError, match=f"localhost:{port}: Connection refused"):
        await open_tcp("localhost", port, timeout=10)
    with pytest.raises(socket.gaierror, match=r"nowhere\.invalid:80: "):
        await open_tcp("nowhere.invalid", 80, timeout=10)


async def test_connecting_takes_too_long(autojump_clock: trio.testing.MockClock) -> None:
    with socket.socket() as full:
        # A queue that is full drops every SYN.
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        host, port = full.getsockname()
        with (
            socket.create_connection((host, port)),
            pytest.raises(TimeoutError, match="within 3 s") as caught,
        ):
            await open_tcp(host, port, timeout=3)
    assert caught.value.errno == errno.ETIMEDOUT


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("80", ("127.0.0.1", 80)),
        ("0", ("127.0.0.1", 0)),
        ("localhost:65535", ("localhost", 65535)),
        ("192.0.2.1:80", ("192.0.2.1", 80)),
        ("[::1]:80", ("::1", 80)),
        ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80)),
        ("*:80", ("0.0.0.0", 80)),
    ],
)
def test_places(text: str, place: tuple[str, int]) -> None:
    assert parse_place(text, hint="X", lowest=0) == place


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":80",
        "x",
        "x:",
        "x:y",
        "x:-1",
        "x:65536",
        "x:00000080",
        "::1:80",
        "[x]:80",
        "[]:80",
        "x:²",
    ],
)
def test_malformed_places(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_place(text, hint="X", lowest=0)
