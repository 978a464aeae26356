"""Warm candidates: ports that are gathered before anybody asks, and kept alive.

A warm TCP port is a port with a listener and a connection to a STUN server, both bound to it; the server's
view of that connection is the port's server-reflexive candidate. Where the machine has IPv6, the same port number
is held there too. A dial uses up a port (the 4-tuple of a closed connection stays blocked for a minute); a
listening node uses one port for all dials that reach it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from ntcpsock._address import Endpoint
from ntcpsock._traversal.candidate import is_loopback, is_public_host
from ntcpsock._traversal.gather_udp import WarmDatagramPort, gather_udp
from ntcpsock._traversal.interfaces import (
    further_uplinks,
    ipv4_addresses,
    ipv6_addresses,
    source_towards,
)
from ntcpsock._traversal.nat import judge_external_address, profile_from_observations
from ntcpsock._traversal.punch.driver import (
    choose_port,
    has_ipv6,
    open_punch_listener,
    open_punch_socket,
)
from ntcpsock._traversal.punch.message import MAX_CANDIDATES_OF_TRANSPORT, Candidate, NATProfile, Transport
from ntcpsock._traversal.stun.driver import binding_over_tcp

# Seconds for one STUN server to answer over TCP, the connection included.
STUN_DEADLINE = 3.0

# Seconds between STUN requests that keep a warm port's mapping. RFC 5382 REQ-5 promises 4 minutes for a
# connection in a transitory state and 2 h for an established one; cheap routers keep less.
TCP_REFRESH_INTERVAL = 45.0

# Where one family's servers have answered, those of the other, and over other uplinks, get as long again: what is
# broken must not hold up what works.
SHORTEST_WAIT_FOR_OTHER_WAYS = 0.05

_MOST_HOST_CANDIDATES = 4
_MOST_IPV6_HOST_CANDIDATES = 2


@dataclass
class WarmPort:
    """A TCP port ready to punch from. Whoever holds it closes it.

    listeners: of IPv4, and of IPv6 where the machine has it. stun_sockets: IPv4's first. profile: of the NAT of IPv4.
    uplinks: own addresses from which a STUN server was reached another way than the default one. candidates: TCP's.
    datagram: the UDP port beside it, where there is one.
    """

    port: int
    listeners: tuple[trio.socket.SocketType, ...]
    candidates: tuple[Candidate, ...] = ()
    profile: NATProfile = field(default_factory=NATProfile)
    stun_sockets: list[trio.socket.SocketType] = field(default_factory=list)
    ipv6_hosts: tuple[str, ...] = ()
    uplinks: tuple[str, ...] = ()
    datagram: WarmDatagramPort | None = None
    #: When TCP's was gathered, on trio's clock: as old are its mappings, where they do not depend on the other end.
    since: float = math.inf
    #: What the NAT does with UDP, when that port has been taken.
    taken_profile: NATProfile | None = None

    def close(self) -> None:
        for sock in (*self.listeners, *self.stun_sockets):
            sock.close()
        if self.datagram is not None:
            self.datagram.close()

    @property
    def offered(self) -> tuple[Candidate, ...]:
        """The candidates of both transports, for the peer."""
        return self.candidates + (self.datagram.candidates if self.datagram else ())

    def mapped_ports(self, transport: Transport) -> list[int]:
        """Those that a NAT holds for it."""
        return [
            candidate.port
            for candidate in self.offered
            if candidate.type == "srflx" and candidate.transport == transport
        ]

    @property
    def udp_profile(self) -> NATProfile | None:
        """What the NAT does with UDP; None where that is not known to differ from TCP."""
        known = self.taken_profile if self.datagram is None else self.datagram.profile
        return None if known in (None, NATProfile(), self.profile) else known

    @property
    def mappings_since(self) -> dict[int, float]:
        """Since when a NAT has known its ports, by their numbers, where it gives all destinations the same one."""
        since = {} if self.profile.changes is not False else {self.port: self.since}
        if self.datagram is not None and self.datagram.profile.changes is False:
            since[self.datagram.port.number] = self.datagram.since
        return since

    def take_datagram_port(self) -> WarmDatagramPort | None:
        """The UDP port, which is the caller's to close from here on."""
        taken, self.datagram = self.datagram, None
        if taken is not None:
            self.taken_profile = taken.profile
        return taken

    def set_mapped(self, external: Endpoint | None) -> bool:
        """Take where a router maps the port to, None for nowhere. Whether that changes the candidates: an address
        other than the one as which the world sees us is not passed on, since it may be anybody's."""
        others = tuple(candidate for candidate in self.candidates if candidate.type != "mapped")
        seen = [candidate.host for candidate in others if candidate.type == "srflx"]
        if external is not None and judge_external_address(external.host, seen) != "elsewhere":
            others = (*others[: MAX_CANDIDATES_OF_TRANSPORT - 1], Candidate("mapped", "tcp", *external))
        changed, self.candidates = others != self.candidates, others
        return changed

    @property
    def needs_mapping(self) -> bool:
        """Whether a router might stand between us and the Internet."""
        hosts = [candidate for candidate in self.candidates if candidate.type == "host"]
        return self.profile.translated is not False and not any(
            is_loopback(candidate.host) or is_public_host(candidate) for candidate in hosts
        )

    @property
    def is_stale(self) -> bool:
        """Whether this machine would now send from another own address than when the port was gathered."""
        if not self.stun_sockets:
            return False
        try:
            local, remote = self.stun_sockets[0].getsockname()[0], self.stun_sockets[0].getpeername()[0]
        except OSError:
            return False  # the server has gone, which says nothing of us
        return source_towards(str(remote)) != str(local)

    async def refresh(self) -> bool:
        """Ask the STUN server again over the same connection. Whether the port is (still) seen as before, and the
        machine has the same IPv6 addresses."""
        if not self.stun_sockets or self.ipv6_hosts != ipv6_addresses():
            return False
        try:
            with trio.fail_after(STUN_DEADLINE):
                result = await binding_over_tcp(self.stun_sockets[0])
        except (OSError, trio.TooSlowError, trio.ClosedResourceError):
            return False  # closed: nobody wants it any more
        return any(candidate.endpoint == result.mapped for candidate in self.candidates)


