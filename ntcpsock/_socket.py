"""`NTCPSocket`: the system's socket class, with `.ntcp` names beside the addresses it knows.

What the application holds is a kernel socket from the beginning to the end; only what says *where to* is
overridden, and each of these methods hands an ordinary address straight to the system. Bytes never pass
through Python here: `send`, `recv`, `makefile`, `sendfile`, `select` and C code use the descriptor.

Out: the engine dials first, then the application's own descriptor connects to the engine over loopback.
In: the descriptor listens on loopback and the engine connects to it for each session that arrives.
"""

from __future__ import annotations

import errno
import socket as _stdlib
import sys
import weakref
from typing import TYPE_CHECKING, Any

from ntcpsock import (
    _datagram_sizes,
    _datagram_table,
    _forwarding,
    _known,
    _names,
    _publish,
    _resolver,
    _socket_connect,
    _socket_datagrams,
    _socket_listen,
)
from ntcpsock._errors import NameNotFound
from ntcpsock._socket_state import Named, errno_of, leave

if TYPE_CHECKING:
    from ntcpsock._config import Config
    from ntcpsock._parking import Parked
    from ntcpsock._report import PathInfo, PeerInfo, Report

# Called by name: `super()` at each call is what an ordinary socket would feel.
_plain_init: Any = _stdlib.socket.__init__
_plain_accept: Any = _stdlib.socket._accept  # type: ignore[attr-defined]  # typeshed leaves it out
_plain_connect = _stdlib.socket.connect
# The class in C below it, whose family and type are plain integers: an enum costs as much as a short system call.
_kernel_socket: Any = _stdlib.socket.__mro__[1]
_family_of = _kernel_socket.family.__get__
_type_of = _kernel_socket.type.__get__
_plain_recvfrom = _stdlib.socket.recvfrom
_plain_recvfrom_into = _stdlib.socket.recvfrom_into
_plain_recvmsg: Any = _stdlib.socket.recvmsg
_plain_recvmsg_into: Any = _stdlib.socket.recvmsg_into
_plain_sendmsg: Any = _stdlib.socket.sendmsg
_plain_sendto: Any = _stdlib.socket.sendto
_plain_setsockopt = _stdlib.socket.setsockopt


