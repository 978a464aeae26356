"""How an NTCPSocket of datagrams uses names: what it tells the engine, and what it shows of addresses.

Bytes go from the program's descriptor into the kernel and out of it, as ever. By name only the destination is another
one: the number that the engine answers to. What is received from there is shown as the peer's number and port.
"""

from __future__ import annotations

import errno
import os
import socket as _stdlib
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ntcpsock import _datagram_table, _known, _names, _portal, _publish
from ntcpsock._datagram_filter import numbers_only_from_port, only_from_port, remove
from ntcpsock._datagram_sizes import SURELY_WHOLE, is_whole

if TYPE_CHECKING:
    from ntcpsock._datagram_local import Local
    from ntcpsock._socket import NTCPSocket

Address = tuple[str, int]

# The class itself, whatever the module calls by this name later.
_plain = _stdlib.socket
_FAMILIES = (_stdlib.AF_INET, _stdlib.AF_INET6)
_WILDCARDS = {_stdlib.AF_INET: "0.0.0.0", _stdlib.AF_INET6: "::"}
_LOOPBACK = "127.0.0.1"
_V4_MAPPED = "::ffff:"
# How long close() waits for the engine, in seconds.
_CLOSE_DEADLINE = 2.0


class Channel:
    """What the sockets that share one descriptor's socket know about it: the program's end of a `Local`.

    own: (label, port) that it is bound to, or None; target: (label, port) that it is connected to, or None.
    """

    def __init__(self, portal: _portal.Portal, local: Local) -> None:
        self.portal = portal
        self.local = local
        self.process = os.getpid()
        self.holders = 0
        self.own: Address | None = None
        self.target: Address | None = None
        #: By (label, port): the host that the program has sent to, where that is not the name's own number.
        self.hosts: dict[Address, str] = {}

    @property
    def is_own(self) -> bool:
        """Whether its engine is this process's, and running."""
        return self.process == os.getpid() and self.portal.alive

    def shown(self, address: Any, family: int) -> Any:
        """The address of a sender, as the program is to see it."""
        if not isinstance(address, tuple) or len(address) < 2:
            return address
        meaning = _datagram_table.meaning(address)
        if meaning is None:
            return address
        shown = _datagram_table.shown(*meaning, family)
        host = self.hosts.get(meaning)
        return shown if host is None else (_names.as_family(host, family), *shown[1:])

    def heed(self, label: str, port: int, host: object) -> None:
        """The program may compare where it has sent to with where an answer comes from."""
        host = host.removeprefix(_V4_MAPPED) if isinstance(host, str) else ""
        if host[:4] != "127." or host == _names.number(label):
            if self.hosts:
                self.hosts.pop((label, port), None)
        else:
            if len(self.hosts) >= 1024:
                self.hosts.clear()
            self.hosts[label, port] = host

    def release(self, *, wait: bool = False) -> None:
        """A holder closes; the last one ends it. In a forked child this is not ours to end.

        wait: until the engine has what was sent before.
        """
        self.holders -= 1
        if self.holders > 0 or not self.is_own:
            return
        datagrams = self.portal.engine.datagrams
        if wait:
            try:
                self.portal.call(datagrams.close, self.local, timeout=_CLOSE_DEADLINE)
            except (OSError, RuntimeError):
                pass
            else:
                return
        self.portal.soon(datagrams.end, self.local)


def is_datagram(sock: NTCPSocket) -> bool:
    """Whether it is UDP's: 0 is that too."""
    is_udp = sock.type == _stdlib.SOCK_DGRAM and sock.proto in (0, _stdlib.IPPROTO_UDP)
    return is_udp and sock.family in _FAMILIES


# -- what the methods of NTCPSocket do for a name


def destination(sock: NTCPSocket, label: str, address: tuple[Any, ...]) -> Any:
    """Where the kernel is to send what goes to a name. Raises what a resolver would: NameNotFound, BrokerUnreachable;
    a socket that does not block looks the name up in the background."""
    port = _port_of(sock, label, address, "sendto")
    channel = sock._channel
    key = (label, port)
    if channel is not None:
        if channel.process != os.getpid() and key in _datagram_table.inherited:
            # The parent's engine knows this socket.
            return _datagram_table.kernel_address(_datagram_table.inherited[key], sock.family)
        known = _datagram_table.ways.get(key) if channel.is_own else None
        if known is not None:
            channel.heed(label, port, address[0])
            return _datagram_table.kernel_address(known, sock.family)
    channel = _ensure(sock)
    engine = channel.portal.engine
    timeout = sock.gettimeout()
    if timeout != 0:
        channel.portal.call(engine.datagrams.resolve, sock._config, label, timeout=timeout)
    kernel = channel.portal.call(engine.datagrams.way, channel.local, label, port)
    channel.heed(label, port, address[0])
    return _datagram_table.kernel_address(kernel, sock.family)


