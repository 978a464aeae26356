"""`getaddrinfo` for programs: what it answers may be connected to by number (see `_gate`)."""

from __future__ import annotations

import socket as _stdlib
import sys
from types import FrameType
from typing import Any

from ntcpsock import _names, _portal

_CREATE_CONNECTION = _stdlib.create_connection.__code__


def getaddrinfo(
    host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
) -> list[tuple[Any, ...]]:
    """`socket.getaddrinfo`, which knows `.ntcp` names.

    A name without a family is answered as AF_INET; AF_INET6, asked for, gets the IPv4-mapped form.
    Services, types and flags are the system's: it is asked with the number in place of the name.

    Where a port is given and the answer is for connecting (no AI_PASSIVE), the number answers at that port
    from now on, to C code too (see the guide, "Names as numbers").
    """
    answers = _names.getaddrinfo(host, port, family, type, proto, flags)
    label = _names.label_of(host)
    if label is None or flags & _stdlib.AI_PASSIVE:
        return answers
    if _is_for_our_class(sys._getframe(1)):
        return answers
    number = next((_open(label, entry[4][1]) for entry in answers if entry[1] == _stdlib.SOCK_STREAM), None)
    if type == _stdlib.SOCK_DGRAM and answers:
        number = _open_for_datagrams(label, answers[0][4][1])
    if number is None or number == _names.number(label):
        return answers
    # Another program sits at this port of the name's own number.
    return [(*entry[:4], (_names.as_family(number, entry[0]), *entry[4][1:])) for entry in answers]


def _is_for_our_class(caller: FrameType) -> bool:
    """Whether the answer goes to a socket of ours at once: `create_connection`, which most libraries use, asks and
    connects. No gate is needed then, and none should keep other programs from the port."""
    if caller.f_code is not _CREATE_CONNECTION:
        return False
    return getattr(caller.f_globals.get("socket"), "__module__", None) == __package__


def _open(label: str, port: int) -> str | None:
    """The number of `label` that answers at `port`; None where none can. Raises nothing."""
    if port == 0:
        return None
    try:
        portal = _portal.get()
        gates = portal.engine.gates
        known: str | None = gates.numbers.get((label, port))
        if known is None:
            return portal.call(portal.engine.open_gate, label, port)
    except (OSError, RuntimeError):
        # The engine is ending, or this is its own thread. Sockets of ours connect without a gate anyway.
        return None
    portal.soon(gates.open, label, port)
    return known


def _open_for_datagrams(label: str, port: int) -> str | None:
    """As `_open`, for datagrams; asked for these alone."""
    if port == 0:
        return None
    try:
        portal = _portal.get()
        return portal.call(portal.engine.datagrams.open_gate, label, port)
    except (OSError, RuntimeError):
        return None


def make_room(address: Any) -> bool:
    """A socket of this program could not be bound to `address`: leave its port, where the engine listens there for
    C code. Whether to try again."""
    portal = _portal.current()
    if portal is None or not isinstance(address, tuple) or portal.is_own_thread:
        return False
    if not portal.engine.gates.numbers and not portal.engine.datagrams.port:
        return False
    try:
        return portal.call(portal.engine.release_port, address[1])
    except (OSError, RuntimeError):
        return False
