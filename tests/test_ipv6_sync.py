"""The sync face where the path to the peer is IPv6: sockets of both families, with and without encryption."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from sync_support import PATIENCE, Background, listener
from world import Servers

from ntcpsock import NTCPSocket, _portal


def _has_ipv6_loopback() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


pytestmark = pytest.mark.skipif(not _has_ipv6_loopback(), reason="this host has no IPv6 loopback")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    started = Servers(tmp_path_factory.mktemp("world"), "::1")
    yield started
    started.stop()


@pytest.fixture(params=["tls", "off"], autouse=True)
def world(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[None]:
    """This process is alice and dials itself, over ::1."""
    for variable in ("NTCP_CONFIG", "NTCP_ALLOW"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NTCP_BROKER", servers.world.uri)
    monkeypatch.setenv("NTCP_STATE", str(servers.world.directory / "alice"))
    monkeypatch.setenv("NTCP_NAME", "alice")
    monkeypatch.setenv("NTCP_ENCRYPTION", request.param)
    _portal.stop()
    monkeypatch.setattr(_portal, "node_opener", None)
    yield
    _portal.stop(2)


@pytest.mark.parametrize("accepting", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("dialling", [socket.AF_INET, socket.AF_INET6])
def test_sockets_of_either_family(accepting: int, dialling: int) -> None:
    with listener(family=accepting) as server, NTCPSocket(dialling) as client:
        waiting = Background(server.accept)
        client.settimeout(PATIENCE)
        client.connect(("alice.ntcp", 8000))
        accepted, address = waiting.result()
        with accepted:
            assert client.path is not None
            assert client.path.remote[0] == "::1"
            assert (client.family, accepted.family) == (dialling, accepting)
            assert address[1] == client.getsockname()[1]
            client.sendall(b"there")
            assert accepted.recv(100) == b"there"
            accepted.sendall(b"and back")
            assert client.recv(100) == b"and back"
            client.shutdown(socket.SHUT_WR)
            assert accepted.recv(100) == b""
