"""The client's HTTP: proxies of the environment, heads, and what leaves the decoders."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.lowlevel
from fuzz_support import check_decoder

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._traversal.broker.websocket import WebSocketMachine
from ntcpsock._traversal.http.driver import ask, open_connection
from ntcpsock._traversal.http.message import (
    connect_request,
    decode_response_untrusted,
    encode_request,
    upgrade_request,
)
from ntcpsock._traversal.http.proxy import Proxy, find_proxy, parse_proxy

HEADER = {"X": "y"}


@pytest.mark.parametrize(
    ("environ", "host", "proxy"),
    [
        ({}, "broker.example", None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "broker.example", Proxy("proxy", 3128)),
        ({"HTTP_PROXY": "proxy:3128"}, "broker.example", Proxy("proxy", 3128)),
        ({"https_proxy": "http://[2001:db8::1]/"}, "broker.example", Proxy("2001:db8::1", 80)),
        ({"https_proxy": "http://one", "HTTP_PROXY": "http://two"}, "broker.example", Proxy("one", 80)),
        ({"HTTPS_PROXY": "http://u:p%40ss@proxy"}, "b.example", Proxy("proxy", 80, "u:p@ss")),
        ({"HTTPS_PROXY": "socks5://proxy:1080"}, "broker.example", None),
        ({"HTTPS_PROXY": "http://proxy:port"}, "broker.example", None),
        # A CGI program's HTTP_PROXY is a stranger's header.
        ({"HTTP_PROXY": "http://evil", "REQUEST_METHOD": "GET"}, "broker.example", None),
        ({"HTTPS_PROXY": "http://proxy"}, "127.0.0.1", None),
        ({"HTTPS_PROXY": "http://proxy"}, "localhost", None),
        ({"HTTPS_PROXY": "http://proxy", "NO_PROXY": "*"}, "broker.example", None),
        ({"HTTPS_PROXY": "http://proxy", "NO_PROXY": "other, .example"}, "broker.example", None),
        ({"HTTPS_PROXY": "http://proxy", "NO_PROXY": "ker.example"}, "broker.example", Proxy("proxy", 80)),
        ({"HTTPS_PROXY": "http://proxy", "no_proxy": "192.0.2.0/24"}, "192.0.2.7", None),
        ({"HTTPS_PROXY": "http://proxy", "no_proxy": "192.0.2.0/24"}, "192.0.3.7", Proxy("proxy", 80)),
    ],
)
def test_the_proxy_of_an_environment(environ: dict[str, str], host: str, proxy: Proxy | None) -> None:
    assert find_proxy(host, environ) == proxy


def test_a_password_stays_out_of_texts() -> None:
    proxy = parse_proxy("http://user:secret@proxy:3128")
    assert proxy is not None
    assert "secret" not in str(proxy)


def test_requests() -> None:
    assert encode_request(connect_request("2001:db8::1", 6060, "u:p")) == (
        b"CONNECT [2001:db8::1]:6060 HTTP/1.1\r\nHost: [2001:db8::1]:6060\r\n"
        b"Proxy-Authorization: Basic dTpw\r\n\r\n"
    )
    request = encode_request(upgrade_request("h:1", "/relay", "ntcp-relay/1", HEADER))
    assert request.startswith(b"GET /relay HTTP/1.1\r\nHost: h:1\r\nConnection: Upgrade\r\n")
    for host in ("a b\r\nX: y", "näme"):
        with pytest.raises(BadMessage):
            encode_request(connect_request(host, 1, None))


def test_only_bad_message_leaves_the_decoder_of_heads() -> None:
    tunnel, upgrade = connect_request("h", 1, None), upgrade_request("h", "/", "x", {})

    def decode(data: bytes) -> None:
        decode_response_untrusted(tunnel, data)

    def decode_upgrade(data: bytes) -> None:
        decode_response_untrusted(upgrade, data)

    check_decoder(decode, [b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n"], 5_000, 2)
    switching = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
    check_decoder(decode_upgrade, [switching], 5_000, 2)


def test_only_bad_message_leaves_the_websocket_at_either_end() -> None:
    client = WebSocketMachine.client("h")
    request = client.data_to_send()
    headers = [line.split(b": ", 1) for line in request.split(b"\r\n")[1:] if line]
    server = WebSocketMachine.server([(name, value) for name, value in headers])
    answer = server.data_to_send()
    assert client.receive(answer) == []
    assert client.is_open
    client.send(b"one")
    client.send(b"two" * 200)
    words = client.data_to_send()
    server.send(b"three")
    replies = server.data_to_send()

    def serve(data: bytes) -> None:
        machine = WebSocketMachine.server([(name, value) for name, value in headers])
        machine.receive(data)
        machine.data_to_send()

    def browse(data: bytes) -> None:
        machine = WebSocketMachine.client("h")
        machine.data_to_send()
        machine.receive(data)
        machine.data_to_send()

    check_decoder(serve, [words], 2_000, 3)

    def follow(data: bytes) -> None:
        # The key that the answer is for is another client's: that is as bad as any message.
        try:
            browse(data)
        except BadMessage:
            return

    check_decoder(follow, [answer, answer + replies, replies], 2_000, 4)
    assert server.receive(words) == [b"one", b"two" * 200]
    assert client.receive(replies) == [b"three"]


@asynccontextmanager
async def http_server(answer: Callable[[trio.SocketStream], Awaitable[object]]) -> AsyncIterator[Endpoint]:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, answer, 0)
            yield Endpoint("127.0.0.1", listeners[0].socket.getsockname()[1])
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("pieces", [1, 7, 1000])
async def test_nothing_behind_the_head_is_taken(pieces: int) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some(1000)
        data = b"HTTP/1.1 101 OK\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nnot yours"
        for start in range(0, len(data), pieces):
            await stream.send_all(data[start : start + pieces])
            await trio.lowlevel.checkpoint()

    async with http_server(answer) as address:
        with await open_connection(*address, None) as sock:
            await ask(sock, upgrade_request("h", "/", "x", {}), "it")
            stream = trio.SocketStream(sock)
            assert b"".join([bytes(data) async for data in stream]) == b"not yours"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", errno.ECONNREFUSED),
        (b"HTTP/1.1 200 OK\r\n\r\n", errno.ECONNREFUSED),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", errno.EPROTO),
        (b"HTTP/1.1 101 " + b"x" * 20000, errno.EPROTO),
        (b"HTTP/1.1 101", errno.ECONNRESET),
    ],
)
async def test_what_is_no_yes_is_an_error_with_its_reason(text: bytes, number: int) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some(1000)
        await stream.send_all(text)
        await stream.send_eof()
        await stream.receive_some(1)

    async with http_server(answer) as address:
        with await open_connection(*address, None) as sock:
            with pytest.raises(OSError, match=r".") as caught:
                await ask(sock, upgrade_request("h", "/", "x", {}), "the relay")
            assert caught.value.errno == number
