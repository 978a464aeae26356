"""Putting `NTCPSocket` under programs that import `socket`, and taking it away again.

Only names of the module `socket` change. What the module's own functions (`create_connection`,
`create_server`, `getfqdn`, ...) look up at each call follows by itself, and so does every library that
says `socket.socket`. A module that took `from socket import socket` earlier keeps what it took, and is
named in a warning; `ssl`, which does so too, has a hook (`SSLContext.sslsocket_class`) for such cases.
"""

from __future__ import annotations

import socket as _stdlib
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

from ntcpsock import _earlier, _gevent, _names, _on_import, _publish, _resolver
from ntcpsock._socket import NTCPSocket

#: What `install()` puts into the module `socket`.
REPLACEMENTS: dict[str, Any] = {
    "socket": NTCPSocket,
    "getaddrinfo": _resolver.getaddrinfo,
    "gethostbyname": _names.gethostbyname,
    "gethostbyname_ex": _names.gethostbyname_ex,
    "gethostbyaddr": _names.gethostbyaddr,
    "getnameinfo": _names.getnameinfo,
}


class PatchWarning(RuntimeWarning):
    """`install()` came too late for modules that hold the system's socket class or resolver functions."""


_lock = threading.Lock()
_depth = 0
# (object, attribute, what was there, what we put there)
_replaced: list[tuple[Any, str, Any, Any]] = []
# What was there: nothing of its own.
_INHERITED = object()


def install() -> None:
    """Make every socket of this process understand `.ntcp` names. Each call needs its `uninstall()`.

    Warns with PatchWarning, naming modules that were imported before and keep the system's sockets.
    Raises NTCPError (EOPNOTSUPP) after gevent's monkey patching.
    """
    _install(stacklevel=3)


def _install(stacklevel: int) -> None:
    global _depth
    _gevent.check("socket")
    late: dict[str, list[str]] = {}
    with _lock:
        _depth += 1
        if _depth == 1:
            late = _earlier.modules_that_took({name: getattr(_stdlib, name) for name in REPLACEMENTS})
            for name, replacement in REPLACEMENTS.items():
                _replace(_stdlib, name, replacement)
            _hook_ssl()
            _uvloop_hook.install()
            _gevent_hook.install()
            _multiprocessing_hook.install()
            _publish.enabled = True
    if late:
        # Not under the lock: a filter may turn this into an exception, and a formatter may do anything.
        try:
            warnings.warn(_earlier.describe(late), PatchWarning, stacklevel=stacklevel)
        except PatchWarning:
            uninstall()
            raise


def _replace(owner: Any, name: str, replacement: Any) -> None:
    _replaced.append((owner, name, getattr(owner, name), replacement))
    setattr(owner, name, replacement)


def _hook_ssl() -> None:
    """Where `ssl` was imported before, its sockets derive from the system's; after this, from ours."""
    ssl = sys.modules.get("ssl")
    before = getattr(getattr(ssl, "SSLContext", None), "sslsocket_class", None)
    if ssl is None or before is None or before is not ssl.SSLSocket or issubclass(before, NTCPSocket):
        return
    from ntcpsock._ssl import SSLSocket

    _replace(ssl.SSLContext, "sslsocket_class", SSLSocket)


def _hook_uvloop(uvloop: ModuleType) -> None:
    """uvloop's loop gets the methods of ours; it derives from a class in C that keeps its own."""
    from ntcpsock import _uvloop

    for name, method in _uvloop.methods(uvloop.Loop.__mro__[1]).items():
        _replaced.append((uvloop.Loop, name, _INHERITED, method))
        setattr(uvloop.Loop, name, method)


def _hook_multiprocessing(reduction: Any) -> None:
    """Imported after the patch, it has taken our class for the system's, and would send descriptors only."""
    from ntcpsock._passing import reduce_socket

    reduction.ForkingPickler.register(NTCPSocket, reduce_socket)
    reduction.ForkingPickler.register(NTCPSocket.__base__, reduction._reduce_socket)


_uvloop_hook = _on_import.OnImport("uvloop", _hook_uvloop)
_gevent_hook = _on_import.OnImport("gevent.monkey", _gevent.subscribe)
_multiprocessing_hook = _on_import.OnImport("multiprocessing.reduction", _hook_multiprocessing)


def uninstall() -> None:
    """Undo one `install()`; the last one puts back what was there. Sockets made meanwhile stay usable."""
    global _depth
    with _lock:
        if _depth == 0:
            return
        _depth -= 1
        if _depth == 0:
            for owner, name, original, replacement in _replaced:
                # What somebody else put there since is not ours to take away.
                if getattr(owner, name) is not replacement:
                    continue
                if original is _INHERITED:
                    delattr(owner, name)
                else:
                    setattr(owner, name, original)
            _replaced.clear()
            _uvloop_hook.uninstall()
            _gevent_hook.uninstall()
            _multiprocessing_hook.uninstall()
            _publish.enabled = False


@contextmanager
def patched() -> Iterator[None]:
    """`install()` for the body of a `with` statement."""
    _install(stacklevel=4)
    try:
        yield
    finally:
        uninstall()


def is_installed() -> bool:
    """Whether the module `socket` is patched now."""
    return _depth > 0


def rebound_functions() -> dict[str, Any]:
    """The Python functions of the module `socket`, as they behave when it is patched.

    Their code is the system's; only the globals differ, so that `ntcpsock.create_connection` makes
    an NTCPSocket and asks our `getaddrinfo` while the module `socket` stays untouched.
    """
    namespace = dict(vars(_stdlib)) | REPLACEMENTS
    functions = {}
    for name, value in vars(_stdlib).items():
        if isinstance(value, FunctionType) and value.__module__ == _stdlib.__name__:
            bound = FunctionType(value.__code__, namespace, name, value.__defaults__, value.__closure__)
            bound.__kwdefaults__ = value.__kwdefaults__
            bound.__doc__ = value.__doc__
            bound.__annotations__ = dict(value.__annotations__)
            functions[name] = bound
    functions |= {name: value for name, value in REPLACEMENTS.items() if name != "socket"}
    namespace |= functions
    return functions
