"""uvloop by name: it resolves, connects and accepts in C."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from alice_certificate import make_certificate
from fake_node import FakeNetwork
from local_users import CONNECT, as_nobody, need_nobody
from sync_support import PATIENCE, fake_network, receive_all, wait_until

import ntcpsock
from ntcpsock import NTCPSocket, _names, _on_import, _portal

uvloop = pytest.importorskip("uvloop", reason="uvloop is not there for this system")

Plain: Any = NTCPSocket.__mro__[1]
NUMBER = _names.number("alice")


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNetwork]:
    with fake_network(monkeypatch, tmp_path) as network, ntcpsock.patched():
        yield network
    gc.collect()


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(PATIENCE):
            return await main()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(limited())


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write(f"bye {writer.get_extra_info('peername')[0]}".encode())
    writer.close()
    await writer.wait_closed()


async def exchange(host: str, port: int, **tls: Any) -> bytes:
    reader, writer = await asyncio.open_connection(host, port, **tls)
    payload = os.urandom(1_000_000)
    writer.write(payload)
    assert await reader.readexactly(len(payload)) == payload
    if not tls:
        writer.write_eof()  # TLS has no half-close here
        answer = await reader.read()
    else:
        answer = b""
    writer.close()
    await writer.wait_closed()
    return answer


def test_both_ends_of_a_stream(network: FakeNetwork) -> None:
    async def main() -> bytes:
        server = await asyncio.start_server(echo, "alice.ntcp", 8000)
        assert server.is_serving()
        assert [sock.getsockname() for sock in server.sockets] == [(NUMBER, 8000)]
        async with server:
            return await exchange("alice.ntcp", 8000)

    answer = run(main)
    assert answer == b"bye " + _names.number("alice").encode()
    wait_until(lambda: ("alice", 8000) not in network.listeners)


def test_tls(network: FakeNetwork, tmp_path: Path) -> None:
    make_certificate(tmp_path)
    at_server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    at_server.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    at_client = ssl.create_default_context(cafile=str(tmp_path / "certificate.pem"))

    async def main() -> None:
        async with await asyncio.start_server(echo, "alice.ntcp", 8000, ssl=at_server):
            # The name is what the certificate is compared with.
            await exchange("alice.ntcp", 8000, ssl=at_client)

    run(main)


def test_errors_are_the_dial_s(network: FakeNetwork) -> None:
    async def main() -> None:
        with pytest.raises(socket.gaierror):
            await asyncio.open_connection("a b.ntcp", 8000)
        with pytest.raises(ntcpsock.NameNotFound) as caught:
            await asyncio.open_connection("nobody.ntcp", 8000)
        assert caught.value.report is not None
        async with await asyncio.start_server(echo, "alice.ntcp", 8000):
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("alice.ntcp", 8001)
            with pytest.raises(OSError, match="in use"):
                await asyncio.start_server(echo, "alice.ntcp", 8000)

    run(main)


def test_the_resolver(network: FakeNetwork) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        [entry] = await loop.getaddrinfo("alice.ntcp", 8000, type=socket.SOCK_STREAM)
        assert _names.label_of(entry[4][0]) == "alice"
        assert await loop.getnameinfo((NUMBER, 80)) == ("alice.ntcp", "http")
        assert (await loop.getaddrinfo("127.0.0.1", 80))[0][4] == ("127.0.0.1", 80)
        assert await loop.getnameinfo(("127.0.0.1", 80), socket.NI_NUMERICHOST) == ("127.0.0.1", "http")
        # A socket of the program's own.
        async with await asyncio.start_server(echo, "alice.ntcp", 8000):
            with socket.socket() as sock:
                sock.setblocking(False)
                await loop.sock_connect(sock, ("alice.ntcp", 8000))
                assert isinstance(sock, NTCPSocket)
                assert sock.peer is not None
                await loop.sock_sendall(sock, b"hello")
                assert await loop.sock_recv(sock, 5) == b"hello"

    run(main)


def test_a_listener_that_the_program_has_bound(network: FakeNetwork) -> None:
    async def main() -> None:
        with socket.socket() as sock:
            sock.bind(("alice.ntcp", 8000))
            async with await asyncio.start_server(echo, sock=sock):
                await exchange("alice.ntcp", 8000)

    run(main)


def test_ordinary_addresses_stay_uvloop_s(network: FakeNetwork) -> None:
    async def main() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        assert type(server).__module__ == "uvloop.loop"
        async with server:
            port = server.sockets[0].getsockname()[1]
            assert await exchange("127.0.0.1", port) == b"bye 127.0.0.1"
        assert _portal.current() is None

    run(main)


def test_all_addresses_are_published_too(network: FakeNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NTCP_NAME", "alice")

    async def main() -> None:
        async with await asyncio.start_server(echo, "0.0.0.0", 0) as server:
            port = server.sockets[0].getsockname()[1]
            assert await exchange("127.0.0.1", port) == b"bye 127.0.0.1"
            await asyncio.to_thread(wait_until, lambda: ("alice", port) in network.listeners)
            assert await exchange("alice.ntcp", port) == b"bye " + NUMBER.encode()

    run(main)


def test_a_socket_at_all_addresses_is_published_too(
    network: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bound by the program, as uvicorn's reloader does; uvloop would listen in C."""
    monkeypatch.setenv("NTCP_NAME", "alice")

    async def main() -> None:
        with socket.socket() as sock:
            sock.bind(("0.0.0.0", 0))
            port = sock.getsockname()[1]
            async with await asyncio.start_server(echo, sock=sock):
                await asyncio.to_thread(wait_until, lambda: ("alice", port) in network.listeners)
                assert await exchange("alice.ntcp", port) == b"bye " + NUMBER.encode()

    run(main)


