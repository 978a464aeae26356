"""The application's own TCP socket, lent to a punch: where its attempt wins, nothing stands between the
application and the peer.

Linux keeps port and open file description of a socket over any number of refused connect() calls, if the port
was bound explicitly. What is changed for the time of the punch is put back afterwards.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import socket
import struct
import sys
from contextlib import suppress
from typing import Final

import trio

from ntcpsock._address import Endpoint

_UNSPECIFIED: Final = struct.pack("H14x", socket.AF_UNSPEC)  # struct sockaddr
_SHARING: Final = tuple(
    getattr(socket, name) for name in ("SO_REUSEADDR", "SO_REUSEPORT") if hasattr(socket, name)
)


def is_supported() -> bool:
    """Whether the system's sockets survive refusals, and can be disconnected for another use."""
    return sys.platform.startswith("linux")


class GivenSocket:
    """Owns a descriptor (a duplicate of the application's) of a fresh AF_INET TCP socket, neither bound nor
    connected. `withdraw` or `keep` ends it; later calls do nothing."""

    def __init__(self, descriptor: int) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=descriptor)
        self.socket.setblocking(False)
        self._before: dict[int, int] = {}

    def bind(self, port: int) -> bool:
        """Share `port` with the other sockets of a punch. Whether that worked."""
        try:
            for option in _SHARING:
                self._before[option] = self.socket.getsockopt(socket.SOL_SOCKET, option)
                self.socket.setsockopt(socket.SOL_SOCKET, option, 1)
            self.socket.bind(("0.0.0.0", port))
            # As every connection by name; it also keeps our last word from delaying the application's first.
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            return False
        return True

    async def connect(self, remote: Endpoint) -> None:
        """One attempt. Raises OSError; another one may follow. Cancelled, it is still under way: `withdraw`."""
        code = self.socket.connect_ex(remote)
        if code == errno.EINPROGRESS:
            await trio.lowlevel.wait_writable(self.socket)
            # Not SO_ERROR: the outcome of a connect is told by the next one, and reading it there as well
            # would make that one say ECONNABORTED.
            code = self.socket.connect_ex(remote)
        if code not in (0, errno.EISCONN):
            raise OSError(code, os.strerror(code))
        if self.socket.getpeername()[:2] == self.socket.getsockname()[:2]:
            self.disconnect()
            raise OSError(errno.ECONNABORTED, "connected to itself")

    def disconnect(self) -> None:
        """Back to bound; a peer sees a reset."""
        _libc().connect(self.socket.fileno(), _UNSPECIFIED, len(_UNSPECIFIED))
        with suppress(OSError):
            self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def withdraw(self) -> None:
        """Another path won, or none: the application may use its socket for something else."""
        if self.socket.fileno() < 0:
            return
        with suppress(RuntimeError):
            trio.lowlevel.notify_closing(self.socket)
        self.disconnect()
        self._restore()
        self.socket.close()

    def keep(self) -> None:
        """The socket is the connection: close the duplicate."""
        if self.socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self.socket)
            self._restore()
            self.socket.close()

    def _restore(self) -> None:
        with suppress(OSError):
            for option, value in self._before.items():
                self.socket.setsockopt(socket.SOL_SOCKET, option, value)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
