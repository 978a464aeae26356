"""Both ends say the same port for the dialler's socket, as two plain sockets do."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_node import FakeNetwork
from sync_support import PATIENCE, fake_network, listener

from ntcpsock import NTCPSocket, _names, _source_port
from ntcpsock._errors import NameNotFound


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNetwork]:
    with fake_network(monkeypatch, tmp_path) as network:
        yield network


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_accept_returns_what_the_client_says(network: FakeNetwork, family: int) -> None:
    seen_by_c = []
    with listener(family=family) as server:
        # The kernel's own view is the same where that port is free, which nobody can promise of one port.
        for _ in range(10):
            with NTCPSocket(family) as client:
                client.connect(("alice.ntcp", 8000))
                accepted, address = server.accept()
                with accepted:
                    assert address[1] == client.getsockname()[1]
                    assert address == accepted.getpeername()
                    assert accepted.peer is not None
                    assert accepted.peer.source_port == address[1]
                    seen_by_c.append(socket.socket.getpeername(accepted)[1] == address[1])
    assert any(seen_by_c) or family != socket.AF_INET


def test_code_that_accepts_without_us_sees_number_and_port(network: FakeNetwork) -> None:
    ports = []
    with listener() as server:
        for _ in range(10):
            with NTCPSocket() as client:
                client.connect(("alice.ntcp", 8000))
                descriptor, address = socket.socket._accept(server)  # type: ignore[attr-defined]
                socket.close(descriptor)
                assert address[0] == _names.number(_label(client))
                ports.append(address[1] == client.getsockname()[1])
    assert any(ports)


def _label(client: NTCPSocket) -> str:
    label = _names.label_of(client.getsockname()[0])
    assert label is not None
    return label


def test_a_non_blocking_connect_says_its_port(network: FakeNetwork) -> None:
    with listener() as server, NTCPSocket() as client:
        client.setblocking(False)
        assert client.connect_ex(("alice.ntcp", 8000)) == errno.EINPROGRESS
        assert select.select([], [client], [], PATIENCE)[1]
        accepted, address = server.accept()
        with accepted:
            assert address == client.getsockname()


def test_the_port_that_was_bound_to_a_name_is_said(network: FakeNetwork) -> None:
    with listener() as server, NTCPSocket() as client:
        client.bind(("alice.ntcp", 5001))
        client.connect(("alice.ntcp", 8000))
        accepted, address = server.accept()
        with accepted:
            assert address[1] == client.getsockname()[1] == 5001


def test_a_port_that_is_taken_here_is_said_all_the_same(network: FakeNetwork) -> None:
    with listener() as server, NTCPSocket() as first, NTCPSocket() as second, socket.socket() as other:
        first.connect(("alice.ntcp", 8000))
        server.accept()[0].close()
        second.bind(("127.0.0.1", 0))
        other.bind((first.getsockname()[0], second.getsockname()[1]))
        second.connect(("alice.ntcp", 8000))
        accepted, address = server.accept()
        with accepted:
            assert address == accepted.getpeername() == second.getsockname()
            assert socket.socket.getpeername(accepted) != address


def test_a_failed_connect_leaves_the_socket_unbound(network: FakeNetwork) -> None:
    with NTCPSocket() as client:
        with pytest.raises(NameNotFound):
            client.connect(("nobody.ntcp", 8000))
        assert client.getsockname() == ("0.0.0.0", 0)
        client.bind(("127.0.0.1", 0))


def test_the_hop_takes_another_port_where_this_one_is_taken() -> None:
    number = _names.number("alice")
    with socket.socket() as other, socket.socket() as hop:
        other.bind((number, 0))
        host, port = _source_port.bind_hop(hop, number, "127.0.0.1", other.getsockname()[1])
        assert host == number
        assert port not in (0, other.getsockname()[1])


def test_only_dynamic_ports_are_bound_for_a_peer() -> None:
    low, high = _source_port._dynamic_ports()
    assert _source_port.may_be_bound(low)
    assert _source_port.may_be_bound(high)
    assert not any(map(_source_port.may_be_bound, (0, 22, low - 1, high + 1)))
    with socket.socket() as hop:
        assert _source_port.bind_hop(hop, None, "127.0.0.1", low)[1] != 0


def test_without_the_kernels_word_the_dynamic_ports_are_the_standards(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_source_port, "_RANGE_FILE", str(tmp_path / "none"))
    assert _source_port._dynamic_ports.__wrapped__() == (49152, 65535)
