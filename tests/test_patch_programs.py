"""Unmodified programs of the standard library, both ends, by name, while the module is patched."""

from __future__ import annotations

import hashlib
import http.client
import http.server
import os
import socket
import socketserver
import threading
import urllib.error
import urllib.request
import xmlrpc.client
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from xmlrpc.server import SimpleXMLRPCServer

import pytest
from fake_node import FakeNetwork
from sync_support import PATIENCE, fake_network

import ntcpsock


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNetwork]:
    with fake_network(monkeypatch, tmp_path) as network, ntcpsock.patched():
        yield network


class Quiet(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    clients: list[str] = []  # noqa: RUF012

    def log_message(self, format: str, *args: object) -> None:
        self.clients.append(self.client_address[0])


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(PATIENCE)


@contextmanager
def web(directory: Path) -> Iterator[http.server.HTTPServer]:
    server = http.server.ThreadingHTTPServer(("alice.ntcp", 8000), partial(Quiet, directory=str(directory)))
    with serving(server):
        yield server


def test_http_server_and_urllib(tmp_path: Path, network: FakeNetwork) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(data)
    with web(tmp_path) as server:
        assert server.server_name == "alice.ntcp"
        with urllib.request.urlopen("http://alice.ntcp:8000/file", timeout=PATIENCE) as response:
            assert hashlib.sha256(response.read()).digest() == hashlib.sha256(data).digest()
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen("http://alice.ntcp:8000/missing", timeout=PATIENCE)
        caught.value.close()
        assert set(Quiet.clients) == {ntcpsock.gethostbyname("alice.ntcp")}
    assert network.listeners == {}


def test_a_kept_connection_serves_many_requests(tmp_path: Path, network: FakeNetwork) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with web(tmp_path):
        connection = http.client.HTTPConnection("alice.ntcp", 8000, timeout=PATIENCE)
        for _ in range(20):
            connection.request("GET", "/file")
            assert connection.getresponse().read() == b"content"
        connection.close()
    assert len(network.streams) == 2


def test_urllib_says_what_failed() -> None:
    with pytest.raises(urllib.error.URLError) as caught:
        urllib.request.urlopen("http://nobody.ntcp:8000/", timeout=PATIENCE)
    assert isinstance(caught.value.reason, ntcpsock.NameNotFound)
    assert isinstance(caught.value.reason, socket.gaierror)


def test_xmlrpc() -> None:
    server = SimpleXMLRPCServer(("alice.ntcp", 8000), logRequests=False)
    server.register_function(lambda base, exponent: base**exponent, "pow")
    with serving(server), xmlrpc.client.ServerProxy("http://alice.ntcp:8000") as proxy:
        assert proxy.pow(2, 10) == 1024


def test_socketserver_lines() -> None:
    class Upper(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                self.wfile.write(line.upper())

    with serving(socketserver.ThreadingTCPServer(("alice.ntcp", 7), Upper)):
        with socket.create_connection(("alice.ntcp", 7), timeout=PATIENCE) as client:
            client.sendall(b"one\ntwo\n")
            client.shutdown(socket.SHUT_WR)
            with client.makefile("rb") as lines:
                assert list(lines) == [b"ONE\n", b"TWO\n"]
