"""A socket for trio that reaches `.ntcp` names, and the hooks that put it under unmodified trio code.

With plain addresses it is trio's own socket. Connected or bound by name, its bytes go straight into the
stream, with no kernel socket between; what needs one (`fileno`, `dup`, `sendmsg`, ...) says so.
"""

from __future__ import annotations

import errno
import socket as stdlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import trio

from ntcpsock import _names
from ntcpsock._address import check_port
from ntcpsock._datagram_sizes import PATH_MTU
from ntcpsock._listener import NTCPListener
from ntcpsock._node import Node
from ntcpsock._report import PathInfo, PeerInfo, Report
from ntcpsock._session.stream import NTCPStream
from ntcpsock._trio_datagrams import Datagrams, fill, open_datagrams

#: Gives the node that dials and listens; asked when a name is used first.
FindNode = Callable[[], Node]


class NTCPSocket(trio.socket.SocketType):
    """The methods of `trio.socket.SocketType`, over a trio socket or, by name, over an NTCPStream.

    Cancelling a method loses no bytes where trio's own would lose none. `peer`, `path` and `report` are None
    until it is connected by name.
    """

    def __init__(self, inner: trio.socket.SocketType, find_node: FindNode) -> None:
        self._inner = inner
        self._find_node = find_node
        self._stream: NTCPStream | None = None
        self._listener: NTCPListener | None = None
        self._datagrams: Datagrams | None = None
        self._bound: tuple[str, int] | None = None
        self._shut = False
        self._closed = False
        self._known_node: Node | None = None

    def _node(self) -> Node:
        """The node of the first use by name: it stays this socket's own."""
        if self._known_node is None:
            self._known_node = self._find_node()
        return self._known_node

    # By name.

    @property
    def peer(self) -> PeerInfo | None:
        if self._datagrams is not None:
            return self._datagrams.peer
        return None if self._stream is None else self._stream.peer

    @property
    def path(self) -> PathInfo | None:
        if self._datagrams is not None:
            return self._datagrams.path
        return None if self._stream is None else self._stream.path

    @property
    def report(self) -> Report | None:
        if self._datagrams is not None:
            return self._datagrams.report
        return None if self._stream is None else self._stream.report

    async def wait_moved(self) -> PathInfo:
        """Until the connection has moved to another path, which is `path` then; cancelling it changes nothing.

        Raises OSError: the connection's own at its end, ENOTCONN where it is none by name, EOPNOTSUPP for datagrams
        and with `encryption="off"`, which do not move.
        """
        if self._is_datagram:
            raise OSError(
                errno.EOPNOTSUPP, "datagrams have a path of their own each time: `path` is the current one"
            )
        if self._stream is None:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        path: PathInfo = await self._translated(self._stream.wait_moved())
        return path

    async def connect(self, address: Any) -> None:
        """Connect by name or number of a name, else as trio's socket does. Raises `ntcpsock._errors`."""
        label = _names.label_of_address(address)
        if label is None:
            await self._inner.connect(address)
            if self._datagrams is not None:
                self._datagrams.disconnect()
            return
        if self._is_datagram:
            await (await self._named()).connect(label, check_port(address[1]))
            return
        if self._stream is not None:
            raise OSError(errno.EISCONN, "Transport endpoint is already connected")
        self._only_streams()
        self._stream = await self._node().open_stream(label, address[1])

    async def bind(self, address: Any) -> None:
        """Bind to a name of the node: it is registered, and connections are queued, from here on."""
        label = _names.label_of_address(address)
        if label is None:
            await self._inner.bind(address)
            return
        if self._listener is not None or self._bound is not None or self._datagrams is not None:
            raise OSError(errno.EINVAL, "Invalid argument")
        if self._is_datagram:
            self._datagrams = await open_datagrams(self._inner, self._node(), label, check_port(address[1]))
            return
        self._only_streams()
        self._listener = await self._node().open_listener(address[1], name=label)
        self._bound = (label, self._listener.port)
        # A kernel socket that listens answers SO_ACCEPTCONN; nobody is ever told its port.
        await self._inner.bind(("::1" if self.family == stdlib.AF_INET6 else "127.0.0.1", 0))

    async def accept(self) -> tuple[trio.socket.SocketType, Any]:
        """The next connection and its peer's number and port. A plain socket's are trio's."""
        if self._listener is None:
            return await self._inner.accept()
        stream = await self._listener.accept()
        inner = _plain_socket(self.family, self.type, self.proto)
        accepted = NTCPSocket(inner, self._find_node)
        accepted._known_node = self._known_node
        accepted._stream = stream
        accepted._bound = self._bound
        return accepted, accepted.getpeername()

    def listen(self, backlog: int = 128) -> None:
        self._inner.listen(backlog)

    def getpeername(self) -> Any:
        if self._datagrams is not None:
            return self._datagrams.getpeername()
        if self._stream is None:
            return self._inner.getpeername()
        peer = self._stream.peer
        return _names.socket_address(peer.name or peer.node_id, peer.port, self.family)

    def getsockname(self) -> Any:
        if self._datagrams is not None and self._datagrams.is_bound:
            return self._datagrams.getsockname()
        if self._bound is not None:
            return _names.socket_address(*self._bound, self.family)
        if self._stream is not None:
            node = self._node()
            return _names.socket_address(node.name or node.node_id, 0, self.family)
        return self._inner.getsockname()

    # Bytes.

    async def send(self, data: Any, flags: int = 0) -> int:
        """Send all of `data`, or raise OSError (EPIPE, ECONNRESET). Cancelled, an unknown part was sent."""
        if self._datagrams is not None and self._datagrams.target is not None:
            return await self._datagrams.send(data)
        if self._stream is None:
            return await self._inner.send(data, flags)
        self._check(flags)
        if self._shut:
            await trio.lowlevel.checkpoint()
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        await self._translated(self._stream.send_all(data))
        return len(data)

    async def recv(self, buflen: int, flags: int = 0) -> bytes:
        """Up to `buflen` bytes, b"" after the peer's half-close. Raises ConnectionResetError after its reset."""
        if self._datagrams is not None:
            return (await self._datagrams.receive(buflen, flags))[0]
        if self._stream is None:
            return await self._inner.recv(buflen, flags)
        self._check(flags)
        return bytes(await self._translated(self._stream.receive_some(buflen))) if buflen else b""

    async def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        if self._datagrams is not None:
            return int((await self.recvfrom_into(buffer, nbytes, flags))[0])
        if self._stream is None:
            return await self._inner.recv_into(buffer, nbytes, flags)
        self._check(flags)
        with memoryview(buffer).cast("B") as view:
            room = view[: nbytes or len(view)]
            return await self._translated(self._stream.receive_into(room)) if room else 0

    def shutdown(self, flag: int) -> None:
        """Half-close, as the kernel does it: at once for us, for the peer behind what was sent before."""
        if self._stream is None:
            self._inner.shutdown(flag)
        elif flag in (stdlib.SHUT_WR, stdlib.SHUT_RDWR) and not self._shut:
            self._shut = True
            self._node().background.start(self._stream.send_eof)

    async def wait_writable(self) -> None:
        if self._stream is None:
            await self._inner.wait_writable()
        else:
            await self._translated(self._stream.wait_send_all_might_not_block())

    @property
    def did_shutdown_SHUT_WR(self) -> bool:
        return self._shut or bool(self._inner.did_shutdown_SHUT_WR)

    def close(self) -> None:
        """Close at once. What was sent before still goes out, in the background of the node, as the kernel's would."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._stream is not None and not self._closed:
            self._node().close_soon(self._stream)
        if self._datagrams is not None:
            self._datagrams.port.close()
        self._closed = True
        self._inner.close()

    async def _translated(self, operation: Awaitable[Any]) -> Any:
        """Sockets speak OSError; ClosedResourceError is what trio's own say when they are closed meanwhile."""
        try:
            return await operation
        except trio.BrokenResourceError as error:
            if isinstance(error.__cause__, OSError):
                raise error.__cause__ from None
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer") from error

    def _check(self, flags: int) -> None:
        if self._closed:
            raise OSError(errno.EBADF, "Bad file descriptor")
        if flags:
            raise OSError(errno.EOPNOTSUPP, "flags of send and recv are not known to a connection by name")

    def _only_streams(self) -> None:
        if self.type != stdlib.SOCK_STREAM:
            raise OSError(errno.EOPNOTSUPP, "names are reached by SOCK_STREAM and SOCK_DGRAM")

    # Datagrams.

    @property
    def _is_datagram(self) -> bool:
        return self.type == stdlib.SOCK_DGRAM and self.proto in (0, stdlib.IPPROTO_UDP)

    async def _named(self) -> Datagrams:
        """The socket's port at the node, from the first use of a name on."""
        if self._datagrams is None:
            self._datagrams = await open_datagrams(self._inner, self._node())
        return self._datagrams

    def _label(self, address: Any) -> str | None:
        return _names.label_of_address(address) if self._is_datagram else None

    async def sendto(self, data: Any, *args: Any) -> int:
        """Send one datagram to a name (or a name's number) or an ordinary address. See
        `NTCPDatagramSocket.send_to`."""
        label = self._label(args[-1]) if args else None
        if label is None:
            return await self._inner.sendto(data, *args)
        return await (await self._named()).send_to(data, label, check_port(args[-1][1]))

    async def sendmsg(
        self, buffers: Iterable[Any], ancdata: Iterable[Any] = (), flags: int = 0, address: Any = None
    ) -> int:
        """As `sendto`, out of several buffers."""
        label = self._label(address)
        is_connected = self._datagrams is not None and self._datagrams.target is not None
        if label is None and (address is not None or not is_connected):
            return await self._kernel().sendmsg(buffers, ancdata, flags, address)
        data = b"".join(bytes(buffer) for buffer in buffers)
        return await self.send(data) if label is None else await self.sendto(data, address)

    async def recvfrom(self, buflen: int, flags: int = 0) -> Any:
        """The next datagram and its sender: a name's number and port, or an ordinary address."""
        if self._datagrams is None:
            return await self._kernel().recvfrom(buflen, flags)
        data, _, address = await self._datagrams.receive(buflen, flags)
        return data, address

    async def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> Any:
        if self._datagrams is None:
            return await self._kernel().recvfrom_into(buffer, nbytes, flags)
        with memoryview(buffer).cast("B") as view:
            room = view[: nbytes or len(view)]
            data, _, address = await self._datagrams.receive(len(room), flags)
            return fill([room], data), address

    async def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0) -> Any:
        if self._datagrams is None:
            return await self._kernel().recvmsg(bufsize, ancbufsize, flags)
        data, message_flags, address = await self._datagrams.receive(bufsize, flags)
        return data, [], message_flags, address

    async def recvmsg_into(self, buffers: Iterable[Any], ancbufsize: int = 0, flags: int = 0) -> Any:
        if self._datagrams is None:
            return await self._kernel().recvmsg_into(buffers, ancbufsize, flags)
        room = list(buffers)
        size = sum(memoryview(buffer).nbytes for buffer in room)
        data, message_flags, address = await self._datagrams.receive(size, flags)
        return fill(room, data), [], message_flags, address

    # What the kernel's socket does.

    @property
    def family(self) -> Any:
        return self._inner.family

    @property
    def type(self) -> Any:
        return self._inner.type

    @property
    def proto(self) -> int:
        return self._inner.proto

    def getsockopt(self, *args: Any) -> Any:
        if self._datagrams is not None and args in PATH_MTU:
            path_mtu = self._datagrams.path_mtu(PATH_MTU[args])
            if path_mtu is not None:
                return path_mtu
        return self._inner.getsockopt(*args)

    def setsockopt(self, *args: Any) -> None:
        self._inner.setsockopt(*args)

    def get_inheritable(self) -> bool:
        return self._inner.get_inheritable()

    def set_inheritable(self, inheritable: bool) -> None:
        self._inner.set_inheritable(inheritable)

    def fileno(self) -> int:
        return self._kernel().fileno()

    def detach(self) -> int:
        return self._kernel().detach()

    def dup(self) -> trio.socket.SocketType:
        return NTCPSocket(self._kernel().dup(), self._find_node)

    def is_readable(self) -> bool:
        if self._datagrams is not None:
            return self._datagrams.is_readable()
        return self._kernel().is_readable()

    def _kernel(self) -> trio.socket.SocketType:
        if self._stream is not None or self._listener is not None or self._datagrams is not None:
            raise OSError(
                errno.EOPNOTSUPP, "a connection by name on the trio face is no kernel socket; NTCPSocket is"
            )
        return self._inner

    def __enter__(self) -> NTCPSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Resolver(trio.abc.HostnameResolver):
    """Names to numbers; everything else as before."""

    def __init__(self, before: trio.abc.HostnameResolver | None) -> None:
        self.before = before

    async def getaddrinfo(
        self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        if _names.label_of(host) is not None:
            await trio.lowlevel.checkpoint()
            return _names.getaddrinfo(host, port, family, type, proto, flags)
        if self.before is not None:
            return await self.before.getaddrinfo(host, port, family, type, proto, flags)
        return await trio.to_thread.run_sync(
            stdlib.getaddrinfo, host, port, family, type, proto, flags, abandon_on_cancel=True
        )

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        if _names.label_of_address(sockaddr) is not None:
            await trio.lowlevel.checkpoint()
            return _names.getnameinfo(sockaddr, flags)
        if self.before is not None:
            return await self.before.getnameinfo(sockaddr, flags)
        return await trio.to_thread.run_sync(stdlib.getnameinfo, sockaddr, flags, abandon_on_cancel=True)


class Factory(trio.abc.SocketFactory):
    """Sockets that know names."""

    def __init__(self, find_node: FindNode, before: trio.abc.SocketFactory | None) -> None:
        self._find_node = find_node
        self.before = before

    def socket(
        self, family: Any = stdlib.AF_INET, type: Any = stdlib.SOCK_STREAM, proto: int = 0
    ) -> NTCPSocket:
        if self.before is not None:
            return NTCPSocket(self.before.socket(family, type, proto), self._find_node)
        return NTCPSocket(_plain_socket(family, type, proto), self._find_node)


def _plain_socket(family: int, type: int, proto: int) -> trio.socket.SocketType:
    return trio.socket.from_stdlib_socket(stdlib.socket(family, type, proto))
