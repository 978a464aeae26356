"""The TLS carrier: pinning before the first byte, who is refused, what an altered or cut line does."""

from __future__ import annotations

import gc
import os
import socket
import ssl
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from session_support import certificate, handshake_over, make_stream, tampered_pair, tcp_pair, tls_carriers

from ntcpsock._errors import BadMessage, IdentityMismatch
from ntcpsock._session.binding import receive_bind, send_bind
from ntcpsock._session.tls import ALPN, Carrier, client_handshake, make_certificate, server_handshake


def open_descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


async def test_bind_crosses_and_nothing_is_read_ahead() -> None:
    client, server = await tls_carriers()
    await send_bind(client, b"d" * 16, b"t" * 32)
    await client.send_all(b"behind")
    assert await receive_bind(server) == (b"d" * 16, b"t" * 32, b"")
    assert await server.receive_some(100) == b"behind"
    assert (client.local, client.remote) == (server.remote, server.local)
    for carrier in (client, server):
        assert carrier.socket.version() == "TLSv1.3"
        assert carrier.socket.selected_alpn_protocol() == ALPN
        assert carrier.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not carrier.socket.session_reused
        await carrier.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await carrier.send_all(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await carrier.receive_some(1)


async def test_no_session_tickets() -> None:
    client, server = await tls_carriers()
    await server.send_all(b"x")
    assert await client.receive_some(1) == b"x"
    session = client.socket.session
    assert session is None or not session.has_ticket
    for carrier in (client, server):
        carrier.close()


def test_certificates_differ() -> None:
    first, second = make_certificate(), make_certificate()
    assert len(first.fingerprint) == 32
    assert first.fingerprint != second.fingerprint


async def test_wrong_fingerprint_is_refused_before_the_first_byte() -> None:
    client, server = await tcp_pair()
    before = open_descriptors()
    outcome: list[object] = []

    async def serve() -> None:
        # In TLS 1.3 the server is done when the client's Finished comes: it learns of the refusal
        # as a connection that ends without a BIND.
        try:
            carrier = await server_handshake(server, certificate())
        except OSError as error:
            outcome.append(error)
            return
        try:
            outcome.append(await receive_bind(carrier))
        except (OSError, BadMessage) as error:
            outcome.append(error)
        carrier.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with pytest.raises(IdentityMismatch):
            await client_handshake(client, b"\0" * 32)
    assert isinstance(outcome[0], (OSError, BadMessage))
    assert open_descriptors() == before - 2


GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "zeros": bytes(4096),
    "ones": b"\xff" * 4096,
    "plain bind": b"\x10" + bytes(60),
    "cut client hello": bytes.fromhex("1603010200010001fc0303") + bytes(20),
    "huge record": bytes.fromhex("160303ffff") + bytes(2000),
}


@pytest.mark.parametrize("name", GARBAGE)
@pytest.mark.parametrize("side", ["server", "client"])
async def test_a_third_party_that_speaks_no_tls(name: str, side: str) -> None:
    stranger, ours = await tcp_pair()
    with stranger:
        await stranger.send(GARBAGE[name])
        stranger.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionError):
            await HANDSHAKES[side](ours)
        assert ours.fileno() == -1


async def expect_refusal(stream: trio.SSLStream[trio.SocketStream]) -> None:
    try:
        await stream.do_handshake()
        assert await stream.receive_some(1) == b""
    except trio.BrokenResourceError:
        pass
    await trio.aclose_forcefully(stream)