async def gather(
    servers: Sequence[Endpoint],
    *,
    patience: float = STUN_DEADLINE,
    udp: bool = True,
    numbers: tuple[int, int] = (0, 0),
) -> WarmPort:
    """A fresh warm port of both transports, as `gather_tcp`. udp: whether UDP is wanted; numbers: of TCP's and UDP's
    port, where they are to have certain ones and these are free.

    UDP's servers have as long as TCP's took, and as long again: where UDP is blocked nobody waits for it.
    """
    warm: WarmPort | None = None
    datagram: WarmDatagramPort | None = None
    try:
        async with trio.open_nursery() as nursery:

            async def gather_datagrams() -> None:
                nonlocal datagram
                # Without a port of UDP, TCP's has to do.
                with suppress(OSError):
                    datagram = await gather_udp(
                        servers, patience=patience, wait_no_longer=tcp_is_done, number=numbers[1]
                    )

            tcp_is_done = trio.Event()
            if udp:
                nursery.start_soon(gather_datagrams)
            warm = await gather_tcp(servers, patience=patience, number=numbers[0])
            tcp_is_done.set()
    except BaseException:
        if warm is not None:
            warm.close()
        if datagram is not None:
            datagram.close()
        raise
    warm.datagram = datagram
    return warm


def open_agreed(number: int) -> WarmPort:
    """The TCP port that was told to a peer before, in whatever network we are now: nobody else is asked, so it has host
    candidates only. Raises OSError where it cannot be had."""
    hosts = ipv6_addresses() if has_ipv6() else ()
    warm = WarmPort(number, _open_listeners(number, (), hosts), ipv6_hosts=hosts)
    warm.candidates = _tcp_candidates(number, (), (), hosts)
    return warm


