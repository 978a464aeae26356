"""The stream: trio's conformance suite over memory and TLS, and what a session must keep exact."""

from __future__ import annotations

import socket

from session_support import clog, make_stream, memory_streams, tls_carriers, tls_streams
from trio.testing import check_half_closeable_stream

from ntcpsock._session.stream import NTCPStream


async def test_conformance_over_memory() -> None:
    async def maker() -> tuple[NTCPStream, NTCPStream]:
        return memory_streams()

    async def clogged_maker() -> tuple[NTCPStream, NTCPStream]:
        first, second = memory_streams()
        await clog(first)
        await clog(second)
        return first, second

    await check_half_closeable_stream(maker, clogged_maker)


async def test_conformance_over_tls() -> None:
    async def clogged_maker() -> tuple[NTCPStream, NTCPStream]:
        carriers = await tls_carriers()
        for carrier in carriers:  # fixed sizes: the kernel would go on finding room for a while
            carrier.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
            carrier.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        first, second = (make_stream(carrier) for carrier in carriers)
        await clog(first)
        await clog(second)
        return first, second

    await check_half_closeable_stream(tls_streams, clogged_maker)