def other_client(*, version: ssl.TLSVersion | None = None, alpn: list[str] | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if version is not None:
        context.maximum_version = version
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


@pytest.mark.parametrize(
    "context",
    [
        other_client(version=ssl.TLSVersion.TLSv1_2, alpn=[ALPN]),
        other_client(),
        other_client(alpn=["h2", "http/1.1"]),
        other_client(alpn=["ntcp/2"]),
    ],
    ids=["tls 1.2", "no alpn", "http", "another ntcp"],
)
async def test_a_tls_client_that_is_not_ours(context: ssl.SSLContext) -> None:
    stranger, ours = await tcp_pair()
    stream = trio.SSLStream(trio.SocketStream(stranger), context)

    async def dial() -> None:
        await expect_refusal(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial)
        with pytest.raises(ConnectionAbortedError):
            await server_handshake(ours, certificate())


async def test_a_tls_server_that_is_not_ours() -> None:
    """The right certificate is not enough: the server must have chosen our protocol."""
    client, server = await tcp_pair()
    theirs = make_certificate()
    theirs.server_context.set_alpn_protocols(["http/1.1"])
    stream = trio.SSLStream(trio.SocketStream(server), theirs.server_context, server_side=True)

    async def serve() -> None:
        await expect_refusal(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with pytest.raises(ConnectionAbortedError, match="does not speak"):
            await client_handshake(client, theirs.fingerprint)


async def test_a_peer_that_is_gone_before_the_handshake() -> None:
    for handshake in HANDSHAKES.values():
        stranger, ours = await tcp_pair()
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        stranger.close()
        with pytest.raises(ConnectionError):
            await handshake(ours)
        assert ours.fileno() == -1


HANDSHAKES: dict[str, Callable[[trio.socket.SocketType], Awaitable[Carrier]]] = {
    "client": lambda sock: client_handshake(sock, certificate().fingerprint),
    "server": lambda sock: server_handshake(sock, certificate()),
}


@pytest.mark.parametrize("side", HANDSHAKES)
async def test_cancelled_before_its_first_step(side: str) -> None:
    certificate()
    before = open_descriptors()
    stranger, ours = await tcp_pair()
    with stranger, trio.CancelScope() as scope:
        scope.cancel()
        await HANDSHAKES[side](ours)
    assert scope.cancelled_caught
    assert open_descriptors() == before


@pytest.mark.parametrize("from_client", [True, False], ids=["client's bytes", "server's bytes"])
@pytest.mark.parametrize("limit", [0, 1, 5, 50, 130, 300])
async def test_cancelled_in_the_middle(from_client: bool, limit: int) -> None:
    """The line goes dead after `limit` bytes of one side; both give up, and no socket stays open."""
    certificate()
    before = open_descriptors()
    async with tampered_pair() as (client, server, tamperer):

        def stop_at_limit(is_client: bool, data: bytes) -> bytes:
            return data if is_client != from_client else data[: max(0, limit - tamperer.passed[is_client])]

        tamperer.handle = stop_at_limit
        with trio.CancelScope() as scope:

            async def give_up() -> None:
                await trio.testing.wait_all_tasks_blocked(0.02)
                scope.cancel()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(give_up)
                await handshake_over(client, server)
        assert scope.cancelled_caught
        assert (client.fileno(), server.fileno()) == (-1, -1)
    assert open_descriptors() == before


@pytest.mark.parametrize("position", [0, 3, 5, 12, -1])
async def test_an_altered_record_breaks_the_stream(position: int) -> None:
    async with tampered_pair() as (client, server, tamperer):
        first, second = (make_stream(carrier) for carrier in await handshake_over(client, server))
        await first.send_all(b"good")
        assert await second.receive_some() == b"good"

        def alter(is_client: bool, data: bytes) -> bytes:
            changed = bytearray(data)
            if is_client:
                changed[position] ^= 0x10
            return bytes(changed)

        tamperer.handle = alter
        await first.send_all(b"evil" * 10)
        async with trio.open_nursery() as nursery:

            async def no_more_comes() -> None:
                await trio.testing.wait_all_tasks_blocked(0.1)
                first.reset()  # an altered length field waits for bytes that never come

            nursery.start_soon(no_more_comes)
            with pytest.raises(trio.BrokenResourceError) as caught:
                await second.receive_some()
            nursery.cancel_scope.cancel()
        assert isinstance(caught.value.__cause__, ConnectionError)
        for stream in (first, second):
            await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("kind", ["tcp end", "close_notify", "inside a record"])
async def test_truncation_is_not_the_end(kind: str) -> None:
    """Only FIN ends a stream: whoever cuts the line makes an error of it."""
    async with tampered_pair() as (client, server, tamperer):
        client_carrier, server_carrier = await handshake_over(client, server)
        first, second = make_stream(client_carrier), make_stream(server_carrier)
        await first.send_all(b"whole")
        assert await second.receive_some() == b"whole"
        if kind == "close_notify":
            client_carrier.close()
        elif kind == "tcp end":
            tamperer.handle = lambda is_client, data: None if is_client else data
            await first.send_all(b"lost")
        else:
            tamperer.handle = lambda is_client, data: data[:20] if is_client else data
            await first.send_all(b"lost")
            await trio.testing.wait_all_tasks_blocked(0.02)
            tamperer.handle = lambda is_client, data: None if is_client else data
            await first.send_all(b"lost")
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError) as caught:
                await second.receive_some()
            assert isinstance(caught.value.__cause__, ConnectionResetError)
        for stream in (first, second):
            await trio.aclose_forcefully(stream)


async def test_bind_refuses_everything_else() -> None:
    for wire in (bytes(61), b"\x01" * 61, b""):
        client, server = await tls_carriers()
        await client.send_all(wire)
        client.close()
        with pytest.raises(BadMessage):
            await receive_bind(server)
        server.close()
