"""aiohttp: server and client, uploads and downloads, a pool, WebSockets, TLS inside, on asyncio and on uvloop."""

from __future__ import annotations

from pathlib import Path

import pytest
from program_support import PAYLOAD, run
from web_support import WAIT, serving

from ntcpsock.cli.stage import open_loopback_stage

pytest.importorskip("aiohttp", reason="aiohttp is not installed")

SERVER = (
    PAYLOAD
    + """
import asyncio, ssl, sys
from aiohttp import WSMsgType, web

async def payload(request):
    return web.Response(body=PAYLOAD)

async def digest(request):
    digest = hashlib.sha256()
    async for chunk in request.content.iter_chunked(65536):
        digest.update(chunk)
    return web.Response(text=digest.hexdigest())

async def stream(request):
    response = web.StreamResponse()
    await response.prepare(request)
    for at in range(0, 1_000_000, 10_000):
        await response.write(PAYLOAD[at : at + 10_000])
    return response

async def echo(request):
    socket = web.WebSocketResponse(max_msg_size=0)
    await socket.prepare(request)
    async for message in socket:
        if message.type == WSMsgType.BINARY:
            await socket.send_bytes(message.data)
        else:
            await socket.send_str(f"{request.remote} {message.data}")
    return socket

if "uvloop" in sys.argv:
    import uvloop
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
tls = None
if "https" in sys.argv:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain("certificate.pem", "key.pem")
app = web.Application(client_max_size=0)
app.add_routes([web.get("/payload", payload), web.post("/digest", digest)])
app.add_routes([web.get("/stream", stream), web.get("/echo", echo)])
web.run_app(app, host="alice.ntcp", port=8000, ssl_context=tls)
print("shut down")
"""
)

CLIENT = (
    PAYLOAD
    + WAIT
    + """
import asyncio, ssl, sys
import aiohttp

url = sys.argv[1]
wait_until_up("alice.ntcp", 8000)

async def main():
    tls = ssl.create_default_context(cafile="certificate.pem")
    connector = aiohttp.TCPConnector(limit=10, ssl=tls)
    async with aiohttp.ClientSession(url, connector=connector) as session:
        async with session.get("/payload") as response:
            assert hashlib.sha256(await response.read()).hexdigest() == DIGEST
        async with session.post("/digest", data=PAYLOAD) as response:
            assert await response.text() == DIGEST
        async with session.get("/stream") as response:
            assert b"".join([chunk async for chunk in response.content.iter_any()]) == PAYLOAD[:1_000_000]

        async def post(number):
            async with session.post("/digest", data=bytes([number]) * 10_000) as response:
                return await response.text()

        print(len(set(await asyncio.gather(*map(post, range(20))))))
        async with session.ws_connect("/echo", max_msg_size=0) as echo:
            await echo.send_bytes(PAYLOAD)
            assert (await echo.receive_bytes()) == PAYLOAD
            await echo.send_str("hello")
            print((await echo.receive_str()).split()[1])
    try:
        async with aiohttp.request("GET", "http://alice.ntcp:8001/"):
            pass
    except aiohttp.ClientConnectorError as error:
        print(type(error.os_error).__name__)

if "uvloop" in sys.argv:
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""
)


@pytest.mark.parametrize(
    ("scheme", "loop"),
    [pytest.param("http", "asyncio", marks=pytest.mark.slow), ("https", "asyncio"), ("http", "uvloop")],
)
def test_aiohttp(tmp_path: Path, scheme: str, loop: str) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    with open_loopback_stage() as stage:
        with serving(stage, tmp_path, "alice", "server.py", scheme, loop) as server:
            lines = run(stage, tmp_path, "bob", CLIENT, f"{scheme}://alice.ntcp:8000", loop)
    assert lines[:2] == ["20", "hello"]
    assert lines[2] in ("PeerRefused", "ConnectionRefusedError")
    assert "shut down" in server.log
