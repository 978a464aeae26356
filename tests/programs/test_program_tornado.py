"""Tornado: HTTP with streamed bodies, WebSockets and TCPClient/TCPServer, by name at both ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from program_support import PAYLOAD, run, running

from ntcpsock.cli.stage import Stage, open_loopback_stage

pytest.importorskip("tornado", reason="tornado is not installed")

SERVER = (
    PAYLOAD
    + """
import asyncio, tornado.tcpserver, tornado.web, tornado.websocket

@tornado.web.stream_request_body
class Page(tornado.web.RequestHandler):
    def prepare(self):
        self.digest = hashlib.sha256()

    def data_received(self, chunk):
        self.digest.update(chunk)

    async def get(self):
        for start in range(0, len(PAYLOAD), 100_000):
            self.write(PAYLOAD[start : start + 100_000])
            await self.flush()

    def put(self):
        self.write(self.digest.hexdigest())

class Echo(tornado.websocket.WebSocketHandler):
    def on_message(self, message):
        self.write_message(message, binary=True)

class Lines(tornado.tcpserver.TCPServer):
    async def handle_stream(self, stream, address):
        await stream.write((await stream.read_until(b"\\n")).upper())
        stream.close()

async def main():
    tornado.web.Application([("/", Page), ("/echo", Echo)]).listen(8000, address="alice.ntcp")
    Lines().listen(8001, address="alice.ntcp")
    print("ready")
    await asyncio.Event().wait()

asyncio.run(main())
"""
)

CLIENT = (
    PAYLOAD
    + """
import asyncio, tornado.httpclient, tornado.iostream, tornado.tcpclient, tornado.websocket

async def main():
    client = tornado.httpclient.AsyncHTTPClient(max_clients=20)
    url = "http://alice.ntcp:8000/"
    answer = await client.fetch(url)
    assert hashlib.sha256(answer.body).hexdigest() == DIGEST
    answer = await client.fetch(url, method="PUT", body=PAYLOAD)
    assert answer.body.decode() == DIGEST
    many = await asyncio.gather(*(client.fetch(url, method="PUT", body=bytes([n])) for n in range(20)))
    print(len({answer.body for answer in many}))

    socket = await tornado.websocket.websocket_connect("ws://alice.ntcp:8000/echo")
    await socket.write_message(PAYLOAD[:1_000_000], binary=True)
    assert await socket.read_message() == PAYLOAD[:1_000_000]
    socket.close()
    print(await socket.read_message())

    stream = await tornado.tcpclient.TCPClient().connect("alice.ntcp", 8001)
    await stream.write(b"make it louder\\n")
    print((await stream.read_until_close()).decode(), end="")
    try:
        await tornado.tcpclient.TCPClient().connect("alice.ntcp", 8002)
    except tornado.iostream.StreamClosedError as error:
        print(type(error.real_error).__name__)

asyncio.run(main())
"""
)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


def test_http_websocket_and_tcp(stage: Stage, tmp_path: Path) -> None:
    with running(stage, tmp_path, "alice", SERVER):
        told = run(stage, tmp_path, "bob", CLIENT)
    assert told == ["20", "None", "MAKE IT LOUDER", "ConnectionRefusedError"]
