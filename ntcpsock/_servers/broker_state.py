"""What a broker has, and how it answers a node that is in session. Shared by all kinds of requests."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ntcpsock._address import Endpoint
from ntcpsock._identity import Identity
from ntcpsock._servers.cluster.machine import ClusterMachine
from ntcpsock._servers.cluster.nodes import OwnNodes
from ntcpsock._servers.gate import Gate
from ntcpsock._servers.limits import RateLimit
from ntcpsock._servers.names import NameStore
from ntcpsock._servers.node_record import NodeRecord
from ntcpsock._servers.node_sealer import NodeSealer
from ntcpsock._servers.outcomes import Outcomes
from ntcpsock._servers.random_pool import RandomPool
from ntcpsock._servers.registry import Asker, Registry
from ntcpsock._servers.relay_book import RelayBook
from ntcpsock._servers.round_trips import RoundTrips
from ntcpsock._servers.sources import Datagram
from ntcpsock._servers.spoofing import SpoofingDesk, SynAck
from ntcpsock._servers.turn_desk import TurnDesk
from ntcpsock._traversal.broker.fields import (
    RelayPlace,
)
from ntcpsock._traversal.broker.message import (
    FromBroker,
    Reason,
    Refused,
    Unreachable,
    encode_from_broker,
)
from ntcpsock._traversal.relay.message import SESSION_LENGTH as RELAY_SESSION_LENGTH
from ntcpsock._traversal.relay.message import issue_pair


@dataclass(frozen=True, slots=True)
class BrokerLimits:
    """What strangers can make grow or make us do. Rates are per second and source address."""

    nodes: int = 1_000_000
    names: int = 1_000_000
    names_per_key: int = 16
    #: Frames of keys without a session, and requests for ours: a stranger's first costs a Diffie-Hellman, 34 us.
    greeting_rate: float = 200.0
    greeting_burst: float = 1000.0
    #: Diffie-Hellmans for all addresses together, which may be invented: half of a processor at most, and no more at
    #: once than a node may wait for.
    strangers_rate: float = 10_000.0
    strangers_burst: float = 100.0
    #: Lookup, Introduce and Reply.
    request_rate: float = 2000.0
    request_burst: float = 4000.0
    #: Datagrams of one address and port, while more come than can be looked at. A node has some a minute.
    datagram_rate: float = 1000.0
    #: Registrations, which may write to the disk.
    register_rate: float = 50.0
    register_burst: float = 500.0


@dataclass(slots=True)
class BrokerCounters:
    """What the broker has done since it started. refused: by reason, as nodes were told it."""

    sessions: int = 0
    registrations: int = 0
    lookups: int = 0
    introductions: int = 0
    replies: int = 0
    refused: Counter[str] = field(default_factory=Counter)


class BrokerState:
    """See `BrokerCore`."""

    def __init__(
        self,
        identity: Identity,
        names: NameStore,
        *,
        stun: Sequence[Endpoint] = (),
        elsewhere: Sequence[Endpoint] = (),
        relays: Sequence[RelayPlace] = (),
        relay_secret: bytes | None = None,
        limits: BrokerLimits | None = None,
        spoofing: SpoofingDesk | None = None,
        gate: Gate | None = None,
        cluster: ClusterMachine | None = None,
        turn: TurnDesk | None = None,
        random_bytes: Callable[[int], bytes] | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """relays: those that nodes are told; relay_secret: what these check our tickets with. cluster: our part
        in one, whose replica `names` is. `wall_clock` is Unix time, which tickets need because a relay may be
        another machine."""
        self.limits = limits = limits or BrokerLimits()
        random_bytes = random_bytes or RandomPool()
        self.key = identity.public_key
        #: Datagrams that got no answer, by reason.
        self.dropped: Counter[str] = Counter()
        self.counters = BrokerCounters()
        #: Registrations refused because the disk takes no more names.
        self.unwritten = 0
        self.round_trips = RoundTrips()
        self._random_bytes = random_bytes
        self._cookie_secret = random_bytes(32)
        self._stun = tuple(stun)
        self._elsewhere = tuple(elsewhere)
        #: The relays that nodes are told of.
        self.relays = RelayBook(
            relays,
            secret=relay_secret,
            broker_key=self.key,
            edition=int.from_bytes(random_bytes(4), "big") or 1,
        )
        #: How dials have ended, as nodes tell it.
        self.outcomes = Outcomes()
        self._relay_secret = relay_secret
        self._wall_clock = wall_clock
        #: Whether what was received last was of a node with a session.
        self.was_in_session = False
        self._registry = self.registry = Registry(names, max_nodes=limits.nodes)
        self._sealer = self.sealer = NodeSealer(identity, self._registry, random_bytes)
        self._greetings = RateLimit(limits.greeting_rate, limits.greeting_burst)
        self._strangers = RateLimit(limits.strangers_rate, limits.strangers_burst)
        self._requests = RateLimit(limits.request_rate, limits.request_burst)
        self._registrations = RateLimit(limits.register_rate, limits.register_burst)
        #: Sessions and requests whose registration waits for the cluster's store, which answers or is given up.
        self._registering: set[tuple[bytes, int]] = set()
        self._spoofing = spoofing
        self.cluster = cluster
        if cluster is not None:
            cluster.serve(OwnNodes(self._registry, self._to, cluster.broker))
            cluster.names.changed = self._registry.names_changed
        #: Who may what: the operator's policy, bans and quotas.
        self.gate = gate or Gate()
        self._turn = turn
        #: Segments to be sent under another address than ours; whoever sends them empties it.
        self.syn_acks: list[SynAck] = []

        self._set_up()

    def _set_up(self) -> None:
        """What needs all of the above."""

    def _drop(self, reason: str) -> list[Datagram]:
        self.dropped[reason] += 1
        return []

    def _to(self, node: NodeRecord, request: int, body: FromBroker) -> Datagram:
        node.sent += 1
        payload = encode_from_broker(node.session, node.sent, request, body)
        return self._sealer.seal_with(node.shared, node.key, payload), node.source

    def _refusal(self, node: NodeRecord, request: int, body: Refused | Unreachable) -> Datagram:
        self.counters.refused[words(body.reason)] += 1
        return self._to(node, request, body)

    def _asker(self, node: NodeRecord) -> Asker:
        return Asker(node.key, self._registry.names.names_of(node.key))

    def _tickets(self, dialer: bytes, listener: bytes, now: float) -> tuple[bytes, bytes] | None:
        """Nothing is remembered of them, and most are never used."""
        if self._relay_secret is None or not self.relays.told(now)[1]:
            return None
        session = self._random_bytes(RELAY_SESSION_LENGTH)
        return issue_pair(self._relay_secret, session, dialer, listener, self._wall_clock())


def words(reason: Reason) -> str:
    """As it stands in the metrics."""
    return reason.name.lower().replace("_", " ")
