"""Sockets for other processes: what multiprocessing sends is the kernel's descriptor, and what is known of it.

`ForkingPickler` knows the class `socket.socket`, and no class derived from it. The connection goes on through
the engine that has it, so it lasts as long as that engine's process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ntcpsock import _known, _names
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

    duplicate: Any = reduction.DupFd(sock.fileno())
    return _rebuild, (duplicate, int(sock.family), int(sock.type), sock.proto, _knowledge(sock))


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
