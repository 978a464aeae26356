"""The servers' TCP port: its pages, and what strangers get."""

from __future__ import annotations

import json

import pytest
import trio
import trio.testing
from relay_support import running_broker, say

from ntcpsock._address import Endpoint, encode_node_id
from ntcpsock._servers.listener import open_listener
from ntcpsock._servers.visitor import Visitor
from ntcpsock._servers.web import WebLimits, WebServer


async def test_the_pages_say_key_and_servers() -> None:
    async with running_broker(stun=[Endpoint("192.0.2.9", 3478)]) as server:
        head, _, body = (
            await say(server.address, b"GET /.well-known/ntcp HTTP/1.1\r\nHost: x\r\n\r\n")
        ).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"application/json" in head
        document = json.loads(body)
        assert document["key"] == encode_node_id(server.key)
        assert document["stun"] == ["192.0.2.9:3478"]
        assert document["relays"] == ["0.0.0.0:0"]
        text = await say(server.address, b"GET / HTTP/1.0\r\n\r\n")
        assert encode_node_id(server.key).encode() in text
        head = await say(server.address, b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert head.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20000 + b"\r\n\r\n", 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /signal HTTP/1.1\r\nHost: x\r\n\r\n", 426),
        (b"GET /signal HTTP/1.1\r\nHost: \xff\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", 426),
        (b"GET /relay HTTP/1.1\r\nHost: x\r\n\r\n", 403),
    ],
)
async def test_what_is_not_served_is_answered_in_a_line(request_text: bytes, status: int) -> None:
    async with running_broker() as server:
        assert (await say(server.address, request_text)).startswith(b"HTTP/1.1 %d " % status)
        assert server.web is not None
        while server.web.counters.open:
            await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("behind", "forwarded", "seen"),
    [
        ((), b"203.0.113.5", "127.0.0.1"),
        (("127.0.0.1",), b"203.0.113.5", "203.0.113.5"),
        # What a client says itself comes before what the proxy adds.
        (("127.0.0.1",), b"198.51.100.9, 2001:DB8::1", "2001:db8::1"),
        (("127.0.0.1",), b"somebody", "127.0.0.1"),
        (("127.0.0.2",), b"203.0.113.5", "127.0.0.1"),
    ],
)
async def test_only_a_known_proxy_says_who_comes(
    behind: tuple[str, ...], forwarded: bytes, seen: str
) -> None:
    async def answer(visitor: Visitor) -> None:
        await visitor.answer(200, visitor.source.host)

    listener = open_listener("127.0.0.1", 0)
    server = WebServer({"/": answer}, behind=behind)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve, [listener])
            request = b"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: " + forwarded + b"\r\n\r\n"
            response = await say(Endpoint(*listener.socket.getsockname()[:2]), request)
            assert response.endswith(b"\r\n\r\n" + seen.encode())
            nursery.cancel_scope.cancel()


async def test_an_endless_head_is_not_read_to_its_end() -> None:
    async with running_broker() as server:
        stream = await trio.open_tcp_stream(*server.address)

        async def send_for_ever() -> None:
            await stream.send_all(b"GET / HTTP/1.1\r\n")
            while True:
                await stream.send_all(b"X" * 65536)

        async with stream:
            with pytest.raises(trio.BrokenResourceError):
                await send_for_ever()


async def test_a_new_stranger_displaces_the_oldest() -> None:
    async with running_broker(web_limits=WebLimits(unproven=2)) as server:
        streams = [await trio.open_tcp_stream(*server.address) for _ in range(3)]
        try:
            assert await streams[0].receive_some(1) == b""
            for stream in streams[1:]:
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert await stream.receive_some(8) == b"HTTP/1.1"
        finally:
            for stream in streams:
                await stream.aclose()
        assert server.web is not None
        assert server.web.counters.displaced == 1


async def test_a_websocket_without_a_node_behind_it_ends() -> None:
    request = (
        b"GET /signal HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    async with running_broker(web_limits=WebLimits(proof_deadline=0.5)) as server:
        answer = await say(server.address, request)
        assert answer.startswith(b"HTTP/1.1 101 ")
        assert server.web is not None
        assert server.web.counters.late == 1
        # Words that no node says end it: unmasked, text, too long.
        for words in (b"\x82\x01x", b"\x81\x81\0\0\0\0x", b"\x82\xfe\x08\0\0\0\0\0" + bytes(2048)):
            await say(server.address, request + words)
        assert server.core.dropped == {}
        # What is no frame of ours is the core's to count.
        await say(server.address, request + b"\x82\x81\0\0\0\0x")
        assert server.core.dropped == {"not a sealed frame": 1}
