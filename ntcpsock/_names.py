"""Names as numbers: the loopback address that stands for a node, and the resolver functions over it.

Code that asks for an address before it connects gets one out of 127.64.0.0/10. It is derived from the
name by a hash, so that both ends of a connection say the same number for the same node and a protocol
that sends its own address along works; a table settles collisions and turns numbers back into names.
Nothing here touches the network or starts the engine: whether a name exists is found out by `connect`.

This module is part of `import ntcpsock` and therefore imports next to nothing.
"""

from __future__ import annotations

import os
import socket as _stdlib
import threading
from collections import OrderedDict
from typing import Any

SUFFIX = ".ntcp"

# 127.64.0.0/10: loopback on every system, and far from the 127.0.0.0/24 that other programs use.
_FIRST_NUMBER = 0x7F400000
_HOST_BITS = 22
_V4_MAPPED = "::ffff:"

# Strangers that connect are entered too, so the table is bounded; what was used last stays.
MAX_NUMBERS = 65536


class NumberTable:
    """name <-> number, both ways. Thread-safe. Full: the entry unused for longest makes room."""

    def __init__(self, limit: int = MAX_NUMBERS) -> None:
        self._limit = limit
        self._numbers: OrderedDict[str, str] = OrderedDict()
        self._names: dict[str, str] = {}
        self._further: dict[str, list[str]] = {}
        self._lock = threading.Lock()

    def number(self, label: str) -> str:
        """The dotted address of `label` (normalized, without suffix); always the same in this process."""
        with self._lock:
            known = self._numbers.get(label)
            if known is not None:
                self._numbers.move_to_end(label)
                return known
            host = _hash(label)
            while (address := _dotted(host)) in self._names:
                host = host % ((1 << _HOST_BITS) - 2) + 1
            if len(self._numbers) >= self._limit:
                forgotten, oldest = self._numbers.popitem(last=False)
                del self._names[oldest]
                for further in self._further.pop(forgotten, ()):
                    del self._names[further]
            self._numbers[label] = address
            self._names[address] = label
            return address

    def another(self, label: str, which: int) -> str:
        """The `which`th (from 1) further address of `label`, for ports at which its own one is taken by another
        program. It means the label too, and `number` stays what it was."""
        self.number(label)
        with self._lock:
            further = self._further.setdefault(label, [])
            host = _hash(label)
            while len(further) < which:
                host = host % ((1 << _HOST_BITS) - 2) + 1
                address = _dotted(host)
                if address not in self._names:
                    self._names[address] = label
                    further.append(address)
            return further[which - 1]

    def label(self, address: str) -> str | None:
        """The label that `address` stands for, or None where it was never given out."""
        if address not in self._names:
            return None  # 127.0.0.1, above all
        with self._lock:
            label = self._names.get(address)
            if label is not None and label in self._numbers:
                self._numbers.move_to_end(label)
            return label

    def renew_lock(self) -> None:
        """After fork: another thread of the parent may have held the lock."""
        self._lock = threading.Lock()


def _hash(label: str) -> int:
    """22 bits that neither network (0) nor broadcast (all ones) address takes."""
    from hashlib import sha256

    digest = sha256(b"ntcp number\0" + label.encode("ascii")).digest()
    return int.from_bytes(digest[:8], "big") % ((1 << _HOST_BITS) - 2) + 1


def _dotted(host: int) -> str:
    value = _FIRST_NUMBER + host
    return f"{value >> 24}.{value >> 16 & 255}.{value >> 8 & 255}.{value & 255}"


table = NumberTable()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=table.renew_lock)


def number(label: str, family: int = _stdlib.AF_INET) -> str:
    """The number of `label` as text of `family`: `127.64.x.y`, or `::ffff:127.64.x.y` for AF_INET6."""
    return as_family(table.number(label), family)


def as_family(number: str, family: int) -> str:
    """`127.64.x.y` as text of `family`."""
    return _V4_MAPPED + number if family == _stdlib.AF_INET6 else number


def socket_address(label: str, port: int, family: int = _stdlib.AF_INET) -> tuple[Any, ...]:
    """The socket address of `family` that says `label` and `port` in numbers."""
    host = number(label, family)
    return (host, port, 0, 0) if family == _stdlib.AF_INET6 else (host, port)


def label_of(host: object) -> str | None:
    """The label that `host` means, as a `.ntcp` name or as a number; None for every other host.

    Raises gaierror (EAI_NONAME) for a `.ntcp` name that cannot be one.
    """
    if isinstance(host, (bytes, bytearray)):
        try:
            host = host.decode("ascii")
        except UnicodeDecodeError:
            return None
    if not isinstance(host, str):
        return None
    if host.startswith(("127.", _V4_MAPPED)):
        return table.label(host.removeprefix(_V4_MAPPED))
    if host[-1:] not in "pP." or not host.rstrip(".").lower().endswith(SUFFIX):
        return None  # by far the most hosts at their last letter
    from ntcpsock._address import normalize_name
    from ntcpsock._errors import ConfigurationError

    try:
        return normalize_name(host)
    except ConfigurationError as error:
        raise _stdlib.gaierror(_stdlib.EAI_NONAME, str(error)) from None


