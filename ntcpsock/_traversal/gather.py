"""Warm candidates: ports that are gathered before anybody asks, and kept alive.

A warm TCP port is a port with a listener and a connection to a STUN server, both bound to it; the server's
view of that connection is the port's server-reflexive candidate. Where the machine has IPv6, the same port number
is held there too. A dial uses up a port (the 4-tuple of a closed connection stays blocked for a minute); a
listening node uses one port for all dials that reach it.
"""

from __future__ import annotations

import errno
import socket as stdlib_socket
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from ntcpsock._address import Endpoint
from ntcpsock._traversal.candidate import is_loopback
from ntcpsock._traversal.interfaces import ipv4_addresses, ipv6_addresses, prefer_lasting_source
from ntcpsock._traversal.nat import profile_from_observations
from ntcpsock._traversal.punch.driver import (
    choose_port,
    has_ipv6,
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

# Where one family's servers have answered, the other's get as long again: a network with broken IPv6 (or IPv4) must
# not hold up what works.
SHORTEST_WAIT_FOR_OTHER_FAMILY = 0.05

_MOST_HOST_CANDIDATES = 4
_MOST_IPV6_HOST_CANDIDATES = 2


@dataclass
class WarmPort:
    """A TCP port ready to punch from. Whoever holds it closes it.

    listeners: of IPv4, and of IPv6 where the machine has it. stun_sockets: IPv4's first. profile: of the NAT of IPv4.
    """

    port: int
    listeners: tuple[trio.socket.SocketType, ...]
    candidates: tuple[Candidate, ...] = ()
    profile: NATProfile = field(default_factory=NATProfile)
    stun_sockets: list[trio.socket.SocketType] = field(default_factory=list)
    ipv6_hosts: tuple[str, ...] = ()

    def close(self) -> None:
        for sock in (*self.listeners, *self.stun_sockets):
            sock.close()

    async def refresh(self) -> bool:
        """Ask the STUN server again over the same connection. Whether the port is (still) seen as before, and the
        machine has the same IPv6 addresses."""
        if not self.stun_sockets or self.ipv6_hosts != ipv6_addresses():
            return False
        try:
            with trio.fail_after(STUN_DEADLINE):
                result = await binding_over_tcp(self.stun_sockets[0])
        except (OSError, trio.TooSlowError):
            return False
        return any(candidate.endpoint == result.mapped for candidate in self.candidates)


async def gather_tcp(servers: Sequence[Endpoint]) -> WarmPort:
    """A fresh warm port. Without a STUN server that answers it has host candidates only.

    Two servers (two addresses or ports of one) also tell how mappings vary. Raises OSError when there is no
    free port. Cancelling closes everything.
    """
    port = choose_port()
    hosts = ipv6_addresses() if has_ipv6() else ()
    warm = WarmPort(port, _open_listeners(port, servers, hosts), ipv6_hosts=hosts)
    try:
        seen = await _observe_all(warm, servers)
        routed = [Endpoint(*sock.getsockname()[:2]) for sock in warm.stun_sockets]
        warm.candidates = _tcp_candidates(port, routed, seen, hosts)
        seen_over_ipv4 = [mapped for mapped in seen if not mapped.is_ipv6]
        if seen_over_ipv4:
            warm.profile = profile_from_observations(routed[0], seen_over_ipv4)
    except BaseException:
        warm.close()
        raise
    return warm


def _open_listeners(
    port: int, servers: Sequence[Endpoint], hosts: Sequence[str]
) -> tuple[trio.socket.SocketType, ...]:
    listeners = [open_punch_listener(port)]
    if hosts or (has_ipv6() and any(server.is_ipv6 for server in servers)):
        try:
            listeners.append(open_punch_listener(port, ipv6=True))
        except BaseException:
            listeners[0].close()
            raise
    return tuple(listeners)


async def _observe_all(warm: WarmPort, servers: Sequence[Endpoint]) -> list[Endpoint]:
    """As what two servers of each family see the port, IPv4 first; their sockets stay in `warm`."""
    found: list[tuple[trio.socket.SocketType, Endpoint]] = []
    begin = trio.current_time()
    try:
        async with trio.open_nursery() as nursery:

            async def observe_over(ipv6: bool) -> None:
                family = [server for server in servers if server.is_ipv6 == ipv6][:2]
                async with trio.open_nursery() as observers:
                    for server in family:
                        observers.start_soon(_observe, warm.port, server, found)
                now = trio.current_time()
                if any(mapped.is_ipv6 == ipv6 for _, mapped in found):
                    nursery.cancel_scope.deadline = now + max(now - begin, SHORTEST_WAIT_FOR_OTHER_FAMILY)

            for ipv6 in {server.is_ipv6 for server in servers}:
                nursery.start_soon(observe_over, ipv6)
    finally:
        found.sort(key=lambda observation: observation[1].is_ipv6)
        warm.stun_sockets += [sock for sock, _ in found]
    return [mapped for _, mapped in found]


async def _observe(port: int, server: Endpoint, found: list[tuple[trio.socket.SocketType, Endpoint]]) -> None:
    try:
        sock = open_punch_socket(port, ipv6=server.is_ipv6)
    except OSError:
        if server.is_ipv6:
            return
        raise
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
    found.append((sock, result.mapped))


def _tcp_candidates(
    port: int, routed: Sequence[Endpoint], mapped: Sequence[Endpoint], ipv6_hosts: Sequence[str]
) -> tuple[Candidate, ...]:
    """Host candidates, the routed ones first, then what the servers saw."""
    hosts = [endpoint.host for endpoint in routed if not endpoint.is_ipv6]
    hosts6 = [endpoint.host for endpoint in routed if endpoint.is_ipv6]
    # Over loopback everybody is on this machine; its other addresses would only be slower names for it.
    if not any(is_loopback(host) for host in hosts + hosts6):
        hosts += ipv4_addresses()
        hosts6 += ipv6_hosts
    chosen = [
        *list(dict.fromkeys(hosts))[:_MOST_HOST_CANDIDATES],
        *list(dict.fromkeys(hosts6))[:_MOST_IPV6_HOST_CANDIDATES],
    ]
    host_candidates = [Candidate("host", "tcp", host, port) for host in chosen]
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
    sock = _open_datagram_socket(server)
    warm = WarmDatagramPort(trio.socket.from_stdlib_socket(sock), server)
    try:
        await warm.socket.bind(("::" if server.is_ipv6 else "0.0.0.0", 0))
        if not await warm.refresh():
            raise OSError(errno.ETIMEDOUT, f"no STUN answer from {server} over UDP")
    except BaseException:
        warm.close()
        raise
    return warm


def _open_datagram_socket(server: Endpoint) -> stdlib_socket.socket:
    if not server.is_ipv6:
        return stdlib_socket.socket(stdlib_socket.AF_INET, stdlib_socket.SOCK_DGRAM)
    sock = stdlib_socket.socket(stdlib_socket.AF_INET6, stdlib_socket.SOCK_DGRAM)
    prefer_lasting_source(sock)
    return sock


def _source_address(destination: Endpoint) -> str:
    """The local address from which the kernel would send to `destination`; nothing is sent."""
    with _open_datagram_socket(destination) as probe:
        probe.connect(destination)
        return str(probe.getsockname()[0])
