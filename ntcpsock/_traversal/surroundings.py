"""Where a node is, and what it has learned there: peers' candidates are judged by it, and plans ordered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence

import trio

from ntcpsock._address import Endpoint
from ntcpsock._experience import Experience, network_id
from ntcpsock._path_ages import PathAges, PathTransport
from ntcpsock._traversal.aim import Standpoint
from ntcpsock._traversal.broker.driver import BrokerSession
from ntcpsock._traversal.interfaces import ipv4_addresses, ipv6_addresses

# Seconds for which what the system says of our addresses and our gateway is taken to hold.
LOOK_AROUND_INTERVAL = 1.0

_TRANSPORTS: tuple[PathTransport, ...] = ("udp", "tcp")

# Nodes whose last dials failed; the oldest is forgotten first.
MAX_FAILING = 256


class Surroundings:
    """One node's. `save` writes down what was learned."""

    def __init__(
        self,
        session: BrokerSession,
        servers: Sequence[Endpoint],
        experience: Experience,
        path_ages: PathAges | None = None,
    ) -> None:
        self._session = session
        self._servers = servers
        self._experience = experience
        self._path_ages = path_ages or PathAges(None)
        self._failures: OrderedDict[bytes, int] = OrderedDict()
        self._seen: tuple[Standpoint, str] | None = None
        self._looked = 0.0

    def look_again(self) -> None:
        """What is known of the network may not hold any more."""
        self._seen = None

    def moved(self) -> None:
        """This machine is in another network, which is why paths die now."""
        self.disturbed()
        self._seen = None

    def disturbed(self) -> None:
        """Paths that die now do so for a reason that is known."""
        self._path_ages.network_changed()

    def path_died(self, transport: PathTransport, key: bytes, age: float) -> None:
        """A path to a node that was in use has fallen silent for no reason that is known. age: seconds from its
        first packet until the peer was heard of for the last time."""
        self._path_ages.note_death(self._look_around()[1], transport, key, age)

    def path_survived(self, transport: PathTransport, key: bytes, age: float) -> None:
        """A path to a node is `age` seconds old and alive. To be told at its orderly end, and now and then."""
        self._path_ages.note_survival(self._look_around()[1], transport, key, age)

    def expected_lifetime(self, transport: PathTransport, key: bytes) -> float | None:
        """Seconds after which a path to a node must be expected to be dropped, though it is used; None for no such
        limit that is known. A stream has another path by `MOVE_AT` of it, to lose nothing."""
        if not self._path_ages.knows_deaths:
            return None
        return self._path_ages.expected_lifetime(self._look_around()[1], transport, key)

    @property
    def mapping_lifetime(self) -> float | None:
        """The least of that which holds here for paths to anybody."""
        found = [self.expected_lifetime(transport, b"") for transport in _TRANSPORTS]
        return min((lifetime for lifetime in found if lifetime is not None), default=None)

    def set_servers(self, servers: Sequence[Endpoint]) -> None:
        """Other STUN servers."""
        self._servers = servers
        self._seen = None

    @property
    def standpoint(self) -> Standpoint:
        """What peers' candidates are judged by."""
        return self._look_around()[0]

    @property
    def late_techniques(self) -> Collection[str]:
        """What has never worked on this network."""
        return self._experience.late(self._look_around()[1])

    def earlier_failures(self, key: bytes) -> int:
        """How many dials of a node have failed since one succeeded."""
        return self._failures.get(key, 0)

    def dial_ended(self, key: bytes, worked: str | None, failed: Collection[str]) -> None:
        """Remember how a dial went: the direct technique that connected, or None, and those that failed."""
        _, network = self._look_around()
        if worked is not None:
            self._failures.pop(key, None)
            self._experience.note(network, worked, key, True)
        else:
            self._failures[key] = self._failures.pop(key, 0) + 1
            if len(self._failures) > MAX_FAILING:
                self._failures.popitem(last=False)
        for technique in failed:
            self._experience.note(network, technique, key, False)
        if worked is None:
            self._experience.save()

    def save(self) -> None:
        """Keep what was learned for the next process."""
        self._experience.save()
        self._path_ages.save()

    def _look_around(self) -> tuple[Standpoint, str]:
        now = trio.current_time()
        if self._seen is None or now > self._looked + LOOK_AROUND_INTERVAL:
            self._looked = now
            observed = self._session.welcome.observed.host
            servers = (*self._servers, *self._session.relays)
            services = {self._session.broker_host, *(server.host for server in servers)}
            interfaces = frozenset((*ipv4_addresses(), *ipv6_addresses()))
            standpoint = Standpoint(observed, frozenset(services), interfaces)
            self._seen = standpoint, network_id(observed)
        return self._seen