def label_of_address(address: object) -> str | None:
    """The label that a socket address (host, port, ...) means, or None for an address of the outside.

    Raises what a socket method would for a host that cannot be one: gaierror, or TypeError where the system cannot
    even ask for it.
    """
    if not isinstance(address, tuple) or len(address) < 2:
        return None
    try:
        return label_of(address[0])
    except _stdlib.gaierror:
        _check_host(address[0])
        raise


def _check_host(host: Any) -> None:
    """As the socket methods: a NUL ends a C string, and what is not ASCII has to become it."""
    if _has_nul(host):
        raise TypeError("host name must not contain null character")
    if isinstance(host, str) and not host.isascii():
        try:
            host.encode("idna")
        except UnicodeError:
            raise TypeError("encoding of hostname failed") from None


def _has_nul(host: Any) -> bool:
    return "\0" in host if isinstance(host, str) else b"\0" in host


def _label_to_resolve(host: Any) -> str | None:
    """As `label_of`, for the resolver's functions: these encode every text first, which raises UnicodeError
    for empty and for too long labels."""
    try:
        return label_of(host)
    except _stdlib.gaierror:
        if isinstance(host, str):
            host.encode("idna")
        raise


def _is_name(host: object) -> bool:
    """Whether `host` spells a name rather than a number; only for hosts that label_of() knew."""
    text = host.decode("ascii") if isinstance(host, (bytes, bytearray)) else str(host)
    return not text.startswith(("127.", _V4_MAPPED))


# The module's own functions, kept before anybody replaces them.
_real_getaddrinfo = _stdlib.getaddrinfo
_real_gethostbyname = _stdlib.gethostbyname
_real_gethostbyname_ex = _stdlib.gethostbyname_ex
_real_gethostbyaddr = _stdlib.gethostbyaddr
_real_getnameinfo = _stdlib.getnameinfo


def getaddrinfo(
    host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
) -> list[tuple[Any, ...]]:
    """What `ntcpsock.getaddrinfo` answers. It starts nothing: the engine does not come into it."""
    label = (
        None if isinstance(host, bytearray) else _label_to_resolve(host)
    )  # the system takes no bytearray here
    if label is None or not _is_name(host):
        return list(_real_getaddrinfo(host, port, family, type, proto, flags))
    if flags & _stdlib.AI_NUMERICHOST:
        raise _stdlib.gaierror(_stdlib.EAI_NONAME, "Name or service not known")
    wanted = _stdlib.AF_INET if family == _stdlib.AF_UNSPEC else family
    # AI_ADDRCONFIG asks what the host's interfaces can reach: the engine's paths are none of them.
    asked = flags & ~int(_stdlib.AI_ADDRCONFIG)
    answers: list[tuple[Any, ...]] = list(
        _real_getaddrinfo(number(label, wanted), port, wanted, type, proto, asked)
    )
    if flags & _stdlib.AI_CANONNAME and answers:
        first = answers[0]
        return [(*first[:3], label + SUFFIX, first[4]), *answers[1:]]
    return answers


def _known_to_resolver(host: Any) -> str | None:
    """As `_label_to_resolve`; a host with a NUL is the system's to refuse."""
    is_text = isinstance(host, (str, bytes, bytearray))
    return None if is_text and _has_nul(host) else _label_to_resolve(host)


def gethostbyname(hostname: str) -> str:
    """`socket.gethostbyname`, which knows `.ntcp` names."""
    label = _known_to_resolver(hostname)
    return number(label) if label is not None and _is_name(hostname) else _real_gethostbyname(hostname)


def gethostbyname_ex(hostname: str) -> tuple[str, list[str], list[str]]:
    """`socket.gethostbyname_ex`, which knows `.ntcp` names."""
    label = _known_to_resolver(hostname)
    if label is None or not _is_name(hostname):
        return _real_gethostbyname_ex(hostname)
    return label + SUFFIX, [], [number(label)]


def gethostbyaddr(ip_address: str) -> tuple[str, list[str], list[str]]:
    """`socket.gethostbyaddr`, which knows `.ntcp` names and their numbers."""
    label = _known_to_resolver(ip_address)
    if label is None:
        return _real_gethostbyaddr(ip_address)
    return label + SUFFIX, [], [number(label)]


def getnameinfo(sockaddr: Any, flags: int) -> tuple[str, str]:
    """`socket.getnameinfo`, which turns numbers back into `.ntcp` names (unless NI_NUMERICHOST)."""
    label = label_of_address(sockaddr)
    # The system takes numbers only, and says so.
    if label is None or _is_name(sockaddr[0]):
        try:
            return _real_getnameinfo(sockaddr, flags)
        finally:
            # The traceback of an error holds no reference to the argument, as with the system's own.
            del sockaddr
    if flags & _stdlib.NI_NUMERICHOST:
        return _real_getnameinfo(sockaddr, flags)
    # The form of the rest is the system's to judge.
    asked = flags & ~_stdlib.NI_NAMEREQD | _stdlib.NI_NUMERICHOST
    return label + SUFFIX, _real_getnameinfo(sockaddr, asked)[1]
