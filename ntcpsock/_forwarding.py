"""Socket options of a connection by name that mean the way to the peer, not the hop over loopback.

A program that sets SO_KEEPALIVE and TCP_KEEP* wants to hear in time of a peer that is gone; TCP_USER_TIMEOUT
says how long sent bytes may stay unconfirmed. The kernel keeps both on the program's own socket, where `dup`,
`getsockopt` and C code find them, and they are carried over to the TCP connection that reaches the peer. There
the more impatient of two wishes counts: it has probes of its own, which keep NATs awake, and these are never
slowed down or switched off.

SO_SNDBUF and SO_RCVBUF, where the program has made them smaller than the hop's, bound what is under way: on the
engine's end of the hop and on the connection to the peer too. What a program has not set stays the kernel's to tune.

TCP_NODELAY needs no forwarding: the connection to the peer never delays, so the hop's setting decides.

The same wishes say how long a connection that has lost its path may look for another one: see `patience`. They hold
for each carrier that it gets.
"""

from __future__ import annotations

import math
import os
import socket as _stdlib
import struct
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from ntcpsock import _known

_plain = _stdlib.socket
_TCP = _stdlib.IPPROTO_TCP
_KEEP_ALIVE = (_stdlib.SOL_SOCKET, _stdlib.SO_KEEPALIVE)
_SCHEDULE = tuple(
    (_TCP, getattr(_stdlib, name))
    for name in ("TCP_KEEPIDLE", "TCP_KEEPALIVE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
    if hasattr(_stdlib, name)
)
_IDLE = (_TCP, getattr(_stdlib, "TCP_KEEPIDLE", getattr(_stdlib, "TCP_KEEPALIVE", -1)))
_INTERVAL = (_TCP, getattr(_stdlib, "TCP_KEEPINTVL", -1))
_COUNT = (_TCP, getattr(_stdlib, "TCP_KEEPCNT", -1))
_USER_TIMEOUT = (_TCP, getattr(_stdlib, "TCP_USER_TIMEOUT", -1))
_LINGER = (_stdlib.SOL_SOCKET, _stdlib.SO_LINGER)
_RESET = struct.pack("ii", 1, 0)  # struct linger
_SEND_BUFFER = (_stdlib.SOL_SOCKET, _stdlib.SO_SNDBUF)
_RECEIVE_BUFFER = (_stdlib.SOL_SOCKET, _stdlib.SO_RCVBUF)
# Linux since 5.14 tells which buffers a program has set: asm-generic/socket.h, and SOCK_*BUF_LOCK in net/sock.h.
_SO_BUF_LOCK = (_stdlib.SOL_SOCKET, 72)
_LOCKED = {_SEND_BUFFER: 1, _RECEIVE_BUFFER: 2}

FORWARDED = frozenset({_KEEP_ALIVE, *_SCHEDULE, _USER_TIMEOUT, _SEND_BUFFER, _RECEIVE_BUFFER})

# The buffers of the engine's end of a hop. The kernel's own limits let 6 MB grow there. Measured: no clear loss of
# throughput at 256 KiB.
HOP_BUFFER = 256 * 1024
# A receive buffer that does not hold one segment of loopback's (64 KiB) delays each acknowledgement by 40 ms, and a
# sender with a small buffer waits for them. Measured: 256 KiB in 2.9 s through 4 KiB, in 2 ms through this.
_SMALLEST_RECEIVE_BUFFER = 40 * 1024
# The connection to the peer carries TLS records of 16 KiB, and the pump moves two at a time where buffers are small.
_SMALLEST_CARRIER_BUFFER = 32 * 1024
_SMALL_STEP = 32 * 1024

Wishes = dict[tuple[int, int], int]


class Way(NamedTuple):
    """What carries a connection: the engine's end of the hop, the connection to the peer where it is TCP, how the
    pump is told to take no more than so many bytes at once, outward or inward, and asked to pass on a reset; and the
    stream."""

    hop: _stdlib.socket
    carrier: _stdlib.socket | None
    limit_outward: Callable[[int], None]
    limit_inward: Callable[[int], None]
    wait_passed: Callable[[], None]
    stream: Any


# How long a reset waits for a pump that is just starting, in seconds.
_BEGIN_DEADLINE = 0.2

_lock = threading.Lock()
_begun = threading.Condition(_lock)
_ways: dict[_known.Ends, Way] = {}
# What was wished for connections whose pump is just starting.
_early: dict[_known.Ends, Wishes] = {}
# What was granted to a stream: its next carrier gets it too.
_granted: weakref.WeakKeyDictionary[Any, Wishes] = weakref.WeakKeyDictionary()


def wishes(sock: _stdlib.socket) -> Wishes:
    """What the options of the program's socket mean for the connection to the peer."""
    found: Wishes = {}
    with suppress(OSError):
        if _plain.getsockopt(sock, *_KEEP_ALIVE):
            found[_KEEP_ALIVE] = 1
            found.update({option: _plain.getsockopt(sock, *option) for option in _SCHEDULE})
        if _USER_TIMEOUT[1] >= 0 and (patience := _plain.getsockopt(sock, *_USER_TIMEOUT)):
            found[_USER_TIMEOUT] = patience
        if sys.platform == "linux" and (locked := _plain.getsockopt(sock, *_SO_BUF_LOCK)):
            for option, bit in _LOCKED.items():
                # The kernel doubles what is set, and tells the double.
                if locked & bit and (size := _plain.getsockopt(sock, *option) // 2) < HOP_BUFFER:
                    found[option] = size
    return found


def patience(wished: Wishes) -> float:
    """Seconds after which the program would have its kernel give up a peer that is silent; infinite where it has not
    said so. What it has left at the system's own value (`tcp_keepalive_time` and so on) it has not said."""
    limits = [math.inf]
    if _USER_TIMEOUT in wished:
        limits.append(wished[_USER_TIMEOUT] / 1000)
    schedule = [wished.get(option) for option in (_IDLE, _INTERVAL, _COUNT)]
    if wished.get(_KEEP_ALIVE) and None not in schedule:
        with _plain(_stdlib.AF_INET, _stdlib.SOCK_STREAM) as untouched:
            usual = [untouched.getsockopt(*option) for option in (_IDLE, _INTERVAL, _COUNT)]
        if schedule != usual:
            idle, interval, count = (value or 0 for value in schedule)
            limits.append(float(idle + interval * count))
    return min(limits)


def grant(way: Way, wished: Wishes) -> None:
    """Carry the wishes over; what is gone has nothing to set."""
    way.stream.linger = patience(wished)
    for option, value in wished.items():
        with suppress(OSError):
            if option == _SEND_BUFFER:
                way.limit_outward(_SMALL_STEP)
                way.hop.setsockopt(*_RECEIVE_BUFFER, max(value, _SMALLEST_RECEIVE_BUFFER))
                if way.carrier is not None:
                    way.carrier.setsockopt(*_SEND_BUFFER, max(value, _SMALLEST_CARRIER_BUFFER))
            elif option == _RECEIVE_BUFFER:
                way.limit_inward(_SMALL_STEP)
                way.hop.setsockopt(*_SEND_BUFFER, value)
                if way.carrier is not None:
                    way.carrier.setsockopt(*_RECEIVE_BUFFER, max(value, _SMALLEST_RECEIVE_BUFFER))
            elif way.carrier is not None:
                present = way.carrier.getsockopt(*option)
                if option == _USER_TIMEOUT or not present or value < present:
                    way.carrier.setsockopt(*option, value)


def forward(sock: _stdlib.socket) -> None:
    """In any thread: an option of a connection by name was set, perhaps before it was connected."""
    try:
        ends = _known.ends(_plain.getsockname(sock), _plain.getpeername(sock))
    except OSError:
        return
    known = _known.connections.get(ends)
    if known is not None and known.punched:
        return  # the option is where it belongs
    expect(ends, wishes(sock))


def expect(ends: _known.Ends, wished: Wishes) -> None:
    """In any thread: grant this to the connection between `ends`, now or when its pump starts."""
    with _lock:
        way = _ways.get(ends)
        if way is not None:
            _granted[way.stream] = wished
        elif wished and ends in _known.connections:
            _early[ends] = wished
        _forget()
    if way is not None:
        grant(way, wished)


class Carrying(Protocol):
    """A pump."""

    hop: _stdlib.socket

    def limit_outward(self, size: int) -> None: ...
    def limit_inward(self, size: int) -> None: ...
    def wait_passed(self) -> None: ...


def begin(pump: Carrying, stream: Any) -> _known.Ends | None:
    """In the engine: `pump` carries what the program has over `stream` from now on. For `end`, when it is over."""
    hop = pump.hop
    try:
        ends = _known.ends(hop.getpeername(), hop.getsockname())
    except OSError:  # reset already
        return None
    # A carrier that is no TCP connection has no socket.
    carrier = getattr(getattr(stream, "carrier", None), "socket", None)
    way = Way(hop, carrier, pump.limit_outward, pump.limit_inward, pump.wait_passed, stream)
    with _lock:
        _ways[ends] = way
        _begun.notify_all()
        before = _granted.get(stream, {})
        wished = _granted[stream] = _early.pop(ends, before)
        _forget()
    grant(way, wished)
    return ends


def about_to_reset(sock: _stdlib.socket) -> Way | None:
    """Before the program closes `sock`: what carries it, if that will be reset (SO_LINGER 0).

    When close() returns, a plain socket's reset has left. So whoever closes waits for `wait_passed` afterwards.
    """
    try:
        if _plain.getsockopt(sock, *_LINGER, len(_RESET)) != _RESET:
            return None
        ends = _known.ends(_plain.getsockname(sock), _plain.getpeername(sock))
    except OSError:
        return None
    with _begun:
        _begun.wait_for(lambda: ends in _ways or ends not in _known.connections, _BEGIN_DEADLINE)
        return _ways.get(ends)


def _forget() -> None:
    """Under the lock: drop wishes for connections that were over before their pump could start."""
    for ends in [ends for ends in _early if ends not in _known.connections]:
        del _early[ends]


def end(ends: _known.Ends | None, hop: _stdlib.socket) -> None:
    """In the engine: the connection is over. Another one may have its addresses by now."""
    if ends is None:
        return
    with _lock:
        if ends in _ways and _ways[ends].hop is hop:
            del _ways[ends]


def renew_lock() -> None:
    """After fork: another thread of the parent may have held the lock, and its carriers are the parent's."""
    global _lock, _begun
    _lock = threading.Lock()
    _begun = threading.Condition(_lock)
    _ways.clear()
    _early.clear()
    _granted.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=renew_lock)
