"""servers/nginx.conf before a broker: TLS, WebSockets and the relay, through the nginx of this machine."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from certificates import Authority
from relay_support import PATIENCE, running_broker
from test_relay_connect import check_both_ways, connect

from ntcpsock._address import BrokerAddress, Endpoint
from ntcpsock._config import Config
from ntcpsock._servers.broker import BrokerServer
from ntcpsock._servers.web import WebLimits
from ntcpsock.trio import open_node

CONFIG = Path(__file__).parents[1] / "servers" / "nginx.conf"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: nginx-light)")


def configuration(folder: Path, broker: str, front: str, files: tuple[Path, Path]) -> Path:
    """The shipped one with other places in it (ADDR:PORT), so that it runs beside whatever else runs here, as any
    user."""
    text = CONFIG.read_text(encoding="utf-8")
    assert text.count("server 127.0.0.1:6060;") == 1
    return placed(text.replace("server 127.0.0.1:6060;", f"server {broker};"), folder, front, files)


def placed(text: str, folder: Path, front: str, files: tuple[Path, Path]) -> Path:
    """A shipped configuration for any user in `folder`, listening at `front` (ADDR:PORT) with a certificate and key."""
    places = {
        "listen 443 ssl;": f"listen {front} ssl;",
        "        listen [::]:443 ssl;\n": "",
        "/etc/ssl/broker.example.org/fullchain.pem": str(files[0]),
        "/etc/ssl/broker.example.org/privkey.pem": str(files[1]),
        "worker_processes auto;": "master_process off;\ndaemon off;\nerror_log stderr;",
        "    access_log off;\n": "    access_log off;\n"
        + "".join(
            f"    {name}_temp_path {folder}/{name};\n"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        ),
    }
    for ours, theirs in places.items():
        assert text.count(ours) == 1, ours
        text = text.replace(ours, theirs)
    made = folder / "nginx.conf"
    made.write_text(text, encoding="utf-8")
    return made


def run_nginx(folder: Path, config: Path) -> None:
    """Becomes it, until killed."""
    assert NGINX is not None
    os.execv(NGINX, [NGINX, "-p", str(folder), "-c", str(config)])


def wait_for(host: str, port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection((host, port), PATIENCE).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"nothing listens on {host}:{port}"
            time.sleep(0.02)


def start(folder: Path, config: Path) -> subprocess.Popen[bytes]:
    assert NGINX is not None
    with open(folder / "nginx.log", "wb") as log:
        return subprocess.Popen([NGINX, "-p", str(folder), "-c", str(config)], stdout=log, stderr=log)


@asynccontextmanager
async def running_nginx(
    folder: Path, broker: int, *, names: tuple[str, ...] = ("localhost",)
) -> AsyncIterator[tuple[int, Authority]]:
    """Its TLS port."""
    authority = Authority(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = configuration(
        folder, f"127.0.0.1:{broker}", f"127.0.0.1:{port}", authority.issue(folder, *names)
    )
    process = start(folder, config)
    try:
        await trio.to_thread.run_sync(wait_for, "127.0.0.1", port)
        yield port, authority
    finally:
        process.terminate()
        await trio.to_thread.run_sync(process.wait)


@asynccontextmanager
async def behind_nginx(
    folder: Path, **settings: object
) -> AsyncIterator[tuple[BrokerServer, Config, Authority]]:
    """A broker behind it, and the settings of nodes that know only the front."""
    async with running_broker(udp=False, behind=["127.0.0.1"], **settings) as server:
        async with running_nginx(folder, server.address.port) as (port, authority):
            uri = str(BrokerAddress("localhost", port, server.key, tls=True))
            yield server, Config(broker=uri, ca_file=authority.file, state_dir=folder / "bob"), authority


async def ask(port: int, authority: Authority, head: str) -> bytes:
    context = ssl.create_default_context(cafile=authority.file)
    stream = trio.SSLStream(
        await trio.open_tcp_stream("127.0.0.1", port),
        context,
        server_hostname="localhost",
        https_compatible=True,
    )
    with trio.fail_after(PATIENCE):
        await stream.send_all(f"{head}\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join([bytes(part) async for part in stream])
    await trio.aclose_forcefully(stream)
    return answer


async def test_signalling_and_the_relay_through_nginx(tmp_path: Path) -> None:
    async with behind_nginx(tmp_path) as (server, config, _):
        async with (
            open_node(config, name="alice", relay="only", state_dir=tmp_path / "alice") as alice,
            open_node(config, relay="only") as bob,
        ):
            async with await alice.open_listener(8000) as listening:
                for _ in range(3):
                    mine, theirs = await connect(bob, listening)
                    assert mine.path.kind == "relay"
                    await check_both_ways(mine, theirs)
        assert server.relay is not None
        assert server.relay.counters.joined == 3
        assert server.web is not None
        # The broker itself was spoken to without TLS.
        assert server.web.counters.tls == 0


async def test_a_direct_path_past_nginx(tmp_path: Path) -> None:
    """Nodes at the front are seen where they are: candidates at the address that X-Forwarded-For tells are dialled."""
    async with behind_nginx(tmp_path) as (_, config, _):
        async with (
            open_node(config, name="alice", state_dir=tmp_path / "alice") as alice,
            open_node(config) as bob,
        ):
            async with await alice.open_listener(8000) as listening:
                mine, theirs = await connect(bob, listening)
                assert mine.path.kind in ("lan", "tcp")
                await check_both_ways(mine, theirs)


async def test_what_strangers_find_at_the_front(tmp_path: Path) -> None:
    async with behind_nginx(tmp_path) as (server, config, authority):
        assert config.broker is not None
        port = int(config.broker.partition("?")[0].rpartition(":")[2])
        assert (await ask(port, authority, "GET /.well-known/ntcp HTTP/1.1")).startswith(b"HTTP/1.1 200 ")
        for path in (
            "/metrics",
            "/healthz",
            "/readyz",
            "/signal/",
            "/.well-known/ntcp/..",
            "/status/data.json",
        ):
            answer = await ask(port, authority, f"GET {path} HTTP/1.1")
            assert not answer.startswith(b"HTTP/1.1 200 ") or b"An ntcpsock broker" in answer, path
        # Nothing of a client's own header arrives.
        sources: list[Endpoint] = []
        assert server.web is not None
        handler = server.web._handlers["/"]

        async def note(visitor: object) -> None:
            sources.append(visitor.source)  # type: ignore[attr-defined]
            await handler(visitor)  # type: ignore[arg-type]

        server.web._handlers = {**server.web._handlers, "/": note}
        await ask(port, authority, "GET / HTTP/1.1\r\nX-Forwarded-For: 192.0.2.1")
        assert [source.host for source in sources] == ["127.0.0.1"]


@pytest.mark.parametrize(("behind", "source"), [(["127.0.0.1"], "192.0.2.1"), (["127.0.0.9"], "127.0.0.1")])
async def test_a_front_is_believed_only_where_we_were_told_of_it(behind: list[str], source: str) -> None:
    async with running_broker(behind=behind) as server:
        seen: list[str] = []
        assert server.web is not None

        async def note(visitor: object) -> None:
            seen.append(visitor.source.host)  # type: ignore[attr-defined]

        server.web._handlers = {"/": note}
        async with await trio.open_tcp_stream(*server.address) as stream:
            await stream.send_all(
                b"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.77, 192.0.2.1\r\n\r\n"
            )
            await stream.receive_some(1)
        assert seen == [source]


async def test_who_comes_through_a_front_is_counted_by_his_own_address() -> None:
    """One stranger's half-open connections do not keep others out, nor does he get more than his share."""
    limits = WebLimits(unproven_of_a_host=2, proof_deadline=PATIENCE)
    async with running_broker(behind=["127.0.0.0/8"], web_limits=limits) as server:
        waiting = trio.Event()

        async def wait(visitor: object) -> None:
            await waiting.wait()

        assert server.web is not None
        server.web._handlers = {"/": wait}
        streams = []
        for host in ("192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2"):
            stream = await trio.open_tcp_stream(*server.address)
            streams.append(stream)
            await stream.send_all(f"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {host}\r\n\r\n".encode())
            if len(streams) == 3:
                with trio.fail_after(PATIENCE):
                    assert (await stream.receive_some(100)).startswith(b"HTTP/1.1 429 ")
        with trio.fail_after(PATIENCE):
            while server.web.counters.open < 3:
                await trio.sleep(0.01)
        assert server.web.counters.refused == 1
        waiting.set()
        for stream in streams:
            await stream.aclose()
