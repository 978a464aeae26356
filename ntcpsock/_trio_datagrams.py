"""The datagram half of the trio face's socket: the methods of `trio.socket.SocketType` over a node's port.

A socket may speak with names and with ordinary addresses at once. What is by name goes straight to the node's port;
everything else is trio's own UDP socket.
"""

from __future__ import annotations

import errno
import os
import socket as stdlib
from collections.abc import Callable, Iterable
from typing import Any

import trio

from ntcpsock import _names
from ntcpsock._datagram_sizes import SURELY_WHOLE, is_whole
from ntcpsock._datagram_socket import DatagramAddress, NTCPDatagramSocket
from ntcpsock._node import Node
from ntcpsock._report import PathInfo, PeerInfo, Report

_SUPPORTED_FLAGS = stdlib.MSG_PEEK | getattr(stdlib, "MSG_TRUNC", 0)

Received = tuple[bytes, Any]


class Datagrams:
    """Made when a socket uses a name for the first time. port: the node's."""

    def __init__(self, inner: trio.socket.SocketType, node: Node, port: NTCPDatagramSocket) -> None:
        self._inner = inner
        self._node = node
        self.port = port
        self.target: tuple[str, int] | None = None
        self.is_bound = port.is_bound

    # Addresses.

    @property
    def peer(self) -> PeerInfo | None:
        return None if self.target is None else self.port.peer(self.target[0])

    @property
    def path(self) -> PathInfo | None:
        return None if self.target is None else self.port.path(self.target[0])

    @property
    def report(self) -> Report | None:
        return None if self.target is None else self.port.report(self.target[0])

    async def connect(self, label: str, port: int) -> None:
        """As UDP's: nobody is asked, but for a name that is not known yet."""
        if label not in self._node.own_labels:
            await self._node.resolve(label)
        await trio.lowlevel.checkpoint()
        self.port.connect((label, port))
        self.target = label, port

    def disconnect(self) -> None:
        """The socket is connected to an ordinary address."""
        self.port.connect(None)
        self.target = None

    def getsockname(self) -> Any:
        return _names.socket_address(self.port.name, self.port.port, self._inner.family)

    def getpeername(self) -> Any:
        if self.target is None:
            return self._inner.getpeername()
        return _names.socket_address(*self.target, self._inner.family)

    # Out.

    async def send_to(self, data: Any, label: str, port: int) -> int:
        with memoryview(data) as view:
            payload = view.tobytes()
        if not port:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if label not in self._node.own_labels:
            await self._node.resolve(label)
        self.port.dont_fragment = is_whole(self._inner)
        await self._translated(lambda: self.port.send_to(payload, (label, port)))
        return len(payload)

    async def send(self, data: Any) -> int:
        assert self.target is not None
        return await self.send_to(data, *self.target)

    def path_mtu(self, headers: int) -> int | None:
        """What IP_MTU says of a connected socket, headers included; None of one that is not connected by name."""
        if self.target is None:
            return None
        return (self.port.largest(*self.target) or SURELY_WHOLE) + headers

    async def _translated(self, operation: Callable[[], Any]) -> Any:
        try:
            return await operation()
        except trio.ClosedResourceError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    # In.

    async def receive(self, limit: int, flags: int) -> tuple[bytes, int, Any]:
        """The next datagram, cut to `limit` bytes: data, message flags, address. From whomever it comes."""
        if flags & ~_SUPPORTED_FLAGS:
            raise OSError(errno.EOPNOTSUPP, "only MSG_PEEK and MSG_TRUNC are known to datagrams by name")
        await trio.lowlevel.checkpoint()
        while True:
            found = self.port.peek() if flags & stdlib.MSG_PEEK else self.port.try_receive_from()
            if found is not None:
                data, address = found
                truncated = stdlib.MSG_TRUNC if len(data) > limit else 0
                return data[:limit], truncated, self._shown(address)
            if self.target is None and self._inner.is_readable():
                received = await self._inner.recvmsg(limit, 0, flags)
                return received[0], received[2], received[3]
            await self._wait()

    async def _wait(self) -> None:
        """Until there is something by name or by an ordinary address. Whoever is first ends the other wait, which
        loses nothing."""
        if self.target is not None or not self._inner.getsockname()[1]:
            await self._translated(self.port.wait_readable)
            return
        async with trio.open_nursery() as nursery:

            async def wait_for_inner() -> None:
                await trio.lowlevel.wait_readable(self._inner)
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait_for_inner)
            await self._translated(self.port.wait_readable)
            nursery.cancel_scope.cancel()

    def _shown(self, address: DatagramAddress) -> Any:
        label = address.host.removesuffix(_names.SUFFIX)
        return _names.socket_address(label, address.port, self._inner.family)

    def is_readable(self) -> bool:
        return self.port.peek() is not None or self._inner.is_readable()


async def open_datagrams(
    inner: trio.socket.SocketType, node: Node, name: str | None = None, port: int | None = None
) -> Datagrams:
    """A port for a socket: `port` of `name`, or one for sending first."""
    if port is None:
        number = inner.getsockname()[1]
        return Datagrams(inner, node, await node.open_datagram_socket(wanted=number))
    own = None if name in (node.name, node.node_id) else name
    return Datagrams(inner, node, await node.open_datagram_socket(port, name=own))


def fill(buffers: Iterable[Any], data: bytes) -> int:
    """Put `data` into buffers, one after the other; how many bytes."""
    count = 0
    for buffer in buffers:
        with memoryview(buffer).cast("B") as view:
            part = data[count : count + len(view)]
            view[: len(part)] = part
            count += len(part)
    return count
