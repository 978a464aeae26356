"""The warm UDP port: gathered beside a warm TCP port, and kept alive.

Many routers treat UDP otherwise than TCP, and some networks let none of it through: so it has candidates and a profile
of its own, and nobody waits for it when TCP's are known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from ntcpsock._address import Endpoint
from ntcpsock._traversal.candidate import is_loopback
from ntcpsock._traversal.checks.port import UdpPort, open_udp_port
from ntcpsock._traversal.interfaces import ipv4_addresses, ipv6_addresses
from ntcpsock._traversal.nat import profile_from_observations
from ntcpsock._traversal.punch.driver import source_address
from ntcpsock._traversal.punch.message import Candidate, NATProfile

# Seconds between STUN requests that keep the mapping: real NATs forget UDP after 30 s.
UDP_REFRESH_INTERVAL = 20.0

# Seconds for the STUN servers to answer; a lost request is repeated after the first time-out.
UDP_STUN_DEADLINE = 1.5
STUN_RTO = 0.25

_MOST_IPV4_HOSTS = 2
_MOST_IPV6_HOSTS = 2
MAX_UDP_CANDIDATES = 5


@dataclass
class WarmDatagramPort:
    """A UDP port with its candidates. Whoever holds it closes it.

    server: the STUN server that has answered, which keeps the mapping; profile: of the NAT of IPv4, for UDP.
    """

    port: UdpPort
    server: Endpoint | None = None
    hosts: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    profile: NATProfile = field(default_factory=NATProfile)
    #: When it was gathered, or when the NAT was seen to give it another mapping, on trio's clock.
    since: float = math.inf

    async def refresh(self) -> bool:
        """Ask the STUN server again. Whether the candidates are still the same; they are up to date then, too."""
        if self.server is None:
            return True
        before = self.candidates
        seen = await _ask_all(self.port, [self.server], UDP_STUN_DEADLINE)
        self.candidates = _candidates(self.hosts, self.port.number, list(seen.values()))
        if self.candidates != before:
            self.since = trio.current_time()
        return self.candidates == before

    def close(self) -> None:
        """Close the port, or leave it to the paths that still use it."""
        self.port.retire()


async def gather_udp(
    servers: Sequence[Endpoint],
    *,
    patience: float = UDP_STUN_DEADLINE,
    wait_no_longer: trio.Event | None = None,
    number: int = 0,
) -> WarmDatagramPort:
    """A fresh UDP port, as servers see it; without an answer within `patience` it has host candidates only.

    wait_no_longer: set when whoever else gathers is done; then there is as much time as has passed. number: the one
    that it is to have, where that is free. Raises OSError when no port is free. Cancelling closes it.
    """
    port = open_udp_port(number)
    try:
        asked = [server for server in servers if not server.is_ipv6][:2]
        asked += [server for server in servers if server.is_ipv6][:1]
        warm = WarmDatagramPort(port, hosts=_hosts(servers), since=trio.current_time())
        seen = await _ask_all(port, asked, min(patience, UDP_STUN_DEADLINE), wait_no_longer)
        warm.server = next(iter(seen), None)
        warm.candidates = _candidates(warm.hosts, port.number, list(seen.values()))
        over_ipv4 = [mapped for server, mapped in seen.items() if not server.is_ipv6]
        if over_ipv4:
            server = next(server for server in seen if not server.is_ipv6)
            local = Endpoint(source_address(server), port.number)
            warm.profile = profile_from_observations(local, over_ipv4)
    except BaseException:
        port.close()
        raise
    return warm


async def _ask_all(
    port: UdpPort,
    servers: Sequence[Endpoint],
    patience: float,
    wait_no_longer: trio.Event | None = None,
) -> dict[Endpoint, Endpoint]:
    """What the servers see, in their order; those that take more than twice as long as the first are left out."""
    seen: dict[Endpoint, Endpoint] = {}
    begin = trio.current_time()
    async with trio.open_nursery() as reading:
        if not port.is_running:
            reading.start_soon(port.run)
        with trio.move_on_after(patience) as scope:
            async with trio.open_nursery() as nursery:

                def shorten() -> None:
                    now = trio.current_time()
                    scope.deadline = min(scope.deadline, now + max(now - begin, STUN_RTO / 2))

                async def ask(server: Endpoint) -> None:
                    mapped = await port.ask(server, rto=STUN_RTO)
                    if mapped is not None:
                        seen[server] = mapped
                        shorten()

                async def hurry(event: trio.Event) -> None:
                    await event.wait()
                    shorten()

                async with trio.open_nursery() as asking:
                    for server in servers:
                        asking.start_soon(ask, server)
                    if wait_no_longer is not None:
                        nursery.start_soon(hurry, wait_no_longer)
                nursery.cancel_scope.cancel()
        reading.cancel_scope.cancel()
    return {server: seen[server] for server in servers if server in seen}


def _hosts(servers: Sequence[Endpoint]) -> tuple[str, ...]:
    """Our own addresses, the routed ones first; over loopback it alone, as everybody is on this machine then."""
    routed: dict[str, None] = {}
    for server in servers:
        try:
            routed[source_address(server)] = None
        except OSError:
            continue
    if any(is_loopback(host) for host in routed):
        return tuple(routed)
    hosts = dict.fromkeys((*routed, *ipv4_addresses(), *ipv6_addresses()))
    ipv4 = [host for host in hosts if ":" not in host][:_MOST_IPV4_HOSTS]
    return (*ipv4, *[host for host in hosts if ":" in host][:_MOST_IPV6_HOSTS])


def _candidates(hosts: Sequence[str], number: int, seen: Sequence[Endpoint]) -> tuple[Candidate, ...]:
    """The reflexive ones first: they are needed most, and a card may have no room for the last."""
    local = {Endpoint(host, number) for host in hosts}
    reflexive = [
        Candidate("srflx", "udp", *endpoint) for endpoint in dict.fromkeys(seen) if endpoint not in local
    ][:2]
    host = [Candidate("host", "udp", host, number) for host in hosts]
    return tuple(reflexive + host)[:MAX_UDP_CANDIDATES]


def refresh_interval(pace: float) -> float:
    """Seconds between two refreshes; inf for none."""
    return math.inf if math.isinf(pace) else UDP_REFRESH_INTERVAL * pace
