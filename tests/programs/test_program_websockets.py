"""websockets: its threading and its asyncio implementation, each as server and as client, with TLS inside."""

from __future__ import annotations

from pathlib import Path

import pytest
from program_support import PAYLOAD, run
from web_support import WAIT, serving

from ntcpsock.cli.stage import open_loopback_stage

pytest.importorskip("websockets", reason="websockets is not installed")

TLS = """
import ssl
tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
tls.load_cert_chain("certificate.pem", "key.pem")
"""
SYNC_SERVER = (
    TLS
    + """
import signal, threading
from websockets.sync.server import serve

def echo(connection):
    for message in connection:
        connection.send(message)

with serve(echo, "alice.ntcp", 8000, max_size=None, ssl=tls) as server:
    # It waits for the loop that the main thread runs.
    signal.signal(signal.SIGTERM, lambda *args: threading.Thread(target=server.shutdown).start())
    server.serve_forever()
print("shut down")
"""
)
ASYNC_SERVER = (
    TLS
    + """
import asyncio, signal
from websockets.asyncio.server import serve

async def echo(connection):
    async for message in connection:
        await connection.send(message)

async def main():
    async with serve(echo, "alice.ntcp", 8000, max_size=None, ssl=tls) as server:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.close)
        await server.wait_closed()

asyncio.run(main())
print("shut down")
"""
)
CLIENT = (
    PAYLOAD
    + WAIT
    + """
import asyncio, ssl, sys
from concurrent.futures import ThreadPoolExecutor
from websockets.asyncio.client import connect
from websockets.sync.client import connect as connect_sync

wait_until_up("alice.ntcp", 8000)
tls = ssl.create_default_context(cafile="certificate.pem")
URL = "wss://alice.ntcp:8000/"

def talk(number):
    with connect_sync(URL, ssl=tls, max_size=None) as connection:
        connection.send(str(number))
        return connection.recv()

with connect_sync(URL, ssl=tls, max_size=None) as connection:
    connection.send(PAYLOAD)
    assert connection.recv() == PAYLOAD
    connection.send(PAYLOAD[at : at + 10_000] for at in range(0, 1_000_000, 10_000))  # fragments
    assert connection.recv() == PAYLOAD[:1_000_000]
    assert connection.ping().wait(60)
print(connection.close_code)
with ThreadPoolExecutor(10) as executor:
    print(len(set(executor.map(talk, range(10)))))

async def talk(number):
    async with connect(URL, ssl=tls, max_size=None) as connection:
        await connection.send(PAYLOAD[: number * 100_000])
        assert await connection.recv() == PAYLOAD[: number * 100_000]
        await (await connection.ping())
    return connection.close_code

async def main():
    print(set(await asyncio.gather(*map(talk, range(10)))))
    try:
        await connect("ws://alice.ntcp:8001/")
    except OSError as error:
        print(isinstance(error, ConnectionRefusedError))

asyncio.run(main())
"""
)


@pytest.mark.parametrize("source", [SYNC_SERVER, ASYNC_SERVER], ids=["sync", "asyncio"])
def test_websockets(tmp_path: Path, source: str) -> None:
    (tmp_path / "server.py").write_text(source)
    with open_loopback_stage() as stage:
        with serving(stage, tmp_path, "alice", "server.py") as server:
            lines = run(stage, tmp_path, "bob", CLIENT)
    assert lines == ["1000", "10", "{1000}", "True"]
    assert "shut down" in server.log
