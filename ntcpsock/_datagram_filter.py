"""Socket filters (classic BPF, linux/filter.h) that let in only what the engine sends over loopback.

Every user of a machine can send from every free loopback address, and so from a peer's number. Nobody but the engine
can send from the engine's port: it is bound at all addresses. The kernel compares; a stranger's datagram wakes nobody.
"""

from __future__ import annotations

import socket
import sys
from contextlib import suppress

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_SO_GET_FILTER = 26
_SO_DETACH_FILTER = 27

_INSTRUCTION = "=HBBI"  # struct sock_filter
_PROGRAM = "@HP"  # struct sock_fprog

_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30
_AND, _JUMP_EQUAL, _RETURN = 0x54, 0x15, 0x06
# Offsets from the IP header; those from 0 count from the UDP header.
_NETWORK = 0xFFF00000
_ALL, _NONE = 0xFFFFFFFF, 0

_NUMBERS, _NUMBERS_MASK = 0x7F400000, 0xFFC00000  # 127.64.0.0/10
_LOOPBACK, _LOOPBACK_MASK = 0x7F000000, 0xFF000000


def only_from_port(sock: socket.socket, port: int) -> None:
    """`sock` receives from this source port alone. For a socket at 127.0.0.1, to which only this machine sends."""
    _attach(
        sock,
        (_LOAD_HALF, 0, 0, 0),
        (_JUMP_EQUAL, 0, 1, port),
        (_RETURN, 0, 0, _ALL),
        (_RETURN, 0, 0, _NONE),
    )


def numbers_only_from_port(sock: socket.socket, port: int) -> None:
    """What `sock` receives from the numbers of names has this source port; everything else comes as before.

    A filter that the program has attached itself stays in its place.
    """
    if not _is_possible() or _has_filter(sock):
        return
    _attach(
        sock,
        (_LOAD_HALF, 0, 0, 0),
        (_JUMP_EQUAL, 5, 0, port),
        (_LOAD_BYTE, 0, 0, _NETWORK),
        (_AND, 0, 0, 0xF0),
        (_JUMP_EQUAL, 0, 2, 0x40),  # IPv4
        (_LOAD_WORD, 0, 0, _NETWORK + 12),  # source address
        (_AND, 0, 0, _NUMBERS_MASK),
        (_JUMP_EQUAL, 1, 0, _NUMBERS),
        (_RETURN, 0, 0, _ALL),
        (_RETURN, 0, 0, _NONE),
    )


def remove(sock: socket.socket) -> None:
    """Take a filter away; there may be none."""
    if _is_possible():
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def only_to_loopback(sock: socket.socket) -> None:
    """`sock`, at all addresses, receives what was sent to 127.0.0.0/8 alone."""
    _attach(
        sock,
        (_LOAD_WORD, 0, 0, _NETWORK + 16),  # destination address
        (_AND, 0, 0, _LOOPBACK_MASK),
        (_JUMP_EQUAL, 0, 1, _LOOPBACK),
        (_RETURN, 0, 0, _ALL),
        (_RETURN, 0, 0, _NONE),
    )


def _has_filter(sock: socket.socket) -> bool:
    try:
        # The number of instructions, where it is asked for with room for so many; else EINVAL.
        return sock.getsockopt(socket.SOL_SOCKET, _SO_GET_FILTER) != 0
    except OSError:
        return True


def _is_possible() -> bool:
    return sys.platform == "linux"


def _attach(sock: socket.socket, *instructions: tuple[int, int, int, int]) -> None:
    if not _is_possible():
        return
    # Here, because this module is part of `import ntcpsock`.
    import ctypes
    from struct import pack

    program = b"".join(pack(_INSTRUCTION, *instruction) for instruction in instructions)
    buffer = ctypes.create_string_buffer(program)
    fprog = pack(_PROGRAM, len(instructions), ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
