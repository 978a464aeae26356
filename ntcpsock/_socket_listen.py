"""How an NTCPSocket listens under a name: bound to loopback, registered by the engine, which connects to it for each
session that arrives. What anybody else connects there is refused.
"""

from __future__ import annotations

import select
import socket as _stdlib
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ntcpsock import _forwarding, _known, _names, _portal, _publish, _punched, _socket_connect
from ntcpsock._socket_state import Listener, Named

if TYPE_CHECKING:
    from ntcpsock._socket import NTCPSocket

_SHARING = (_stdlib.SO_REUSEADDR, _stdlib.SO_REUSEPORT)
# The class itself, whatever the module calls by this name later.
_plain = _stdlib.socket
_plain_accept: Any = _plain._accept  # type: ignore[attr-defined]  # typeshed leaves it out


def bind(sock: NTCPSocket, label: str, address: tuple[Any, ...]) -> None:
    """Remember name and port; 0: the number that the kernel gives."""
    from ntcpsock._hop import loopback

    port = _socket_connect.check_address(sock, label, address, "bind")
    shares = any(sock.getsockopt(_stdlib.SOL_SOCKET, option) for option in _SHARING)
    _known.check_free(label, port, shares=shares)
    _plain.bind(sock, (loopback(sock.family), 0))
    own = _plain.getsockname(sock)
    sock._named = _known.bind(own, Named(label, port or own[1]))
    sock._named.shares = shares


def listen(sock: NTCPSocket, named: Named, places: int) -> None:
    """Register, and wait for that; `places`: connections that wait for `accept`, at most. The descriptor listens
    already. Raises what `NTCPSocket.listen` says."""
    portal = _portal.get()
    this = weakref.ref(sock)
    engine = portal.engine
    try:
        listening = portal.call(
            engine.listeners.listen,
            sock._config,
            named.label,
            named.port,
            places,
            int(sock.family),
            _plain.getsockname(sock),
            lambda error: _fail(this, error),
            discard=engine.listeners.end_soon,
        )
    except BaseException:
        _plain.shutdown(sock, _stdlib.SHUT_RDWR)  # back to bound: another listen() may follow
        raise
    named.listener = Listener(portal, listening, listening.inquiry)
    sock._hold(named)
    _known.remember(_plain.getsockname(sock), named)


def _fail(this: weakref.ref[NTCPSocket], error: BaseException) -> None:
    """In the engine's thread: the node stopped listening. Wake `accept`, which raises `error`."""
    sock = this()
    if sock is None or sock._named is None or sock._named.listener is None:
        return
    sock._named.listener.failure = _portal.translated(error)
    with suppress(OSError):  # closed at this moment
        _plain.shutdown(sock, _stdlib.SHUT_RDWR)


def accept(sock: NTCPSocket, named: Named, listener: Listener) -> tuple[NTCPSocket, Any]:
    """What the engine brings; where the listener is a published one, also what comes to its ordinary address."""
    timeout = sock.gettimeout()
    deadline = time.monotonic() + timeout if timeout else None
    listener.accepts_here()
    while True:
        try:
            descriptor, address = _plain_accept(sock)
        except OSError:
            if listener.failure is not None:
                raise listener.failure from None
            raise
        claim = None
        if sock.family == _stdlib.AF_INET:
            claim = listener.claim(_known.address_key(address))
        arrival = _publish.arrival(named, address)
        if arrival is not None:
            break
        if named.published:
            return sock._accepted(descriptor), address
        listener.refuse(descriptor)
        if deadline is not None:
            _wait_readable(sock, deadline)
    direct = claim.take() if claim is not None else None
    if direct is not None:
        descriptor = _punched.take_over(sock, descriptor, direct)
    accepted = sock._accepted(descriptor)
    port = arrival.peer.source_port or address[1]
    connection = _known.Connection(
        named.label, named.port, port, arrival.peer, arrival.path, arrival.report, direct is not None
    )
    peer_label = _known.tell(accepted, connection)
    if direct is not None:
        _punched.remember(accepted, connection)
        return accepted, _names.socket_address(peer_label, connection.peer_port, sock.family)
    _known.hold(_known.ends(_plain.getsockname(accepted), address), accepted)
    if _forwarding.wishes(accepted):  # inherited from the listener
        _forwarding.forward(accepted)
    return accepted, _names.socket_address(peer_label, connection.peer_port, sock.family)


def _wait_readable(sock: NTCPSocket, deadline: float) -> None:
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError("timed out")
