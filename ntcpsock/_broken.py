"""A network that failed, told to the application as its kernel would: ETIMEDOUT, and not a reset.

The application's socket knows its hop over loopback only, and what one end of TCP can do to the other is a
reset. But its kernel ends a connection with ETIMEDOUT when nobody answers any more. So the engine's end goes
dumb: a filter drops whatever arrives there, and the application's own socket is told to give up at once. Two
seconds later the kernel says ETIMEDOUT, to every reader, event loop, C library and process that shares it.

Only sockets whose object lives in this process can be told so; others see ECONNRESET.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import sys
from contextlib import suppress
from typing import Final

import trio

from ntcpsock import _known
from ntcpsock._socket import NTCPSocket

# What the kernel tells of a network that has failed an established connection.
_NETWORK_ERRORS: Final = frozenset(
    {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN}
)
# How long the application's kernel may take, in seconds: it probes after one and gives up after two.
_DEADLINE: Final = 10.0
_LOOK: Final = 0.1

_SO_ATTACH_FILTER: Final = 26  # linux/include/uapi/asm-generic/socket.h
_BPF_RETURN: Final = 0x06  # linux/include/uapi/linux/bpf_common.h: BPF_RET | BPF_K
_TCP_CLOSE: Final = 7  # linux/include/net/tcp_states.h

_plain: type[socket.socket] = NTCPSocket.__mro__[1]


def is_of_the_network(error: BaseException | None) -> bool:
    """Whether a stream broke because of the network, rather than by its peer's will."""
    if not isinstance(error, OSError):
        error = error.__cause__ if error is not None else None
    return getattr(error, "errno", None) in _NETWORK_ERRORS


async def time_out(hop: socket.socket) -> None:
    """In the engine: have the connection at whose other end the application is time out. The hop stays open.

    Returns at once where nobody can be told.
    """
    if not sys.platform.startswith("linux"):
        return
    holding = []
    with suppress(OSError):  # the application's end has gone already
        known = _known.holding(_known.ends(hop.getpeername(), hop.getsockname()))
        holding = [sock for sock in known if sock.fileno() >= 0]  # others were detached
        if holding:
            _drop_everything(hop)
            _give_up_soon(holding[0])
    with trio.move_on_after(_DEADLINE):
        while any(_is_open(sock) for sock in holding):
            await trio.sleep(_LOOK)


def _drop_everything(sock: socket.socket) -> None:
    """A filter by which the kernel drops whatever comes in."""
    program = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RETURN, 0, 0, 0))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))


def _give_up_soon(sock: socket.socket) -> None:
    """The shortest keep-alive there is, and unanswered bytes count as a failure after a millisecond."""
    _plain.setsockopt(sock, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT):
        _plain.setsockopt(sock, socket.IPPROTO_TCP, option, 1)


def _is_open(sock: socket.socket) -> bool:
    try:
        return _plain.getsockopt(sock, socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _TCP_CLOSE
    except OSError:
        return False