class NTCPSocket(_stdlib.socket):
    """A `socket.socket` that also connects to, binds and accepts under `.ntcp` names.

    config: the configuration for the engine of this process (there is one), where this socket is the
    first to need it; default: `NTCP_*` variables and the file that NTCP_CONFIG names.

    peer: a PeerInfo, who is at the other end, proven by key; report: a Report, what was tried, after a failed
    connect too, and where the connection has moved since (`report.moves`). None for ordinary connections, as `path`
    is.
    """

    peer: PeerInfo | None = None
    report: Report | None = None
    _path: PathInfo | None = None
    _named: Named | None = None
    # The name under which a listener at ordinary addresses is reached too.
    _published: Named | None = None
    _parked: Parked | None = None
    # Datagrams by name.
    _channel: _socket_datagrams.Channel | None = None
    # Whether no datagram is to be cut.
    _is_whole = False
    _config: Config | None = None
    _finalizer: weakref.finalize[Any, Any] | None = None

    def __init__(
        self,
        family: int = -1,
        type: int = -1,
        proto: int = -1,
        fileno: int | None = None,
        *,
        config: Config | None = None,
    ) -> None:
        _plain_init(self, family, type, proto, fileno)
        if config is not None:
            self._config = config
        if fileno is not None and (_known.connections or _known.listening or _known.bound):
            _known.adopt(self)
        if fileno is not None and _datagram_table.channels:
            _socket_datagrams.adopt(self)

    @property
    def path(self) -> PathInfo | None:
        """How the bytes travel now: a connection that loses its path goes on over another one. None for ordinary
        connections. A process that got the socket from another one knows the path of that moment."""
        report = self.report
        return self._path if report is None or report.path is None else report.path

    @path.setter
    def path(self, path: PathInfo | None) -> None:
        self._path = path

    # -- out

    def connect(self, address: Any, /) -> None:
        """Connect to `address`; a `.ntcp` name (or its number) is dialled, authenticated and encrypted.

        The socket's time-out covers all stages together; without one, the configuration's
        `connect_timeout` does. Raises the errors of `ntcpsock._errors`: NameNotFound, PeerOffline,
        PeerRefused, TraversalTimeout, TraversalFailed, BrokerUnreachable, IdentityMismatch; OSError
        (EISCONN) when connected already. A non-blocking socket raises BlockingIOError (EINPROGRESS), becomes
        writable when it is connected, and tells by SO_ERROR.

        A datagram socket is connected at once, as UDP's are: the first datagram dials. Only the name is looked up, by
        a socket that blocks.
        """
        label = _names.label_of_address(address)
        if label is None:
            _plain_connect(self, address)
            if self._channel is not None:
                _socket_datagrams.disconnected(self)
        elif _socket_datagrams.is_datagram(self):
            _socket_datagrams.connect(self, label, address)
        else:
            _socket_connect.connect(self, label, address, "connect")

    def connect_ex(self, address: Any, /) -> int:
        """As `connect`, but returns the errno (0: connected). Like the system's it raises for a name that
        does not resolve, and returns EAGAIN when the socket's time-out passes."""
        label = _names.label_of_address(address)
        if label is None:
            if self._channel is not None:
                _socket_datagrams.disconnected(self)
            return super().connect_ex(address)
        try:
            if _socket_datagrams.is_datagram(self):
                _socket_datagrams.connect(self, label, address)
                return 0
            _socket_connect.connect(self, label, address, "connect_ex")
        except NameNotFound:
            raise
        except TimeoutError:
            return errno.ETIMEDOUT if self.gettimeout() is None else errno.EAGAIN
        except OSError as error:
            return errno_of(error)
        return 0

    def setsockopt(self, *args: Any) -> None:
        """As `socket.setsockopt`. SO_KEEPALIVE, TCP_KEEP*, TCP_USER_TIMEOUT and small buffers of a connection by
        name reach the connection to the peer. With IP_MTU_DISCOVER (IP_PMTUDISC_DO) no datagram by name is cut."""
        _plain_setsockopt(self, *args)
        if args[:2] in _datagram_sizes.CUTTING and _socket_datagrams.is_datagram(self):
            _socket_datagrams.heed_sizes(self)
            return
        named = self._named or self._published
        if named is None or args[:2] not in _forwarding.FORWARDED:
            return
        if named.listener is not None:
            named.listener.heed(_forwarding.wishes(self))
        elif named.peer_label is not None:
            _forwarding.forward(self)

    def getsockopt(self, *args: Any) -> Any:
        """As `socket.getsockopt`; SO_ERROR tells why a non-blocking connect by name failed, IP_MTU how large a datagram
        goes to the name in one packet, 28 bytes of headers (IPV6_MTU: 48) added."""
        if self._channel is not None and args in _datagram_sizes.PATH_MTU:
            path_mtu = _socket_datagrams.path_mtu(self, _datagram_sizes.PATH_MTU[args])
            if path_mtu is not None:
                return path_mtu
        parked = self._parked
        if parked is None or args != (_stdlib.SOL_SOCKET, _stdlib.SO_ERROR) or parked.pending:
            return super().getsockopt(*args)
        value = super().getsockopt(*args)
        if parked.error is None or parked.told:
            return value
        parked.told = True
        return errno_of(parked.error)

    # -- in

    def bind(self, address: Any, /) -> None:
        """Bind; under a `.ntcp` name this remembers name and port, and `listen` registers them.

        Port 0 takes a free number, which `getsockname` shows.
        """
        label = _names.label_of_address(address)
        if label is None:
            try:
                super().bind(address)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not _resolver.make_room(address):
                    raise
                super().bind(address)
            if _publish.enabled and isinstance(address, tuple) and address[1:2] > (0,):
                self._publish_datagrams()
            return
        if _socket_datagrams.is_datagram(self):
            _socket_datagrams.bind(self, label, address)
            return
        _socket_listen.bind(self, label, address)

    def listen(self, *backlog: int) -> None:
        """Listen; a socket that is bound to a name registers it now, and waits for that.

        Raises NameTaken, BrokerUnreachable, and OSError (EADDRINUSE) where this process listens on the
        name and port already. `backlog` bounds how many connections wait for `accept`.
        """
        super().listen(*backlog)
        # The system's own default, and what is below 0 counts as 0.
        places = max(0, backlog[0]) if backlog else min(_stdlib.SOMAXCONN, 128)
        named = self._named
        if named is None:
            if _publish.enabled and self._published is None:
                _publish.publish(self, places)
            return
        if named.peer_label is None and named.listener is None:
            _socket_listen.listen(self, named, places)

    def _hold(self, named: Named) -> None:
        """This socket listens under a name, alone or with others."""
        assert named.listener is not None
        if named.published:
            self._published = named
        else:
            self._named = named
        # Collected without close(): the C destructor closes the descriptor and calls nothing of ours.
        named.listener.holders += 1
        named.listener.heed(_forwarding.wishes(self))
        self._finalizer = weakref.finalize(self, named.listener.end, wait=False)
        self._finalizer.atexit = False

    def accept(self) -> tuple[NTCPSocket, Any]:
        """Accept; under a name only what the engine brings is let in, and it knows its `peer`.

        The address is the peer's number (see `getnameinfo`) and port. The time-out covers the whole wait.
        A listener at ordinary addresses that is published too returns both kinds.
        """
        named = self._named or self._published
        if named is None or named.listener is None:
            descriptor, address = _plain_accept(self)
            return self._accepted(descriptor), address
        return _socket_listen.accept(self, named, named.listener)

    def _accepted(self, descriptor: int) -> NTCPSocket:
        # Without our own __init__: what is known of this descriptor its caller tells it.
        sock = NTCPSocket.__new__(NTCPSocket)
        _plain_init(sock, _family_of(self), _type_of(self), self.proto, descriptor)
        # As socket.accept does: a listener's time-out is not its connections'.
        if _stdlib.getdefaulttimeout() is None and self.gettimeout():
            sock.setblocking(True)
        return sock

    # -- datagrams

    def _publish_datagrams(self) -> None:
        if _socket_datagrams.is_datagram(self):
            _socket_datagrams.published(self)

    def sendto(self, data: Any, /, *args: Any) -> int:
        """As `socket.sendto`, to a `.ntcp` name (or its number) too.

        The first datagram to a node dials, and waits for that in the engine (the newest 64 do). A name that is not
        known raises NameNotFound, as one that does not resolve; that a node is not reached is told as UDP tells it, to
        connected sockets. More than 65,507 bytes, or where none is to be cut (IP_MTU_DISCOVER) than the path carries in
        one packet: EMSGSIZE.
        """
        label = _names.label_of_address(args[-1]) if args else None
        if label is not None and _socket_datagrams.is_datagram(self):
            kernel = _socket_datagrams.destination(self, label, args[-1])
            if self._is_whole:
                _socket_datagrams.check_size(self, memoryview(data).nbytes, (label, args[-1][1]))
            args = (*args[:-1], kernel)
        return int(_plain_sendto(self, data, *args))

    def sendmsg(self, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None, /) -> int:
        """As `socket.sendmsg`, to a `.ntcp` name (or its number) too; see `sendto`."""
        label = _names.label_of_address(address)
        target = None if self._channel is None or address is not None else self._channel.target
        if label is not None and _socket_datagrams.is_datagram(self):
            target = label, address[1]
            address = _socket_datagrams.destination(self, label, address)
        if self._is_whole and target is not None:
            buffers = tuple(buffers)
            size = sum(memoryview(buffer).nbytes for buffer in buffers)
            _socket_datagrams.check_size(self, size, target)
        if address is None:
            return int(_plain_sendmsg(self, buffers, ancdata, flags))
        return int(_plain_sendmsg(self, buffers, ancdata, flags, address))

    def recvfrom(self, *args: Any) -> tuple[bytes, Any]:
        """As `socket.recvfrom`. What came by name has the sender's number (see `getnameinfo`) and port."""
        if self._channel is None:
            return _plain_recvfrom(self, *args)
        data, address = _plain_recvfrom(self, *args)
        return data, self._channel.shown(address, self.family)

    def recvfrom_into(self, *args: Any, **kwargs: Any) -> tuple[int, Any]:
        """As `recvfrom`, into a buffer."""
        count, address = _plain_recvfrom_into(self, *args, **kwargs)
        return count, address if self._channel is None else self._channel.shown(address, self.family)

    def recvmsg(self, *args: Any) -> Any:
        """As `socket.recvmsg`, with the sender's address as `recvfrom` says it."""
        received = _plain_recvmsg(self, *args)
        if self._channel is None:
            return received
        return *received[:3], self._channel.shown(received[3], self.family)

    def recvmsg_into(self, *args: Any) -> Any:
        """As `recvmsg`, into buffers."""
        received = _plain_recvmsg_into(self, *args)
        if self._channel is None:
            return received
        return *received[:3], self._channel.shown(received[3], self.family)

    # -- both

    def getsockname(self) -> Any:
        """The own address; for a socket with a name, the number that stands for it."""
        address = super().getsockname()
        named = self._named
        if named is None:
            if self._channel is not None and self._channel.own is not None:
                return _names.socket_address(*self._channel.own, self.family)
            return address
        return _names.socket_address(named.label, named.port or address[1], self.family)

    def getpeername(self) -> Any:
        """The peer's address; for a connection by name, the number that stands for the peer."""
        address = super().getpeername()
        named = self._named
        if named is None or named.peer_label is None:
            return address if self._channel is None else self._channel.shown(address, self.family)
        return _names.socket_address(named.peer_label, named.peer_port, self.family)

    def dup(self) -> NTCPSocket:
        """A second socket on the same connection or listener, which ends with the last of them."""
        sock = super().dup()
        sock.peer, sock.path, sock.report = self.peer, self.path, self.report
        sock._config = self._config
        _socket_datagrams.copied(sock, self)
        if sock._named is None and sock._published is None:
            sock._named = self._named
            named = self._named or self._published
            if named is not None and named.listener is not None:
                sock._hold(named)
        return sock

    def __reduce_ex__(self, protocol: Any, /) -> Any:
        # multiprocessing registers a way to send `socket.socket`, which does not reach derived classes.
        # Its picklers have no Python frame of their own; everybody else gets the system's refusal.
        if sys._getframe(1).f_globals.get("__name__") != "multiprocessing.reduction":
            return super().__reduce_ex__(protocol)
        from ntcpsock._passing import reduce_socket

        return reduce_socket(self)

    def detach(self) -> int:
        """As `socket.detach`. A listening name goes on until its descriptor is closed."""
        if self._channel is not None:
            _socket_datagrams.let_go(self)
            return super().detach()
        named = self._named or self._published
        self._named = self._published = None
        if self._finalizer is not None:
            self._finalizer.detach()
        if named is not None and named.listener is not None:
            named.listener.holders -= 1
        return super().detach()

    # As the system's own, this may run when the interpreter has taken the globals away already.
    def _real_close(self, _ss: Any = _kernel_socket) -> None:
        if self._channel is not None:
            _socket_datagrams.close(self)
        if self._finalizer is None and self._named is None and self._published is None:
            _ss.close(self)  # an ordinary socket: no more than the system's own close
            return
        named = self._named or self._published
        way = _forwarding.about_to_reset(self) if named is not None and named.peer_label is not None else None
        self._named = self._published = None
        try:
            # The engine first: once the port of the descriptor is free, another program may take it.
            finalizer = self._finalizer.detach() if self._finalizer is not None else None
            if finalizer is not None and named is not None and named.listener is not None:
                named.listener.end(wait=True)
            elif finalizer is not None:
                leave(*finalizer[2])
        finally:
            _ss.close(self)
        if way is not None:
            way.wait_passed()


NTCPSocket.__module__ = "ntcpsock"
