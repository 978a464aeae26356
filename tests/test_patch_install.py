"""install, uninstall, patched: what changes in the module `socket`, and that all of it comes back."""

from __future__ import annotations

import gc
import socket
import ssl
import subprocess
import sys
import types
import warnings
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

    other: Any = object()
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


@pytest.fixture
def late() -> Any:
    """A module that took what it needs from `socket` before the patch."""
    module = types.ModuleType("late_module")
    exec(
        "from socket import socket as Socket, getaddrinfo, create_connection\nclass Derived(Socket): pass",
        vars(module),
    )
    sys.modules["late_module"] = module
    yield module
    del sys.modules["late_module"]
    vars(module).clear()
    gc.collect()  # the derived class is known to the system's as long as it lives


def test_a_late_install_names_who_took_the_system_s_socket(late: Any) -> None:
    with pytest.warns(ntcpsock.PatchWarning) as caught:
        ntcpsock.install()
    ntcpsock.uninstall()
    with pytest.warns(ntcpsock.PatchWarning) as caught_too:
        with ntcpsock.patched():
            pass
    for warning in (*caught, *caught_too):
        assert "late_module (socket, getaddrinfo, a subclass, Derived)" in str(warning.message)
        assert warning.filename == __file__
        assert issubclass(warning.category, RuntimeWarning)


def test_a_derived_class_is_named(late: Any) -> None:
    vars(late).pop("Socket")
    vars(late).pop("getaddrinfo")
    with pytest.warns(ntcpsock.PatchWarning, match=r"late_module \(a subclass, Derived\)"):
        ntcpsock.install()
    ntcpsock.uninstall()


def test_a_warning_that_is_an_error_leaves_nothing_patched(late: Any) -> None:
    before = state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ntcpsock.PatchWarning):
            ntcpsock.install()
        with pytest.raises(ntcpsock.PatchWarning), ntcpsock.patched():
            raise AssertionError("not reached")
    assert state() == before


def test_the_second_install_says_nothing(late: Any) -> None:
    with pytest.warns(ntcpsock.PatchWarning):
        ntcpsock.install()
    ntcpsock.install()
    ntcpsock.uninstall()
    ntcpsock.uninstall()


@pytest.mark.parametrize(
    "modules",
    [
        "asyncio, http.client, ssl, smtplib, ftplib, imaplib, socketserver, xmlrpc.server, logging.handlers",
        "trio, multiprocessing.connection, concurrent.futures, urllib.request",
    ],
)
def test_no_warning_for_the_standard_library_and_trio(modules: str) -> None:
    code = f"import {modules}\nimport ntcpsock\nntcpsock.install()"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_ssl_is_hooked_and_restored() -> None:
    before = dict(vars(ssl.SSLContext))
    with ntcpsock.patched():
        assert ssl.SSLContext.sslsocket_class is ntcpsock.SSLSocket
        context = ssl.create_default_context()
        with socket.socket() as plain, context.wrap_socket(plain, server_hostname="x") as wrapped:
            assert type(wrapped).__mro__.index(ssl.SSLSocket) < type(wrapped).__mro__.index(
                ntcpsock.NTCPSocket
            )
    assert dict(vars(ssl.SSLContext)) == before


def test_ssl_imported_while_patched_derives_from_ours() -> None:
    code = """
import sys, ntcpsock
ntcpsock.install()
assert "ssl" not in sys.modules
import ssl
assert issubclass(ssl.SSLSocket, ntcpsock.NTCPSocket)
ntcpsock.uninstall()
with ntcpsock.patched():
    assert ssl.SSLContext.sslsocket_class is ssl.SSLSocket
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_multiprocessing_after_the_patch_sends_what_is_known_of_a_socket() -> None:
    source = """
import socket, ntcpsock
plain = socket.socket()
ntcpsock.install()
import pickle
from multiprocessing.reduction import ForkingPickler
from ntcpsock._passing import reduce_socket
print(ForkingPickler._extra_reducers[ntcpsock.NTCPSocket] is reduce_socket)
with pickle.loads(ForkingPickler.dumps(plain)) as copy:
    print(type(copy).__name__)
plain.close()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("True\nNTCPSocket\n", "")
