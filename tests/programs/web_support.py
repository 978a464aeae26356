"""Web programs at both ends of a connection by name: applications, a client for all servers, and servers started
as their users start them (`ntcp run gunicorn ...`).

What differs by name, and why, is a table in docs/guide/web.md. Not tried here: HTTP/3, which is UDP and has no names.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alice_certificate import make_certificate
from program_support import DEADLINE, NTCP, PAYLOAD, environment, run

from ntcpsock.cli.stage import Stage, stop

#: GET /payload, POST /digest, GET /stream (chunked), GET /pid, for WSGI servers.
WSGI_APP = (
    PAYLOAD
    + """
import os

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/digest":
        digest = hashlib.sha256()
        while chunk := environ["wsgi.input"].read(65536):
            digest.update(chunk)
        answer = [digest.hexdigest().encode()]
    elif path == "/payload":
        answer = [PAYLOAD]
    elif path == "/stream":
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return (PAYLOAD[at : at + 10_000] for at in range(0, 1_000_000, 10_000))
    else:
        answer = [str(os.getpid()).encode()]
    start_response("200 OK", [("Content-Length", str(len(answer[0])))])
    return answer
"""
)

#: The same for ASGI servers, and a WebSocket echo at /echo.
ASGI_APP = (
    PAYLOAD
    + """
import os

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                print("shut down", flush=True)
                return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "bytes": message.get("bytes"), "text": message.get("text")})
        return
    headers, parts = [], [str(os.getpid()).encode()]
    if scope["path"] == "/digest":
        digest, more = hashlib.sha256(), True
        while more:
            message = await receive()
            digest.update(message.get("body", b""))
            more = message.get("more_body", False)
        parts = [digest.hexdigest().encode()]
    elif scope["path"] == "/payload":
        parts = [PAYLOAD]
    elif scope["path"] == "/stream":
        parts = [PAYLOAD[at : at + 10_000] for at in range(0, 1_000_000, 10_000)]
    if len(parts) == 1:
        headers = [(b"content-length", str(len(parts[0])).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
"""
)

#: Waits for what may still be registering its name. No library has anything to do with it.
WAIT = """
import contextlib, socket, time

def wait_until_up(host, port):
    deadline = time.monotonic() + 80
    while True:
        try:
            return socket.create_connection((host, port)).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
"""

#: URL: everything that a server can be asked, from one pool. What runs `main` is to be put behind it.
ASYNC_CLIENT = (
    PAYLOAD
    + WAIT
    + """
import asyncio, ssl, sys
import anyio, httpx

url = httpx.URL(sys.argv[1])
wait_until_up(url.host, url.port)

async def main():
    verify = ssl.create_default_context(cafile="certificate.pem") if url.scheme == "https" else False
    limits = httpx.Limits(max_connections=20)
    statuses = []
    async with httpx.AsyncClient(base_url=url, verify=verify, timeout=60, limits=limits) as client:
        assert hashlib.sha256((await client.get("/payload")).content).hexdigest() == DIGEST
        assert (await client.post("/digest", content=PAYLOAD)).text == DIGEST
        async with client.stream("GET", "/stream") as response:
            parts = [part async for part in response.aiter_raw()]
        assert b"".join(parts) == PAYLOAD[:1_000_000]

        async def get():
            statuses.append((await client.get("/pid")).status_code)

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(get)
        print(statuses.count(200))
        try:
            await client.get(url.copy_with(port=url.port + 1))
        except httpx.ConnectError as error:
            print(type(error).__name__)

"""
)

#: URL FILE: edits the file, and asks until another process answers than before.
CHANGES = (
    WAIT
    + """
import sys
from urllib.request import urlopen

url, path = sys.argv[1:]
host, _, port = url.partition("//")[2].partition(":")
wait_until_up(host, int(port))

def pid():
    with contextlib.suppress(OSError):
        return urlopen(url + "/pid", timeout=60).read()

before = pid()
deadline = time.monotonic() + 80
with open(path, "a") as file:
    file.write("# edited\\n")
while pid() in (before, None):
    assert time.monotonic() < deadline, "not reloaded"
    time.sleep(0.1)
print("replaced")
"""
)

#: uvicorn's options for TLS inside.
TLS = ["--ssl-certfile", "certificate.pem", "--ssl-keyfile", "key.pem"]


class Server:
    """A server under `ntcp run`, as `words` start it in `folder`. What it says is in `log`."""

    def __init__(self, stage: Stage, folder: Path, node: str, *words: str, **variables: str) -> None:
        self.log_path = folder / f"{node}.stderr"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*NTCP, "run", "--name", node, *words],
                cwd=folder,
                env={**environment(stage, node), **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")


@contextmanager
def serving(stage: Stage, folder: Path, node: str, *words: str, **variables: str) -> Iterator[Server]:
    """A server of the application in app.py. At its end it gets a SIGTERM, and must go without a complaint."""
    make_certificate(folder)
    server = Server(stage, folder, node, *words, **variables)
    try:
        yield server
        assert server.process.poll() is None, server.log
        server.process.send_signal(signal.SIGTERM)
        status = server.process.wait(DEADLINE)
    finally:
        stop(server.process)
    assert status in (0, -signal.SIGTERM), f"{status}\n{server.log}"
    assert "Traceback" not in server.log, server.log


def ask(stage: Stage, folder: Path, url: str) -> None:
    """Download, upload, stream, keep alive, and twenty at once, from another process."""
    assert run(stage, folder, "asker", ASYNC_CLIENT + "asyncio.run(main())\n", url) == ["20", "ConnectError"]


def watched_folder(folder: Path, app: str) -> Path:
    """A folder with nothing but `app`, for a server that reloads: what a test writes beside it for its clients
    would be a change too, and the server would replace itself while it is asked."""
    watched = folder / "watched"
    watched.mkdir()
    (watched / "app.py").write_text(app)
    return watched


def edit_and_ask(stage: Stage, folder: Path, watched: Path) -> None:
    """Ask a server that reloads, edit its application, and ask its successor."""
    url = "http://alice.ntcp:8000"
    ask(stage, folder, url)
    assert run(stage, folder, "editor", CHANGES, url, str(watched / "app.py")) == ["replaced"]
    ask(stage, folder, url)
