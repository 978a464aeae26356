"""The QUIC carrier over loopback: pinning, the session over it, ends and resets."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from quic_support import quic_carriers, socket_paths
from session_support import certificate, make_stream

from ntcpsock._errors import IdentityMismatch
from ntcpsock._session.quic.carrier import quic_client_handshake, quic_server_handshake
from ntcpsock._session.stream import receive_bind, send_bind


async def test_bind_crosses_and_an_echo_comes_back() -> None:
    async with quic_carriers() as (client, server):
        assert (client.local, client.remote) == (server.remote, server.local)
        await send_bind(client, b"d" * 16, b"t" * 32)
        assert await receive_bind(server) == (b"d" * 16, b"t" * 32, b"")
        near, far = make_stream(client), make_stream(server)
        data = bytes(range(256)) * 20_000

        async def echo() -> None:
            while part := await far.receive_some():
                await far.send_all(part)
            await far.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo)
            nursery.start_soon(near.send_all, data)
            back = bytearray()
            while len(back) < len(data):
                back += await near.receive_some()
            assert back == data
            await near.send_eof()
            assert await near.receive_some() == b""
        await near.aclose()


async def test_another_certificate_is_refused_and_both_ends_say_so() -> None:
    client_path, server_path = socket_paths()
    async with trio.open_nursery() as nursery:

        async def accept() -> None:
            carrier = await quic_server_handshake(server_path, certificate(), nursery=nursery)
            await carrier.wait_readable()
            with pytest.raises(ConnectionResetError):
                carrier.try_receive_into(memoryview(bytearray(1)))

        nursery.start_soon(accept)
        with pytest.raises(IdentityMismatch):
            await quic_client_handshake(client_path, b"x" * 32, nursery=nursery)
