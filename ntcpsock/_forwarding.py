"""Socket options of a connection by name that mean the way to the peer, not the hop over loopback.

A program that sets SO_KEEPALIVE and TCP_KEEP* wants to hear in time of a peer that is gone; TCP_USER_TIMEOUT
says how long sent bytes may stay unconfirmed. The kernel keeps both on the program's own socket, where `dup`,
`getsockopt` and C code find them, and they are carried over to the TCP connection that reaches the peer. There
the more impatient of two wishes counts: it has probes of its own, which keep NATs awake, and these are never
slowed down or switched off.

TCP_NODELAY needs no forwarding: the connection to the peer never delays, so the hop's setting decides.
"""

from __future__ import annotations

import os
import socket as _stdlib
import threading
from contextlib import suppress
from typing import Any

from ntcpsock import _known

_plain = _stdlib.socket
_TCP = _stdlib.IPPROTO_TCP
_KEEP_ALIVE = (_stdlib.SOL_SOCKET, _stdlib.SO_KEEPALIVE)
_SCHEDULE = tuple(
    (_TCP, getattr(_stdlib, name))
    for name in ("TCP_KEEPIDLE", "TCP_KEEPALIVE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
    if hasattr(_stdlib, name)
)
_USER_TIMEOUT = (_TCP, getattr(_stdlib, "TCP_USER_TIMEOUT", -1))

FORWARDED = frozenset({_KEEP_ALIVE, *_SCHEDULE, _USER_TIMEOUT})

Wishes = dict[tuple[int, int], int]

_lock = threading.Lock()
_carriers: dict[_known.Ends, _stdlib.socket] = {}
# What was wished for connections that the program has and whose pump is just starting.
_early: dict[_known.Ends, Wishes] = {}


def wishes(sock: _stdlib.socket) -> Wishes:
    """What the options of the program's socket mean for the connection to the peer."""
    found: Wishes = {}
    with suppress(OSError):
        if _plain.getsockopt(sock, *_KEEP_ALIVE):
            found[_KEEP_ALIVE] = 1
            found.update({option: _plain.getsockopt(sock, *option) for option in _SCHEDULE})
        if _USER_TIMEOUT[1] >= 0 and (patience := _plain.getsockopt(sock, *_USER_TIMEOUT)):
            found[_USER_TIMEOUT] = patience
    return found


def grant(carrier: Any, wished: Wishes) -> None:
    """Carry the wishes over; a carrier without a TCP socket, or one that is gone, has nothing to set."""
    with suppress(OSError, AttributeError):
        for option, value in wished.items():
            present = carrier.getsockopt(*option)
            if option == _USER_TIMEOUT or not present or value < present:
                carrier.setsockopt(*option, value)


def forward(sock: _stdlib.socket) -> None:
    """In any thread: an option of a connection by name was set."""
    try:
        ends = _known.ends(_plain.getsockname(sock), _plain.getpeername(sock))
    except OSError:
        return
    wished = wishes(sock)
    with _lock:
        carrier = _carriers.get(ends)
        if carrier is None and wished and ends in _known.connections:
            _early[ends] = wished
        _forget()
    if carrier is not None:
        grant(carrier, wished)


def begin(ends: _known.Ends, carrier: _stdlib.socket) -> None:
    """In the engine: the connection between `ends` travels over `carrier`."""
    with _lock:
        _carriers[ends] = carrier
        wished = _early.pop(ends, {})
        _forget()
    grant(carrier, wished)


def _forget() -> None:
    """Under the lock: drop wishes for connections that were over before their pump could start."""
    for ends in [ends for ends in _early if ends not in _known.connections]:
        del _early[ends]


def end(ends: _known.Ends) -> None:
    """In the engine: the connection is over."""
    with _lock:
        _carriers.pop(ends, None)
        _early.pop(ends, None)


def renew_lock() -> None:
    """After fork: another thread of the parent may have held the lock, and its carriers are the parent's."""
    global _lock
    _lock = threading.Lock()
    _carriers.clear()
    _early.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=renew_lock)
