"""What the tests of QUIC share: paths over loopback, and pairs of carriers over them."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from session_support import certificate

from ntcpsock._address import Endpoint
from ntcpsock._session.binding import receive_bind, send_bind
from ntcpsock._session.datagram_path import DatagramPath
from ntcpsock._session.quic.carrier import QuicCarrier, quic_client_handshake, quic_server_handshake
from ntcpsock._session.socket_path import SocketPath


def socket_paths(size: int = 1200, host: str = "127.0.0.1") -> tuple[SocketPath, SocketPath]:
    """Two ends over loopback."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    first, second = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(2))
    for sock in (first, second):
        sock.bind((host, 0))
    return (
        SocketPath(first, Endpoint(*second.getsockname()[:2]), max_datagram_size=size),
        SocketPath(second, Endpoint(*first.getsockname()[:2]), max_datagram_size=size),
    )


async def handshake(
    nursery: trio.Nursery, client: DatagramPath, server: DatagramPath, keep_alive: float = 15.0
) -> tuple[QuicCarrier, QuicCarrier]:
    """The client's and the server's carrier, after BIND."""
    return await handshake_in(nursery, nursery, client, server, keep_alive)


async def handshake_in(
    ours: trio.Nursery,
    theirs: trio.Nursery,
    client: DatagramPath,
    server: DatagramPath,
    keep_alive: float = 15.0,
) -> tuple[QuicCarrier, QuicCarrier]:
    """As `handshake`, each end in a nursery of its own."""
    carriers: dict[str, QuicCarrier] = {}

    async def accept() -> None:
        carriers["server"] = await quic_server_handshake(
            server, certificate(), nursery=theirs, keep_alive=keep_alive
        )

    async with trio.open_nursery() as both:
        both.start_soon(accept)
        carriers["client"] = await quic_client_handshake(
            client, certificate().fingerprint, nursery=ours, keep_alive=keep_alive
        )
    await send_bind(carriers["client"], b"d" * 16, b"t" * 32)
    assert await receive_bind(carriers["server"]) == (b"d" * 16, b"t" * 32, b"")
    return carriers["client"], carriers["server"]


@asynccontextmanager
async def quic_carriers(size: int = 1200) -> AsyncIterator[tuple[QuicCarrier, QuicCarrier]]:
    """A client's and a server's carrier over loopback, for as long as the block."""
    async with trio.open_nursery() as nursery:
        yield await handshake(nursery, *socket_paths(size))
        nursery.cancel_scope.cancel()
