"""install, uninstall, patched: what changes in the module `socket`, and that all of it comes back."""

from __future__ import annotations

import socket
from typing import Any

import pytest

import ntcpsock
from ntcpsock._patch import REPLACEMENTS


def state() -> dict[str, Any]:
    return dict(vars(socket))


def test_patched_restores_everything() -> None:
    before = state()
    with ntcpsock.patched():
        assert socket.socket is ntcpsock.NTCPSocket
        assert {name for name, value in before.items() if vars(socket)[name] is not value} == set(
            REPLACEMENTS
        )
    assert state() == before


def test_patches_nest_and_an_exception_restores() -> None:
    before = state()
    try:
        with ntcpsock.patched(), ntcpsock.patched():
            raise ValueError
    except ValueError:
        pass
    assert state() == before
    ntcpsock.install()
    with ntcpsock.patched():
        pass
    assert socket.socket is ntcpsock.NTCPSocket
    ntcpsock.uninstall()
    assert state() == before
    ntcpsock.uninstall()  # one too many changes nothing
    assert state() == before


def test_what_somebody_else_put_there_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    before = state()

    def other(*args: Any) -> Any:
        raise NotImplementedError

    ntcpsock.install()
    monkeypatch.setattr(socket, "getaddrinfo", other)
    ntcpsock.uninstall()
    assert socket.getaddrinfo is other
    monkeypatch.setattr(socket, "getaddrinfo", before["getaddrinfo"])
    assert state() == before


def test_module_functions_make_our_sockets_while_patched() -> None:
    with ntcpsock.patched():
        with socket.create_server(("127.0.0.1", 0)) as server:
            client = socket.create_connection(server.getsockname())
            accepted, _ = server.accept()
            assert {type(one) for one in (server, client, accepted)} == {ntcpsock.NTCPSocket}
    # Made while patched, usable afterwards.
    with client, accepted:
        client.sendall(b"hello")
        assert accepted.recv(10) == b"hello"
        with client.dup() as copy:
            assert type(copy) is ntcpsock.NTCPSocket
