"""Sockets for other processes: what multiprocessing sends is the kernel's descriptor, and what is known of it.

`ForkingPickler` knows the class `socket.socket`, and no class derived from it. The connection goes on through
the engine that has it, so it lasts as long as that engine's process.
"""

from __future__ import annotations

import socket as _stdlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ntcpsock import _known, _names, _publish
from ntcpsock._socket_state import Listener, Named

if TYPE_CHECKING:
    from ntcpsock._inquiry import Inquiry
    from ntcpsock._socket import NTCPSocket


@dataclass(frozen=True, slots=True)
class _Listening:
    """A listening socket's name, and where its new process asks who has arrived."""

    label: str
    port: int | None
    published: bool
    inquiry: Inquiry | None


def reduce_socket(sock: NTCPSocket) -> tuple[Any, ...]:
    """For ForkingPickler: as multiprocessing's own for `socket.socket`."""
    from multiprocessing import reduction

    if _is_for_listeners(sock):
        sock.listen()
    duplicate: Any = reduction.DupFd(sock.fileno())
    return _rebuild, (duplicate, int(sock.family), int(sock.type), sock.proto, _knowledge(sock))


def _is_for_listeners(sock: NTCPSocket) -> bool:
    """Whether the socket is bound where a listener is reached by name, and does not listen yet.

    Servers with workers or a reloader bind in one process and listen in those that they spawn. A name has
    one engine at a time: that of the process that stays. So it listens here, and the others find out who
    has arrived as forked workers do.
    """
    if sock.type != _stdlib.SOCK_STREAM or sock.getsockopt(_stdlib.SOL_SOCKET, _stdlib.SO_ACCEPTCONN):
        return False
    named = sock._named
    if named is not None:
        return named.peer_label is None
    if not _publish.enabled or _publish.own_name() is None:
        return False
    address = _publish.is_candidate(sock)
    return address is not None and address[1] != 0


def _knowledge(sock: NTCPSocket) -> _known.Connection | _Listening | None:
    named = sock._named or sock._published
    if named is None:
        return None
    if named.listener is not None:
        return _Listening(named.label, named.port, named.published, named.listener.inquiry)
    if sock.peer is None or sock.path is None or sock.report is None:
        return None
    return _known.Connection(named.label, named.port, named.peer_port, sock.peer, sock.path, sock.report)


def _rebuild(duplicate: Any, family: int, type: int, proto: int, known: object) -> NTCPSocket:
    from ntcpsock._socket import NTCPSocket

    sock = NTCPSocket(family, type, proto, fileno=duplicate.detach())
    if isinstance(known, _known.Connection):
        # Entered into the table of this process: programs look numbers up that they see.
        _names.number(_known.tell(sock, known))
        _names.number(known.own_label)
    elif isinstance(known, _Listening) and sock._named is None and sock._published is None:
        named = Named(known.label, known.port)
        named.published = known.published
        named.listener = Listener(None, None, known.inquiry)
        sock._hold(named)
    return sock
