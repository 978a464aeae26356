"""Makes "localhost" the name of this process's own node, so that unmodified tests connect by name.

CPython's tests say "localhost" and "127.0.0.1" in hundreds of places and compare what they get with that.
Here the label of the node has 127.0.0.1 for its number, and "localhost" is another spelling of it: the tests' own
addresses take the way of a `.ntcp` name through every part of the sync face. Nothing else of ntcpsock changes.

"::1" goes on as before, and so do sockets that are neither of streams nor of UDP. The engine itself reaches broker
and STUN server, and its own ports, at the real 127.0.0.1.
"""

from __future__ import annotations

import socket
import threading
from typing import Any

import ntcpsock
from ntcpsock import _names

LABEL = "conformance"
NUMBER = "127.0.0.1"

_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_TYPES = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
_PROTOCOLS = (0, socket.IPPROTO_TCP, socket.IPPROTO_UDP)

_label_of = _names.label_of


def _in_engine() -> bool:
    return threading.current_thread().name.startswith(("ntcpsock", "Trio thread"))


def label_of(host: object) -> str | None:
    if _in_engine():
        return None
    if host in ("localhost", b"localhost"):
        return LABEL
    return _label_of(host)


def _only_what_has_names(name: str) -> None:
    """Let `name`, a method of NTCPSocket, see other kinds of sockets as it would with an ordinary address."""
    ours = getattr(ntcpsock.NTCPSocket, name)
    plain = getattr(ntcpsock.NTCPSocket.__mro__[1], name)

    def method(self: socket.socket, /, *args: Any) -> Any:
        has_names = self.type in _TYPES and self.family in _FAMILIES and self.proto in _PROTOCOLS
        return (ours if has_names else plain)(self, *args)

    setattr(ntcpsock.NTCPSocket, name, method)


def install() -> None:
    """In a process in which `ntcpsock.install()` was called, before the tests are imported."""
    _names.table._numbers[LABEL] = NUMBER
    _names.table._names[NUMBER] = LABEL
    _names.label_of = label_of
    for name in ("bind", "connect", "connect_ex", "sendto", "sendmsg"):
        _only_what_has_names(name)
