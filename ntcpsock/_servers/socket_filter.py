"""What the kernel does for a server's UDP socket: room for bursts, and a first look at what comes.

A classic BPF program (linux/filter.h) of a few instructions is asked for each datagram before that takes room in the
socket's buffer. So garbage can neither fill it nor cost this process anything. It only refuses what the server would
drop unread; where it cannot be attached, all is as without it.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from contextlib import suppress
from typing import Final

from ntcpsock._servers.datagrams import DatagramSocket
from ntcpsock._traversal.broker.fields import MAX_DATAGRAM
from ntcpsock._traversal.broker.frame import KEY_REQUEST, KEY_REQUEST_LENGTH, OVERHEAD, SEALED
from ntcpsock._traversal.broker.short_keep_alive import SHORT_KEEP_ALIVE, SHORT_KEEP_ALIVE_LENGTH
from ntcpsock._traversal.stun.constants import HEADER_LENGTH

_SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h
_SO_RCVBUFFORCE: Final = 33
_SO_MEMINFO: Final = 55
_DROPS_AT: Final = 8  # SK_MEMINFO_DROPS, linux/sock_diag.h
_INSTRUCTION: Final = struct.Struct("=HBBI")  # struct sock_filter
_PROGRAM: Final = struct.Struct("@HP")  # struct sock_fprog

_LOAD_HALF, _LOAD_BYTE, _LOAD_LENGTH = 0x28, 0x30, 0x80
_SUBTRACT_X, _TO_X = 0x1C, 0x07
_EQUAL, _GREATER, _NOT_LESS = 0x15, 0x25, 0x35
_RETURN = 0x06
_ALL, _NONE = 0xFFFFFFFF, 0
# A filter of a UDP socket sees the UDP header, too.
_UDP: Final = 8
_BINDING_REQUEST: Final = 0x0001

Instruction = tuple[int, int, int, int]


def enlarge(sock: socket.socket, size: int) -> None:
    """Room for `size` octets of what has come and not been read: beyond net.core.rmem_max where we may (CAP_NET_ADMIN),
    else as much as that lets us have."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    if sys.platform == "linux":
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)


class Unread:
    """Counts what the kernel has dropped of a socket's: refused by its filter, or come while there was no room."""

    def __init__(self, sock: DatagramSocket) -> None:
        self._sock = sock
        self._last = 0

    def new(self) -> int:
        """How many since it was asked last."""
        if sys.platform != "linux":
            return 0
        try:
            told = self._sock.get_option(socket.SOL_SOCKET, _SO_MEMINFO, 4 * (_DROPS_AT + 1))
            drops: int = struct.unpack_from("=I", told, 4 * _DROPS_AT)[0]
        except (OSError, struct.error):  # an older kernel
            return 0
        new, self._last = (drops - self._last) & 0xFFFFFFFF, drops
        return new


def only_binding_requests(sock: socket.socket, kept: bytes = b"") -> None:
    """Binding requests that are as long as they say (RFC 8489 section 5; RFC 3489 has the same header), and whatever
    begins with an octet of `kept`."""
    others: list[Instruction] = []
    for number, octet in enumerate(kept):
        others.append((_EQUAL, 10 + len(kept) - number - 1, 0, octet))
    _attach(
        sock,
        [
            (_LOAD_BYTE, 0, 0, _UDP),
            *others,
            (_LOAD_LENGTH, 0, 0, 0),
            (_NOT_LESS, 0, 9, _UDP + HEADER_LENGTH),
            (_LOAD_HALF, 0, 0, _UDP),
            (_EQUAL, 0, 7, _BINDING_REQUEST),
            (_LOAD_HALF, 0, 0, _UDP + 2),
            (_TO_X, 0, 0, 0),
            (_LOAD_LENGTH, 0, 0, 0),
            (_SUBTRACT_X, 0, 0, 0),
            (_EQUAL, 0, 2, _UDP + HEADER_LENGTH),
            (_RETURN, 0, 0, _ALL),
            (_RETURN, 0, 0, _ALL),
            (_RETURN, 0, 0, _NONE),
        ],
    )


def only_frames(sock: socket.socket) -> None:
    """What may be a frame of the broker's protocol, by its first octet and its length; see `frame`."""
    _attach(
        sock,
        [
            (_LOAD_BYTE, 0, 0, _UDP),
            (_EQUAL, 6, 0, SEALED),
            (_EQUAL, 3, 0, SHORT_KEEP_ALIVE),
            (_EQUAL, 0, 7, KEY_REQUEST),
            (_LOAD_LENGTH, 0, 0, 0),
            (_EQUAL, 6, 5, _UDP + KEY_REQUEST_LENGTH),
            (_LOAD_LENGTH, 0, 0, 0),
            (_EQUAL, 4, 3, _UDP + SHORT_KEEP_ALIVE_LENGTH),
            (_LOAD_LENGTH, 0, 0, 0),
            (_NOT_LESS, 0, 1, _UDP + OVERHEAD),
            (_GREATER, 0, 1, _UDP + MAX_DATAGRAM),
            (_RETURN, 0, 0, _NONE),
            (_RETURN, 0, 0, _ALL),
        ],
    )


def _attach(sock: socket.socket, instructions: list[Instruction]) -> None:
    if sys.platform != "linux":
        return
    buffer = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*one) for one in instructions))
    program = _PROGRAM.pack(len(instructions), ctypes.addressof(buffer))
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
