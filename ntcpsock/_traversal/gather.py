"""Warm candidates: ports that are gathered before anybody asks, and kept alive.

A warm TCP port is a port with a listener and a connection to a STUN server, both bound to it; the server's
view of that connection is the port's server-reflexive candidate. A dial uses up a port (the 4-tuple of a
closed connection stays blocked for a minute); a listening node uses one port for all dials that reach it.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from ntcpsock._address import Endpoint
from ntcpsock._traversal.candidate import is_loopback
from ntcpsock._traversal.nat import profile_from_observations
from ntcpsock._traversal.punch.driver import (
    choose_port,
    local_addresses,
    open_punch_listener,
    open_punch_socket,
)
from ntcpsock._traversal.punch.message import MAX_CANDIDATES, Candidate, NATProfile
from ntcpsock._traversal.stun.driver import binding_over_tcp, binding_over_udp

# Seconds for one STUN server to answer over TCP, the connection included.
STUN_DEADLINE = 3.0

# Seconds between STUN requests that keep a warm port's mapping. RFC 5382 REQ-5 promises 4 minutes for a
# connection in a transitory state and 2 h for an established one; cheap routers keep less.
TCP_REFRESH_INTERVAL = 45.0
UDP_REFRESH_INTERVAL = 20.0

_MOST_HOST_CANDIDATES = 4


@dataclass
class WarmPort:
    """A TCP port ready to punch from. Whoever holds it closes it."""

    port: int
    listener: trio.socket.SocketType
    candidates: tuple[Candidate, ...] = ()
    profile: NATProfile = field(default_factory=NATProfile)
    stun_sockets: list[trio.socket.SocketType] = field(default_factory=list)

    def close(self) -> None:
        self.listener.close()
        for sock in self.stun_sockets:
            sock.close()

    async def refresh(self) -> bool:
        """Ask the STUN server again over the same connection. Whether the port is (still) seen as before."""
        if not self.stun_sockets:
            return False
        try:
            with trio.fail_after(STUN_DEADLINE):
                result = await binding_over_tcp(self.stun_sockets[0])
        except (OSError, trio.TooSlowError):
            return False
        return any(candidate.endpoint == result.mapped for candidate in self.candidates)


async def gather_tcp(servers: Sequence[Endpoint], *, patience: float = STUN_DEADLINE) -> WarmPort:
    """A fresh warm port. Without a STUN server that answers within `patience` it has host candidates only.

    Two servers (two addresses or ports of one) also tell how mappings vary. Raises OSError when there is no
    free port. Cancelling closes everything.
    """
    port = choose_port()
    warm = WarmPort(port, open_punch_listener(port))
    try:
        mapped: list[Endpoint] = []
        with trio.move_on_after(patience):
            async with trio.open_nursery() as nursery:
                for server in servers[:2]:
                    nursery.start_soon(_observe, warm, server, mapped)
        locals_ = [Endpoint(*sock.getsockname()[:2]) for sock in warm.stun_sockets]
        warm.candidates = _tcp_candidates(port, locals_, mapped)
        if locals_:
            warm.profile = profile_from_observations(locals_[0], mapped)
    except BaseException:
        warm.close()
        raise
    return warm


async def _observe(warm: WarmPort, server: Endpoint, mapped: list[Endpoint]) -> None:
    sock = open_punch_socket(warm.port)
    try:
        with trio.fail_after(STUN_DEADLINE):
            await sock.connect(server)
            result = await binding_over_tcp(sock)
    except (OSError, trio.TooSlowError):
        sock.close()
        return
    except BaseException:
        sock.close()
        raise
    warm.stun_sockets.append(sock)
    mapped.append(result.mapped)


def _tcp_candidates(
    port: int, routed: Sequence[Endpoint], mapped: Sequence[Endpoint]
) -> tuple[Candidate, ...]:
    """Host candidates, the routed one first, then what the servers saw."""
    hosts = [endpoint.host for endpoint in routed]
    # Over loopback everybody is on this machine; its other addresses would only be slower names for it.
    if not any(is_loopback(host) for host in hosts):
        hosts += local_addresses()
    host_candidates = [Candidate("host", "tcp", host, port) for host in dict.fromkeys(hosts)]
    host_candidates = host_candidates[:_MOST_HOST_CANDIDATES]
    known = {candidate.endpoint for candidate in host_candidates}
    reflexive = [
        Candidate("srflx", "tcp", *endpoint) for endpoint in dict.fromkeys(mapped) if endpoint not in known
    ]
    return tuple(host_candidates + reflexive)[:MAX_CANDIDATES]


class WarmDatagramPort:
    """A UDP socket with its candidates, refreshed by its owner."""

    def __init__(self, sock: trio.socket.SocketType, server: Endpoint) -> None:
        self.socket = sock
        self._server = server
        self.candidates: tuple[Candidate, ...] = ()

    async def refresh(self) -> bool:
        """Ask the STUN server (again). Whether it answered."""
        try:
            with trio.fail_after(STUN_DEADLINE):
                result = await binding_over_udp(self.socket, self._server)
        except (OSError, trio.TooSlowError):
            return False
        port = int(self.socket.getsockname()[1])
        host = Candidate("host", "udp", _source_address(self._server), port)
        reflexive = Candidate("srflx", "udp", *result.mapped)
        self.candidates = (host,) if host.endpoint == reflexive.endpoint else (host, reflexive)
        return True

    def close(self) -> None:
        self.socket.close()


async def gather_udp(server: Endpoint) -> WarmDatagramPort:
    """A UDP socket whose candidates `server` told. Raises OSError (ETIMEDOUT) without an answer."""
    sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    warm = WarmDatagramPort(sock, server)
    try:
        await sock.bind(("0.0.0.0", 0))
        if not await warm.refresh():
            raise OSError(errno.ETIMEDOUT, f"no STUN answer from {server} over UDP")
    except BaseException:
        warm.close()
        raise
    return warm


def _source_address(destination: Endpoint) -> str:
    """The local address from which the kernel would send to `destination`; nothing is sent."""
    import socket as stdlib_socket

    with stdlib_socket.socket(stdlib_socket.AF_INET, stdlib_socket.SOCK_DGRAM) as probe:
        probe.connect(destination)
        return str(probe.getsockname()[0])