async def gather_tcp(
    servers: Sequence[Endpoint], *, patience: float = STUN_DEADLINE, number: int = 0
) -> WarmPort:
    """A fresh warm port. Without a STUN server that answers within `patience` it has host candidates only.

    Two servers (two addresses or ports of one) also tell how mappings vary. Raises OSError when there is no
    free port. Cancelling closes everything.
    """
    port = choose_port(number)
    hosts = ipv6_addresses() if has_ipv6() else ()
    warm = WarmPort(port, _open_listeners(port, servers, hosts), ipv6_hosts=hosts, since=trio.current_time())
    try:
        seen = await _observe_all(port, servers, patience)
        warm.stun_sockets += [observation.socket for observation in seen]
        default = [observation for observation in seen if not observation.source]
        elsewhere = [
            observation
            for observation in seen
            if observation.source and observation.mapped.host not in {entry.mapped.host for entry in default}
        ]
        warm.uplinks = tuple(observation.source for observation in elsewhere)
        warm.candidates = _tcp_candidates(port, default, elsewhere, hosts)
        over_ipv4 = [observation for observation in default if not observation.mapped.is_ipv6]
        if over_ipv4:
            warm.profile = profile_from_observations(
                over_ipv4[0].local, [observation.mapped for observation in over_ipv4]
            )
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


@dataclass(frozen=True)
class _Observation:
    """What a server saw; source: the own address that was chosen for it, "" for the machine's choice."""

    socket: trio.socket.SocketType
    mapped: Endpoint
    source: str = ""

    @property
    def local(self) -> Endpoint:
        return Endpoint(*self.socket.getsockname()[:2])


async def _observe_all(port: int, servers: Sequence[Endpoint], patience: float) -> list[_Observation]:
    """As what two servers of each family see the port, IPv4 first, and one server over each further uplink.

    patience: seconds after which those that have not answered are left out. Cancelling closes all their sockets.
    """
    found: list[_Observation] = []
    begin = trio.current_time()
    try:
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = begin + patience

            async def observe_over(ipv6: bool) -> None:
                family = [server for server in servers if server.is_ipv6 == ipv6][:2]
                async with trio.open_nursery() as observers:
                    for server in family:
                        observers.start_soon(_observe, port, server, "", found)
                now = trio.current_time()
                if any(observation.mapped.is_ipv6 == ipv6 for observation in found):
                    wait = max(now - begin, SHORTEST_WAIT_FOR_OTHER_WAYS)
                    nursery.cancel_scope.deadline = min(begin + patience, now + wait)

            for ipv6 in {server.is_ipv6 for server in servers}:
                nursery.start_soon(observe_over, ipv6)
            for source in further_uplinks() if servers and not is_loopback(servers[0].host) else ():
                server = next((server for server in servers if server.is_ipv6 == (":" in source)), None)
                if server is not None:
                    nursery.start_soon(_observe, port, server, source, found)
    except BaseException:
        for observation in found:
            observation.socket.close()
        raise
    return sorted(found, key=lambda observation: (bool(observation.source), observation.mapped.is_ipv6))


async def _observe(port: int, server: Endpoint, source: str, found: list[_Observation]) -> None:
    try:
        sock = open_punch_socket(port, ipv6=server.is_ipv6, source=source)
    except OSError:
        if server.is_ipv6 or source:
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
    found.append(_Observation(sock, result.mapped, source))


def _tcp_candidates(
    port: int,
    default: Sequence[_Observation],
    elsewhere: Sequence[_Observation],
    ipv6_hosts: Sequence[str],
) -> tuple[Candidate, ...]:
    """Host candidates, the routed ones first, then what the servers saw."""
    routed = [observation.local for observation in default]
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
    mapped = dict.fromkeys(observation.mapped for observation in (*default, *elsewhere))
    reflexive = [Candidate("srflx", "tcp", *endpoint) for endpoint in mapped if endpoint not in known]
    return tuple(host_candidates + reflexive)[:MAX_CANDIDATES_OF_TRANSPORT]
