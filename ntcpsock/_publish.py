"""What a program listens on anyway, reachable by this node's name too.

Under `install()`, in a process that has a name of its own (NTCP_NAME, `ntcp run --name`, or the configuration),
a listener at all addresses is a listener of the name: the engine brings to it what arrives. Without a name
nothing is published, and what is bound to one address (127.0.0.1 above all) never is.
"""

from __future__ import annotations

import os
import socket as _stdlib
from typing import TYPE_CHECKING, Any

from ntcpsock import _known, _portal
from ntcpsock._socket_state import Listener, Named

if TYPE_CHECKING:
    from ntcpsock._arrivals import Arrival
    from ntcpsock._socket import NTCPSocket

#: Set while the module `socket` is patched.
enabled = False

_plain = _stdlib.socket
# 127.0.0.0/10, which is not the numbers'.
_LOW_LOOPBACK = frozenset(str(number) for number in range(64))
_WILDCARDS = {_stdlib.AF_INET: "0.0.0.0", _stdlib.AF_INET6: "::"}


def own_name() -> str | None:
    """The label of this process. Raises ConfigurationError for settings that are none."""
    portal = _portal.current()
    if portal is not None:
        label: str | None = portal.engine.config.name
        return label
    if not os.environ.get("NTCP_NAME") and not os.environ.get("NTCP_CONFIG"):
        return None
    from ntcpsock._config import Config

    return Config.load().name


def is_candidate(sock: NTCPSocket) -> Any:
    """The address of a listening TCP socket at all addresses, as the kernel says it; else None."""
    wildcard = _WILDCARDS.get(sock.family)
    if wildcard is None or sock.type != _stdlib.SOCK_STREAM:
        return None
    address = _plain.getsockname(sock)
    return address if address[0] == wildcard else None


def publish(sock: NTCPSocket, places: int) -> None:
    """After `listen`: have the engine bring to `sock` what arrives for its port of this node's name."""
    address = is_candidate(sock)
    if address is None or is_engines_own():
        return
    try:
        label = own_name()
        if label is None:
            return
        portal = _portal.get()
        listening = portal.call(
            portal.engine.listeners.publish,
            label,
            address[1],
            places,
            *_target(sock, address),
            discard=_discard,
        )
    except OSError as error:
        # The program's own listener is up, and that is all it asked for.
        import logging

        logging.getLogger("ntcpsock").error("port %s is not published: %s", address[1], error)
        return
    named = Named(label, address[1])
    named.published = True
    named.listener = Listener(portal, listening, listening.inquiry)
    sock._hold(named)
    _known.remember(address, named)


def is_engines_own() -> bool:
    """Whether this is the engine's thread: its sockets are of the patched class, and stand for no program."""
    portal = _portal.current()
    return portal is not None and portal.is_own_thread


def arrival(named: Named, address: Any) -> Arrival | None:
    """What `accept` of a listener under a name has got from `address`; None for what the engine did not
    bring: a stranger, or a published listener's ordinary connection."""
    listener = named.listener
    if listener is None:
        return None
    source = _known.address_key(address)
    # Asking another process costs something, and ordinary connections come from elsewhere.
    if named.published and not listener.is_own and not _may_be_brought(source[0]):
        return None
    return listener.take(source)


def _may_be_brought(host: str) -> bool:
    first, _, rest = host.partition(".")
    return host == "::1" or (first == "127" and rest.partition(".")[0] not in _LOW_LOOPBACK)


def _target(sock: NTCPSocket, address: Any) -> tuple[int, Any]:
    """Family and address by which the engine reaches the listener: IPv4, where numbers are, if it can."""
    if sock.family == _stdlib.AF_INET6 and _plain.getsockopt(sock, _stdlib.IPPROTO_IPV6, _stdlib.IPV6_V6ONLY):
        return _stdlib.AF_INET6, ("::1", address[1])
    return _stdlib.AF_INET, ("127.0.0.1", address[1])


def _discard(listening: Any) -> None:
    listening.publishing.cancel()
    listening.scope.cancel()
