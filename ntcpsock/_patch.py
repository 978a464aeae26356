"""Putting `NTCPSocket` under programs that import `socket`, and taking it away again.

Only names of the module `socket` change. What the module's own functions (`create_connection`,
`create_server`, `getfqdn`, ...) look up at each call follows by itself, and so does every library that
says `socket.socket`. A module that took `from socket import socket` earlier keeps what it took.
"""

from __future__ import annotations

import socket as _stdlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from ntcpsock import _names
from ntcpsock._socket import NTCPSocket

#: What `install()` puts into the module `socket`.
REPLACEMENTS: dict[str, Any] = {
    "socket": NTCPSocket,
    "getaddrinfo": _names.getaddrinfo,
    "gethostbyname": _names.gethostbyname,
    "gethostbyname_ex": _names.gethostbyname_ex,
    "gethostbyaddr": _names.gethostbyaddr,
    "getnameinfo": _names.getnameinfo,
}

_lock = threading.Lock()
_depth = 0
_replaced: dict[str, Any] = {}


def install() -> None:
    """Make every socket of this process understand `.ntcp` names. Each call needs its `uninstall()`."""
    global _depth
    with _lock:
        _depth += 1
        if _depth == 1:
            for name, replacement in REPLACEMENTS.items():
                _replaced[name] = getattr(_stdlib, name)
                setattr(_stdlib, name, replacement)


def uninstall() -> None:
    """Undo one `install()`; the last one puts back what was there. Sockets made meanwhile stay usable."""
    global _depth
    with _lock:
        if _depth == 0:
            return
        _depth -= 1
        if _depth == 0:
            for name, original in _replaced.items():
                # What somebody else put there since is not ours to take away.
                if getattr(_stdlib, name) is REPLACEMENTS[name]:
                    setattr(_stdlib, name, original)
            _replaced.clear()


@contextmanager
def patched() -> Iterator[None]:
    """`install()` for the body of a `with` statement."""
    install()
    try:
        yield
    finally:
        uninstall()


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