def connect(sock: NTCPSocket, label: str, address: tuple[Any, ...]) -> None:
    """As UDP's connect: nothing is sent, nobody is asked, but for a name that is not known yet."""
    port = _port_of(sock, label, address, "bind")
    channel = _ensure(sock)
    engine = channel.portal.engine
    timeout = sock.gettimeout()
    if timeout != 0:
        channel.portal.call(engine.datagrams.resolve, sock._config, label, timeout=timeout)
    sock.peer = sock.path = sock.report = None
    kernel = channel.portal.call(engine.datagrams.connect, channel.local, label, port)
    _plain.connect(sock, _datagram_table.kernel_address(kernel, sock.family))
    # From here on the kernel takes nothing that does not come from there.
    remove(sock)
    channel.target = label, port
    channel.heed(label, port, address[0])


def check_size(sock: NTCPSocket, size: int, target: Address | None) -> None:
    """Raise OSError (EMSGSIZE) where so many bytes do not go to (label, port) in one packet. Before there is a path,
    and in a forked child, nobody knows."""
    channel = sock._channel
    if target is not None and channel is not None and channel.is_own and channel.local.port is not None:
        channel.local.port.check_size(size, target)


def path_mtu(sock: NTCPSocket, headers: int) -> int | None:
    """What IP_MTU says of a connected socket, headers included; None of one that is not connected by name."""
    channel = sock._channel
    if channel is None or channel.target is None:
        return None
    port = channel.local.port if channel.is_own else None
    largest = None if port is None else port.largest(*channel.target)
    return (largest or SURELY_WHOLE) + headers


class _SendWhole:
    """In place of the kernel's `send`, where a datagram is not to be cut. It does not keep its socket alive."""

    def __init__(self, sock: NTCPSocket) -> None:
        self._sock = weakref.ref(sock)

    def __call__(self, data: Any, *flags: int) -> int:
        sock = self._sock()
        if sock is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if sock._channel is not None:
            check_size(sock, memoryview(data).nbytes, sock._channel.target)
        return _plain.send(sock, data, *flags)


def heed_sizes(sock: NTCPSocket) -> None:
    """The program may have said that no datagram is to be cut, or that any may."""
    sock._is_whole = is_whole(sock)
    if sock._is_whole:
        sock.__dict__["send"] = _SendWhole(sock)
    else:
        sock.__dict__.pop("send", None)


def disconnected(sock: NTCPSocket) -> None:
    """The program has connected the socket to an ordinary address."""
    channel = sock._channel
    if channel is None or channel.target is None:
        return
    channel.target = None
    sock.peer = sock.path = sock.report = None
    if channel.is_own:
        engine = channel.portal.engine
        channel.portal.soon(engine.datagrams.connected, channel.local, None)
        _filter(sock, channel, engine.datagrams.port)


def bind(sock: NTCPSocket, label: str, address: tuple[Any, ...]) -> None:
    """Bind to a port of a name: it is registered now. Raises NameTaken, BrokerUnreachable, and OSError (EADDRINUSE)
    where this process has the port already."""
    port = _port_of(sock, label, address, "bind")
    if _plain.getsockname(sock)[1]:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    portal = _portal.get()
    engines_port = portal.call(portal.engine.datagrams.start)
    # Its own address is the kernel's business, and nobody's to share: who shares it could speak in our name.
    shares = sock.getsockopt(_stdlib.SOL_SOCKET, _stdlib.SO_REUSEADDR)
    if shares:
        _stdlib.socket.setsockopt(sock, _stdlib.SOL_SOCKET, _stdlib.SO_REUSEADDR, 0)
    _reach(sock)
    host = _LOOPBACK if sock.family == _stdlib.AF_INET else _V4_MAPPED + _LOOPBACK
    _plain.bind(sock, (host, 0))
    only_from_port(sock, engines_port)
    channel = _open(sock, portal)
    channel.own = label, port or channel.local.address[1]
    try:
        portal.call(portal.engine.datagrams.bind, sock._config, channel.local, *channel.own)
    except BaseException:
        portal.soon(portal.engine.datagrams.end, channel.local)
        _drop(sock)
        raise


