"""Asking the kernel whose a connection is."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import closing
from typing import Any

import pytest
from sync_support import PATIENCE

from ntcpsock import NTCPSocket, _owner

Plain: Any = NTCPSocket.__mro__[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="how to ask the kernel is Linux's")

ASK = [_owner.owner, _owner.by_diag, _owner.by_proc]
FAMILIES = pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["IPv4", "IPv6"]
)


def served(family: int, host: str) -> Any:
    server = Plain(family)
    try:
        server.bind((host, 0))
    except OSError as error:
        server.close()
        pytest.skip(f"{host} cannot be used here: {error}")
    server.listen()
    return server


def connected(address: Any, family: int = socket.AF_INET) -> Any:
    client = Plain(family)
    client.settimeout(PATIENCE)
    client.connect(address)
    return client


def inode(sock: Any) -> int:
    return os.fstat(sock.fileno()).st_ino


@FAMILIES
def test_the_kernel_s_two_answers_agree(family: int, host: str) -> None:
    with served(family, host) as server:
        address = server.getsockname()[:2]
        client = connected(address, family)
        source = client.getsockname()[:2]
        expected = _owner.Owner(os.geteuid(), inode(client))
        assert [ask(source, address) for ask in ASK] == [expected] * 3
        # A half-closed connection is still somebody's.
        client.shutdown(socket.SHUT_WR)
        assert [ask(source, address) for ask in ASK] == [expected] * 3
        assert [ask((host, 1), address) for ask in ASK] == [None] * 3
        # There is no such connection; the kernel would show the listener.
        assert [ask(address, (host, 1)) for ask in ASK] == [None] * 3
        # A connection that its process has closed is nobody's.
        client.close()
        assert _owner.owner(source, address) is None


@FAMILIES
def test_who_listens(family: int, host: str) -> None:
    any_host = "::" if family == socket.AF_INET6 else "0.0.0.0"
    with served(family, host) as server:
        address = server.getsockname()[:2]
        with closing(connected(address, family)):
            expected = _owner.Owner(os.geteuid(), inode(server))
            assert _owner.listener_owner(address) == expected
            assert _owner.by_proc(address, (any_host, 0), listening=True) == expected
    assert _owner.listener_owner(address) is None
    assert _owner.by_proc(address, (any_host, 0), listening=True) is None


def test_a_mapped_address_is_an_ipv4_connection() -> None:
    with served(socket.AF_INET, "127.0.0.1") as server, Plain(socket.AF_INET6) as client:
        client.connect(("::ffff:127.0.0.1", server.getsockname()[1]))
        source = ("127.0.0.1", client.getsockname()[1])
        expected = _owner.Owner(os.geteuid(), inode(client))
        assert [ask(source, server.getsockname()) for ask in ASK] == [expected] * 3


def test_where_diag_is_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **keywords: Any) -> Any:
        raise PermissionError

    monkeypatch.setattr(_owner, "by_diag", refuse)
    with served(socket.AF_INET, "127.0.0.1") as server, closing(connected(server.getsockname())) as client:
        found = _owner.owner(client.getsockname(), server.getsockname())
        assert found is not None
        assert found.user == os.geteuid()
        monkeypatch.setattr(sys, "platform", "elsewhere")
        assert _owner.owner(client.getsockname(), server.getsockname()) is None
        with pytest.raises(OSError, match="does not say"):
            _owner.listener_owner(server.getsockname())
