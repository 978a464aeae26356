"""What a peer's word alone may make us send (pure).

A node may name any address in its card or offer: a victim's, ours, the broker's. The broker tells where it sees
the node; everything else is unproven, and gets so few packets that nobody can be harmed through us.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from ntcpsock._address import Endpoint, is_link_local, is_private_address, site_of
from ntcpsock._traversal.candidate import is_loopback, usable_candidates
from ntcpsock._traversal.punch.message import Candidate, Transport

# Checks to one unproven host, or IPv6 /64, in one dial. A private address is a neighbour of ours or nobody; each
# round has a new port of the peer's, so that one lost SYN does not cost the direct way.
CHECKS_OF_PUBLIC_HOST = 1
CHECKS_OF_PRIVATE_HOST = 3

# Unproven hosts in one dial.
MAX_UNPROVEN_HOSTS = 8

# Endpoints of proven hosts in one dial: three rounds of a few, over both families.
MAX_PROVEN_ENDPOINTS = 24

# All offers of all dialers together: seconds between two checks of one unproven public host, and how many checks
# may come at once and follow in a second. Hosts are remembered for longer than they have to pause.
PUBLIC_HOST_PAUSE = 1.0
CHECKS_AT_ONCE = 64
CHECKS_PER_SECOND = 32.0
_REMEMBERED_HOSTS = 256

# Below it are services of the system's (RFC 6335 section 6); NATs and we ourselves use ports above.
LOWEST_PORT = 1024


class Aimed(Protocol):
    """An attempt over TCP, or a check over UDP: where it goes, and whether only the peer says that it is there."""

    @property
    def remote(self) -> Endpoint: ...
    @property
    def is_check(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Standpoint:
    """Where a node is, to judge what peers name.

    observed: the host as which the broker sees it; services: the hosts of broker and STUN servers; interfaces: its
    own addresses.
    """

    observed: str
    services: frozenset[str] = frozenset()
    interfaces: frozenset[str] = frozenset()

    def proven(self, host: str) -> str:
        """`host`, where the broker sees a peer, if that means the same place to us; else "".

        Loopback is the broker's own machine, a private address a neighbour of the broker's: only who is there
        as well can dial them.
        """
        if not host or (is_loopback(host) and not is_loopback(self.observed)):
            return ""
        return "" if is_private_address(host) and not is_private_address(self.observed) else host

    def also_proven(self, hosts: Iterable[str]) -> tuple[str, ...]:
        """Of further addresses that a peer has proved to the broker, those that mean the same place to us."""
        return tuple(host for host in hosts if self.proven(host))

    def targets(
        self,
        candidates: Iterable[Candidate],
        transport: Transport,
        proven: str,
        also_proven: Collection[str] = (),
    ) -> tuple[Candidate, ...]:
        """Those of a peer's candidates that we are ready to send to. proven: what `proven()` gave for it;
        also_proven: further addresses that it has proved."""
        loopback = is_loopback(self.observed)
        return tuple(
            candidate
            for candidate in usable_candidates(candidates, transport, loopback_allowed=loopback)
            if candidate.host == proven
            or candidate.host in also_proven
            or self._may_be_checked(candidate, proven)
        )

    def _may_be_checked(self, candidate: Candidate, proven: str) -> bool:
        host = candidate.host
        if is_loopback(host):
            return True
        # Services of a machine or of a router; what a cloud tells its machines (169.254.169.254); our own servers.
        if candidate.port < LOWEST_PORT or is_link_local(host) or host in self.services:
            return False
        # Our own address is a peer's too when we share the machine, and are seen alike.
        return host not in self.interfaces or proven == self.observed


class Aim:
    """Counts what one dial sends to whom."""

    def __init__(self) -> None:
        self._checks: Counter[str] = Counter()
        self._proven = 0

    def allows(self, planned: Aimed) -> bool:
        """Whether the attempt may be made; it counts as made then."""
        if not planned.is_check:
            self._proven += 1
            return self._proven <= MAX_PROVEN_ENDPOINTS
        host = planned.remote.host
        site = site_of(host)
        if site not in self._checks and len(self._checks) >= MAX_UNPROVEN_HOSTS:
            return False
        limit = CHECKS_OF_PRIVATE_HOST if is_private_address(host) else CHECKS_OF_PUBLIC_HOST
        if self._checks[site] >= limit:
            return False
        self._checks[site] += 1
        return True


class SharedAim:
    """Bounds the checks that all offers together make a listening node send: dialers are free to come again."""

    def __init__(self) -> None:
        self._left = float(CHECKS_AT_ONCE)
        self._counted = 0.0
        self._last_check: OrderedDict[str, float] = OrderedDict()

    def allows(self, planned: Aimed, now: float) -> bool:
        """Whether the attempt may be made now; it counts as made then."""
        if not planned.is_check:
            return True
        self._left = min(CHECKS_AT_ONCE, self._left + (now - self._counted) * CHECKS_PER_SECOND)
        self._counted = now
        site = site_of(planned.remote.host)
        if self._left < 1 or now - self._last_check.get(site, -math.inf) < PUBLIC_HOST_PAUSE:
            return False
        self._left -= 1
        if not is_private_address(planned.remote.host):
            self._last_check[site] = now
            self._last_check.move_to_end(site)
            if len(self._last_check) > _REMEMBERED_HOSTS:
                self._last_check.popitem(last=False)
        return True