def published(sock: NTCPSocket) -> None:
    """After a bind to all addresses: what arrives for this port of the process's own name comes here too."""
    wildcard = _WILDCARDS.get(sock.family)
    address = _plain.getsockname(sock)
    if address[0] != wildcard or _publish.is_engines_own():
        return
    try:
        label = _publish.own_name()
        if label is None:
            return
        _reach(sock)
        channel = _ensure(sock)
        channel.portal.call(channel.portal.engine.datagrams.publish, channel.local, label, address[1])
    except OSError as error:
        import logging  # part of no program that does without it

        logging.getLogger("ntcpsock").error("datagrams of port %s are not published: %s", address[1], error)


def adopt(sock: NTCPSocket) -> None:
    """A socket object was made of a descriptor."""
    with suppress(OSError):
        channel = _datagram_table.channels.get(os.fstat(sock.fileno()).st_ino)
        if channel is not None and sock._channel is None and is_datagram(sock):
            _hold(sock, channel)


# -- underneath


def _port_of(sock: NTCPSocket, label: str, address: tuple[Any, ...], method: str) -> int:
    from ntcpsock._socket_connect import check_address

    return check_address(sock, label, address, method)


def _reach(sock: NTCPSocket) -> None:
    """Numbers are IPv4. Raises OSError (EADDRNOTAVAIL) where the socket is for IPv6 alone."""
    if sock.family == _stdlib.AF_INET6 and sock.getsockopt(_stdlib.IPPROTO_IPV6, _stdlib.IPV6_V6ONLY):
        raise OSError(errno.EADDRNOTAVAIL, "datagrams by name need a socket without IPV6_V6ONLY, or AF_INET")


def _ensure(sock: NTCPSocket) -> Channel:
    """The socket's channel to this process's engine. An unbound socket is bound, as sending would do it."""
    channel = sock._channel
    if channel is not None and channel.is_own:
        return channel
    portal = _portal.get()
    engines_port = portal.call(portal.engine.datagrams.start)
    _reach(sock)
    if not _plain.getsockname(sock)[1]:
        _plain.bind(sock, (_WILDCARDS[sock.family], 0))
    own = None
    if channel is not None:
        own = channel.own
        remove(sock)  # the port of an engine that is no more
    channel = _open(sock, portal)
    _filter(sock, channel, engines_port)
    if own is not None:  # the engine was started anew
        channel.own = own
        portal.call(portal.engine.datagrams.bind, sock._config, channel.local, *own)
    return channel


def _filter(sock: NTCPSocket, channel: Channel, engines_port: int) -> None:
    if channel.own is not None:
        only_from_port(sock, engines_port)
    else:
        numbers_only_from_port(sock, engines_port)


def _open(sock: NTCPSocket, portal: _portal.Portal) -> Channel:
    from ntcpsock._datagram_local import Local

    host, port = _known.address_key(_plain.getsockname(sock))
    if host in _WILDCARDS.values():
        host = _LOOPBACK  # what the kernel takes for a destination on loopback
    elif ":" in host:
        raise OSError(errno.EADDRNOTAVAIL, f"{host}: cannot reach a name from this local address")
    inode = os.fstat(sock.fileno()).st_ino
    this = weakref.ref(sock)

    def failed(label: str, port: int, error: OSError) -> None:
        alive = this()
        if alive is not None:
            alive.report = getattr(error, "report", None) or alive.report

    channel = Channel(portal, Local((host, port), inode, sock.fileno(), failed))
    _datagram_table.channels[inode] = channel
    _drop(sock)
    _hold(sock, channel)
    return channel


def _hold(sock: NTCPSocket, channel: Channel) -> None:
    sock._channel = channel
    channel.holders += 1
    if not sock._is_whole:
        heed_sizes(sock)
    # Collected without close(): the C destructor closes the descriptor and calls nothing of ours.
    sock._finalizer = weakref.finalize(sock, channel.release)
    sock._finalizer.atexit = False


def _drop(sock: NTCPSocket) -> None:
    if sock._channel is not None and sock._finalizer is not None:
        sock._finalizer.detach()
        sock._finalizer = None
        sock._channel.holders -= 1
    sock._channel = None


def copied(sock: NTCPSocket, original: NTCPSocket) -> None:
    """`dup` has made `sock`."""
    if sock._channel is None and original._channel is not None:
        _hold(sock, original._channel)


def let_go(sock: NTCPSocket) -> None:
    """`detach`: the descriptor goes on without the object. The engine looks who has it."""
    _drop(sock)


def close(sock: NTCPSocket) -> None:
    """The object closes its descriptor."""
    channel = sock._channel
    if channel is not None:
        if sock._finalizer is not None:
            sock._finalizer.detach()
            sock._finalizer = None
        sock._channel = None
        channel.release(wait=True)
