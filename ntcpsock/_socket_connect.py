"""How an NTCPSocket connects by name: what it checks first, the blocking way, and the non-blocking one.

Blocking: the engine dials, then the application's own descriptor connects to it over loopback. Non-blocking:
the descriptor waits in SYN_SENT (see `_parking`) while the engine dials.
"""

from __future__ import annotations

import errno
import operator
import os
import socket as _stdlib
import weakref
from typing import TYPE_CHECKING, Any, NoReturn

from ntcpsock import _forwarding, _known, _portal, _punched
from ntcpsock._socket_state import Named, leave
from ntcpsock._source_port import SourcePort

if TYPE_CHECKING:
    from ntcpsock._hop import Dialled
    from ntcpsock._parking import Parked
    from ntcpsock._pump import Stream
    from ntcpsock._socket import NTCPSocket

# The class itself, whatever the module calls by this name later.
_plain = _stdlib.socket

# Flow labels have 20 bits (RFC 6437); the system takes what is larger than an int modulo that.
_LARGEST_FLOW = 0xFFFFF
_INT = 0xFFFFFFFF


def connect(sock: NTCPSocket, label: str, address: tuple[Any, ...], method: str) -> None:
    """Connect to `label`; `method` says what the program has called, for the errors that the system raises."""
    from ntcpsock._hop import loopback

    port = check_address(sock, label, address, method)
    timeout = sock.gettimeout()
    if sock._parked is not None and _is_settled(sock, sock._parked):
        return
    if _has_peer(sock):
        raise OSError(errno.EISCONN, os.strerror(errno.EISCONN))
    sock.peer = sock.path = sock.report = None
    portal = _portal.get()
    engine = portal.engine
    if timeout == 0:
        _park(sock, portal, label, port)
    source = SourcePort(sock, loopback(sock.family))
    try:
        lent = _punched.lend(sock, engine, sock._config)
        try:
            dialled = portal.call(
                engine.dial,
                sock._config,
                label,
                port,
                timeout,
                int(sock.family),
                _said_port(sock, source.number),
                lent,
                timeout=timeout,
                discard=_give_up,
            )
        except OSError as error:
            sock.report = getattr(error, "report", None)
            raise
        finally:
            if lent is not None:
                _punched.settle(sock, timeout)
        if isinstance(dialled, _punched.Punched):
            _set_punched(sock, label, port, _said_port(sock, source.number), dialled)
            return
        try:
            _connect_hop(sock, dialled, source)
        except BaseException:
            portal.soon(dialled.give_up)
            raise
    finally:
        source.release()
    portal.soon(dialled.confirm)
    _set_peer(sock, label, port, dialled.own_label, dialled.stream, dialled.ends)
    _forwarding.forward(sock)  # options that were set before


def _set_peer(
    sock: NTCPSocket, label: str, port: int, own_label: str, stream: Stream, ends: _known.Ends | None
) -> None:
    # The port that the program has bound stays, under the name that the peer knows.
    named = Named(own_label, None if sock._named is None else sock._named.port)
    named.peer_label = label
    named.peer_port = port
    sock._named = named
    sock.peer = stream.peer
    sock.path = stream.path
    sock.report = stream.report
    if ends is not None:
        _known.hold(ends, sock)


def _set_punched(sock: NTCPSocket, label: str, port: int, said_port: int, punched: _punched.Punched) -> None:
    """The descriptor is the connection. Its port is the punched one; names and numbers are as for all others."""
    stream = punched.stream
    named = Named(punched.own_label, said_port or None)
    named.peer_label = label
    named.peer_port = port
    sock._named = named
    sock.peer, sock.path, sock.report = stream.peer, stream.path, stream.report
    _punched.remember(
        sock,
        _known.Connection(
            punched.own_label, named.port, port, stream.peer, stream.path, stream.report, punched=True
        ),
    )


