"""Fixtures and helpers of the tests of the sync face."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fake_node import FakeNetwork

from ntcpsock import NTCPSocket, _portal

# Long enough for any machine; no test waits for it.
PATIENCE = 30.0


@contextmanager
def fake_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[FakeNetwork]:
    """An engine whose nodes are fakes; stopped afterwards."""
    for variable in ("NTCP_NAME", "NTCP_CONFIG", "NTCP_BROKER", "NTCP_ALLOW"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NTCP_STATE", str(tmp_path / "state"))
    network = FakeNetwork()
    _portal.stop()
    monkeypatch.setattr(_portal, "node_opener", network.open_node)
    try:
        yield network
    finally:
        _portal.stop(2)


class Background(threading.Thread):
    """A thread whose exception or result comes out of `result()`."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._args = args
        self._value: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._function(*self._args)
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self.join(PATIENCE)
        assert not self.is_alive(), "still running"
        if self._error is not None:
            raise self._error
        return self._value


def listener(name: str = "alice.ntcp", port: int = 8000, family: int = -1) -> NTCPSocket:
    sock = NTCPSocket(family)
    sock.settimeout(PATIENCE)
    sock.bind((name, port))
    sock.listen()
    return sock


def pair(server: NTCPSocket, name: str = "alice.ntcp", port: int = 8000) -> tuple[NTCPSocket, NTCPSocket]:
    """A dialled and an accepted socket, with time-outs."""
    client = NTCPSocket(server.family)
    client.settimeout(PATIENCE)
    client.connect((name, port))
    accepted, _ = server.accept()
    accepted.settimeout(PATIENCE)
    return client, accepted


def receive_all(sock: Any) -> bytes:
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll for what happens in another thread."""
    done = threading.Event()
    for _ in range(int(PATIENCE * 200)):
        if condition():
            return
        done.wait(0.005)
    raise AssertionError("did not come true")