def test_a_port_at_which_a_number_answers_is_the_program_s(network: FakeNetwork) -> None:
    async def main() -> None:
        with Plain() as probe:
            probe.bind(("0.0.0.0", 0))
            port = probe.getsockname()[1]
        loop = asyncio.get_running_loop()
        await loop.getaddrinfo("alice.ntcp", port, type=socket.SOCK_STREAM)
        assert len(_portal.get().engine.gates.numbers) == 1
        async with await asyncio.start_server(echo, "0.0.0.0", port):
            assert await exchange("127.0.0.1", port) == b"bye 127.0.0.1"
            with pytest.raises(OSError, match="in use"):
                await asyncio.start_server(echo, "0.0.0.0", port)

    run(main)


def test_a_forked_worker_accepts(network: FakeNetwork) -> None:
    """The listener is the parent's, and so is its engine; uvloop runs in the child only."""
    with socket.socket() as sock:
        sock.bind(("alice.ntcp", 8000))
        sock.listen()
        worker = multiprocessing.get_context("fork").Process(target=_serve_one, args=(sock,))
        worker.start()
        try:
            with socket.create_connection(("alice.ntcp", 8000), PATIENCE) as client:
                client.sendall(b"to a worker")
                client.shutdown(socket.SHUT_WR)
                assert receive_all(client) == b"to a workerbye " + NUMBER.encode()
        finally:
            worker.terminate()
            worker.join(PATIENCE)


def _serve_one(sock: socket.socket) -> None:
    async def main() -> None:
        async with await asyncio.start_server(echo, sock=sock) as server:
            await server.serve_forever()

    run(main)


def test_a_server_that_waits_and_is_cancelled(network: FakeNetwork) -> None:
    async def main() -> None:
        server = await asyncio.start_server(echo, "alice.ntcp", 8000, start_serving=False)
        assert not server.is_serving()
        serving = asyncio.create_task(server.serve_forever())
        await asyncio.to_thread(wait_until, lambda: ("alice", 8000) in network.listeners)
        await exchange("alice.ntcp", 8000)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        await server.wait_closed()
        assert server.sockets == ()
        assert server.get_loop() is asyncio.get_running_loop()

    run(main)


class Recorder(asyncio.Protocol):
    made = lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made = True

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True


@pytest.mark.parametrize("steps", range(4))
def test_what_is_arriving_when_the_server_closes_is_told_its_end(network: FakeNetwork, steps: int) -> None:
    """Servers that end gracefully wait for it: uvicorn's reload hung on one that never was."""
    recorder = Recorder()

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        server = await loop.create_server(lambda: recorder, "alice.ntcp", 8000)
        _, writer = await asyncio.open_connection("alice.ntcp", 8000)
        while not server._arriving and not recorder.made:
            await asyncio.sleep(0)
        for _ in range(steps):
            await asyncio.sleep(0)
        server.close()
        await server.wait_closed()
        writer.close()
        while not (recorder.made and recorder.lost):
            await asyncio.sleep(0.01)

    run(main)


def test_another_user_is_not_accepted(network: FakeNetwork) -> None:
    need_nobody()
    met: list[str] = []

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.append(writer.get_extra_info("peername")[0])
        await echo(reader, writer)

    async def main() -> None:
        async with await asyncio.start_server(greet, "alice.ntcp", 8000) as server:
            [sock] = server.sockets
            outcome = await asyncio.to_thread(as_nobody, CONNECT, Plain.getsockname(sock))
            assert outcome != ["received", "intruder"]
            await exchange("alice.ntcp", 8000)

    run(main)
    assert len(met) == 1


def test_uninstalled_it_is_as_before() -> None:
    before = set(vars(uvloop.Loop))
    with ntcpsock.patched():
        assert "create_server" in vars(uvloop.Loop)
    assert set(vars(uvloop.Loop)) == before


def test_a_module_that_is_imported_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "comes_later.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen: list[int] = []
    hook = _on_import.OnImport("comes_later", lambda module: seen.append(module.value))
    hook.install()
    assert hook in sys.meta_path
    import comes_later  # type: ignore[import-not-found]

    assert seen == [1]
    assert hook not in sys.meta_path
    assert type(comes_later.__loader__).__name__ == "SourceFileLoader"
    del sys.modules["comes_later"]
    hook.install()
    hook.uninstall()
    hook.uninstall()
    import comes_later

    assert seen == [1]
    del sys.modules["comes_later"]