def _park(sock: NTCPSocket, portal: _portal.Portal, label: str, port: int) -> NoReturn:
    """Non-blocking: dial in the background. Raises BlockingIOError (EINPROGRESS), as the system does."""
    from ntcpsock._parking import Parked
    from ntcpsock._pump import tune

    engine = portal.engine
    family = int(sock.family)
    park = engine.car_parks.get(family) or portal.call(engine.car_park, family)
    tune(sock)
    code = _plain.connect_ex(sock, park.address)
    if code == errno.ECONNABORTED:
        # Linux's answer, once, to a connect after one whose error SO_ERROR has told.
        code = _plain.connect_ex(sock, park.address)
    if code != errno.EINPROGRESS:
        raise OSError(code, os.strerror(code))
    parked = sock._parked = Parked(sock, family, park)
    this = weakref.ref(sock)

    def connected(own_label: str, stream: Stream, ends: _known.Ends | None) -> None:
        alive = this()
        if alive is not None:
            _set_peer(alive, label, port, own_label, stream, ends)

    def failed(error: OSError) -> None:
        alive = this()
        if alive is not None:
            alive.report = getattr(error, "report", None)

    sock._finalizer = weakref.finalize(sock, leave, portal, parked)
    sock._finalizer.atexit = False
    source_port = _said_port(sock, _plain.getsockname(sock)[1])
    portal.soon(engine.dial_parked, parked, sock._config, label, port, source_port, connected, failed)
    raise BlockingIOError(errno.EINPROGRESS, os.strerror(errno.EINPROGRESS))


def _is_settled(sock: NTCPSocket, parked: Parked) -> bool:
    """A further connect() after a non-blocking one. Whether it has just succeeded; raises its error."""
    if parked.pending:
        raise BlockingIOError(errno.EALREADY, os.strerror(errno.EALREADY))
    told, parked.told = parked.told, True
    if parked.error is None:
        return not told and parked.connected
    if not told:
        # The pending error of the kernel's is this one's.
        _plain.getsockopt(sock, _stdlib.SOL_SOCKET, _stdlib.SO_ERROR)
        raise parked.error
    sock._parked = None
    return False


def _said_port(sock: NTCPSocket, kernels: int) -> int:
    """What `getsockname` says, or will say, as our port; `kernels`: the kernel's."""
    return kernels if sock._named is None else sock._named.port or kernels


def _connect_hop(sock: NTCPSocket, dialled: Dialled, source_port: SourcePort) -> None:
    """Connect our own descriptor to the engine, from a source address that it expects."""
    from ntcpsock._hop import loopback
    from ntcpsock._pump import tune

    source = _plain.getsockname(sock)
    if source[1] == 0:
        source_port.bind(sock)
        source = _plain.getsockname(sock)
    host = source[0]
    if host in ("0.0.0.0", "::"):
        host = loopback(sock.family)
    elif host.startswith("::ffff:"):
        raise OSError(errno.EADDRNOTAVAIL, f"{host}: cannot reach a name from this local address")
    tune(sock)
    dialled.announce((host, source[1]))
    _plain.connect(sock, dialled.address)


def check_address(sock: NTCPSocket, label: str, address: tuple[Any, ...], method: str) -> int:
    """The port of `address`; the errors that the system would raise for this socket and address."""
    from ntcpsock._hop import loopback
    from ntcpsock._socket_datagrams import is_datagram

    if sock.fileno() < 0:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    if sock.family not in (_stdlib.AF_INET, _stdlib.AF_INET6):
        _call_plain(sock, method, address)  # no address of this family, as the system will say
    host = loopback(sock.family)
    if sock.type != _stdlib.SOCK_STREAM and not is_datagram(sock):
        raise OSError(errno.EOPNOTSUPP, f"{label}.ntcp: names are reached by SOCK_STREAM and SOCK_DGRAM")
    limit = 4 if sock.family == _stdlib.AF_INET6 else 2
    try:
        port, flow, *_ = (*map(operator.index, address[1:]), 0)
    except TypeError:
        port = flow = -1
    if len(address) > limit or not 0 <= port <= 65535 or flow & _INT > _LARGEST_FLOW:
        # Its wording and types of error are the system's business. It refuses each of these before
        # it looks at the address.
        _call_plain(sock, method, (host, *address[1:]))
    if port == 0 and method in ("connect", "connect_ex"):
        raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    if port == 0 and method == "sendto":
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return port


def _call_plain(sock: NTCPSocket, method: str, address: Any) -> None:
    if method == "sendto":
        _plain.sendto(sock, b"", address)
    else:
        getattr(_plain, method)(sock, address)


def _has_peer(sock: NTCPSocket) -> bool:
    try:
        _plain.getpeername(sock)
    except OSError:
        # A listening socket has no peer and cannot connect either.
        return bool(sock.getsockopt(_stdlib.SOL_SOCKET, _stdlib.SO_ACCEPTCONN))
    return True


def _give_up(dialled: Dialled | _punched.Punched) -> None:
    """In the engine: nobody came for what was dialled."""
    dialled.give_up()
