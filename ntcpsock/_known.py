"""What is known of the kernel sockets that this process has by name, whatever object holds them.

A descriptor may change hands: `ssl` makes its socket from that of another, `socket(fileno=s.detach())` is a
common idiom, `fromfd` copies. The addresses of the loopback connection stay the same, and by these the new
object finds its peer; by its own address a listener finds its name.
"""

from __future__ import annotations

import errno
import os
import socket as _stdlib
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ntcpsock._socket_state import Named

if TYPE_CHECKING:
    from ntcpsock._arrivals import Arrival
    from ntcpsock._pump import Stream
    from ntcpsock._report import PathInfo, PeerInfo, Report
    from ntcpsock._socket import NTCPSocket

    _Origin: TypeAlias = Stream | Arrival

Address = tuple[str, int]
Ends = tuple[Address, Address]

_V4_MAPPED = "::ffff:"
_FAMILIES = (_stdlib.AF_INET, _stdlib.AF_INET6)
# The class itself, whatever the module calls by this name later.
_plain = _stdlib.socket


# No dataclass: importing that module would cost every patched program 7 ms.
class Connection(NamedTuple):
    """own_port: None where it is the kernel's (the end that dialled); punched: whether the socket is the
    connection to the peer itself, and no hop to the engine."""

    own_label: str
    own_port: int | None
    peer_port: int
    peer: PeerInfo
    path: PathInfo
    report: Report
    punched: bool = False


# Their objects know them by heart; the table is for those that are made of a descriptor later.
MOST_PUNCHED = 4096
_punched: deque[Ends] = deque()

#: (address of the application's end, address of the engine's), as the kernel says them.
connections: dict[Ends, Connection] = {}
#: The socket objects of this process that hold a connection, for as long as the engine carries it.
holders: dict[Ends, list[weakref.ref[NTCPSocket]]] = {}
#: Listening sockets that names or the network lead to, by their own address.
listening: weakref.WeakValueDictionary[Address, Named] = weakref.WeakValueDictionary()
#: Sockets bound to a name, each by its own address and by label and port (no label is an address).
bound: weakref.WeakValueDictionary[Address, Named] = weakref.WeakValueDictionary()


def address_key(address: Any) -> Address:
    """Host and port; an IPv4 address is the same to both families."""
    return address[0].removeprefix(_V4_MAPPED), address[1]


def ends(own: Any, engines: Any) -> Ends:
    """The two addresses of a loopback connection: the application's end, and the engine's."""
    return address_key(own), address_key(engines)


def enter(ends: Ends | None, origin: _Origin, own_label: str, own_port: int | None) -> None:
    """Before the application has the connection. The engine says when it is over, by `leave`."""
    if ends is not None:
        port = origin.peer.port if own_port is None else origin.peer.source_port or ends[1][1]
        if own_port is None and (before := _bound(ends[0])) is not None:
            own_port = before.port
        connections[ends] = Connection(own_label, own_port, port, origin.peer, origin.path, origin.report)


def leave(ends: Ends | None) -> None:
    """In the engine: the connection is over."""
    if ends is not None:
        connections.pop(ends, None)
        holders.pop(ends, None)


def hold(ends: Ends, sock: NTCPSocket) -> None:
    """`sock` has the connection."""
    holders.setdefault(ends, []).append(weakref.ref(sock))
    if ends not in connections:  # the engine may have ended it at this moment
        holders.pop(ends, None)


def holding(ends: Ends) -> list[NTCPSocket]:
    """The living socket objects of a connection."""
    found = [ref() for ref in holders.get(ends, ())]
    return [sock for sock in found if sock is not None]


def enter_punched(ends: Ends, connection: Connection) -> None:
    """As `enter`, for a connection that the engine has nothing to do with any more: nobody says when it is over,
    so only so many are remembered."""
    connections[ends] = connection
    _punched.append(ends)
    while len(_punched) > MOST_PUNCHED:
        leave(_punched.popleft())


def tell(sock: NTCPSocket, connection: Connection) -> str:
    """Give a socket its names, peer, path and report. Returns the peer's label."""
    named = Named(connection.own_label, connection.own_port)
    label = named.peer_label = connection.peer.name or connection.peer.node_id
    named.peer_port = connection.peer_port
    sock._named = named
    sock.peer, sock.path = connection.peer, connection.path
    sock.report = connection.report
    return label


def check_free(label: str, port: int, *, shares: bool) -> None:
    """Before a socket is bound to name and port. Raises OSError (EADDRINUSE) as the system does for numbers.

    shares: whether the socket is ready to share its address (SO_REUSEADDR, SO_REUSEPORT).
    """
    before = _bound((label, port))
    if before is not None and not (shares and before.shares):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def bind(address: Any, named: Named) -> Named:
    """A socket at `address` was bound to a name."""
    assert named.port is not None
    named.address = address_key(address)
    bound[named.address] = bound[named.label, named.port] = named
    return named


def _bound(key: Address) -> Named | None:
    """What is bound there, if its descriptor is still open somewhere: that is the kernel's knowledge alone."""
    named = bound.get(key)
    if named is None:
        return None
    assert named.address is not None
    family = _stdlib.AF_INET6 if ":" in named.address[0] else _stdlib.AF_INET
    with _plain(family, _stdlib.SOCK_STREAM) as probe:
        # Closed connections that linger (TIME-WAIT) are no reason.
        probe.setsockopt(_stdlib.SOL_SOCKET, _stdlib.SO_REUSEADDR, 1)
        try:
            probe.bind(named.address)
        except OSError:
            return named
    return None


def remember(address: Any, named: Named) -> None:
    """A socket listens at `address`. It is remembered as long as the engine brings connections to it."""
    assert named.listener is not None
    if named.listener.listening is not None:
        named.listener.listening.named = named
    listening[address_key(address)] = named


def adopt(sock: NTCPSocket) -> None:
    """A socket object was made for an existing descriptor: what is known of it is known to the object."""
    if sock.family not in _FAMILIES or sock.type != _stdlib.SOCK_STREAM:
        return
    try:
        own = address_key(_plain.getsockname(sock))
    except OSError:
        return
    try:
        other = address_key(_plain.getpeername(sock))
    except OSError:
        named = listening.get(own)
        if named is not None:
            sock._hold(named)
        else:
            sock._named = _bound(own)
        return
    connection = connections.get((own, other))
    if connection is not None:
        tell(sock, connection)
        hold((own, other), sock)
