"""The broker without I/O: a datagram, its source and `now` in; datagrams and their destinations out.

What protects it, in the order in which a datagram meets it: a rate for each source that has no session;
the box, which proves the sender's key; the cookie, which proves the source address; the session, its
address and its counter window, which refuse whatever was recorded and sent again. An address that has
proved nothing never gets more bytes than came from it.
"""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._identity import Identity
from ntcpsock._servers.hot_path import HotPath
from ntcpsock._servers.limits import RateLimit
from ntcpsock._servers.names import Claim, NameStore
from ntcpsock._servers.node_record import NodeRecord
from ntcpsock._servers.node_sealer import NodeSealer
from ntcpsock._servers.random_pool import RandomPool
from ntcpsock._servers.registry import Asker, Registry
from ntcpsock._servers.round_trips import RoundTrips
from ntcpsock._servers.sources import Datagram, Source, endpoint_of, pack_source
from ntcpsock._servers.spoofing import SpoofingDesk, SynAck
from ntcpsock._servers.turn_desk import TurnDesk
from ntcpsock._traversal.broker.frame import (
    KEY_LENGTH,
    KEY_REQUEST,
    decode_key_request_untrusted,
    encode_key_reply,
)
from ntcpsock._traversal.broker.message import (
    COOKIE_LENGTH,
    MAX_DATAGRAM,
    MIN_TTL,
    NO_SESSION,
    SESSION_LENGTH,
    AskTurn,
    Bye,
    Challenge,
    ClientEnvelope,
    Deliver,
    Found,
    FromBroker,
    Hello,
    Introduce,
    Introduced,
    KeepAlive,
    KeepAliveAck,
    Lookup,
    Prove,
    Proved,
    Reason,
    Refused,
    Register,
    Registered,
    RelayPlace,
    Reply,
    Spoof,
    Spoofed,
    SpoofOutcome,
    TurnPlaces,
    Unreachable,
    Welcome,
    decode_from_node,
    encode_from_broker,
)
from ntcpsock._traversal.relay.message import SESSION_LENGTH as RELAY_SESSION_LENGTH
from ntcpsock._traversal.relay.message import issue_pair

#: A cookie is good in its own slot of time and in the next one: 30 to 60 seconds.
_COOKIE_SLOT = MIN_TTL // 2
# Records looked at in a pause: some 20 ms.
_MOST_SWEPT = 20_000


@dataclass(frozen=True, slots=True)
class BrokerLimits:
    """What strangers can make grow or make us do. Rates are per second and source address."""

    nodes: int = 1_000_000
    names: int = 1_000_000
    names_per_key: int = 16
    #: Datagrams from addresses without a session: each may cost a Diffie-Hellman, 34 us.
    greeting_rate: float = 200.0
    greeting_burst: float = 1000.0
    #: The same of all addresses together, which may be invented: half of a processor at most.
    strangers_rate: float = 10_000.0
    strangers_burst: float = 1000.0
    #: Lookup, Introduce and Reply.
    request_rate: float = 2000.0
    request_burst: float = 4000.0
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


class BrokerCore:
    """One broker's state and answers."""

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
        turn: TurnDesk | None = None,
        random_bytes: Callable[[int], bytes] | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """relays: those that nodes are told; relay_secret: what these check our tickets with. `wall_clock` is Unix
        time, which tickets need because a relay may be another machine."""
        limits = limits or BrokerLimits()
        random_bytes = random_bytes or RandomPool()
        self.key = identity.public_key
        #: Datagrams that got no answer, by reason.
        self.dropped: Counter[str] = Counter()
        self.counters = BrokerCounters()
        self.round_trips = RoundTrips()
        self._random_bytes = random_bytes
        self._cookie_secret = random_bytes(32)
        self._stun = tuple(stun)
        self._elsewhere = tuple(elsewhere)
        self._relays = tuple(relays)
        self._relay_secret = relay_secret
        self._wall_clock = wall_clock
        #: Whether what was received last was of a node with a session.
        self.was_in_session = False
        self._registry = Registry(names, max_nodes=limits.nodes)
        self._sealer = NodeSealer(identity, self._registry, random_bytes)
        self._greetings = RateLimit(limits.greeting_rate, limits.greeting_burst)
        self._strangers = RateLimit(limits.strangers_rate, limits.strangers_burst)
        self._requests = RateLimit(limits.request_rate, limits.request_burst)
        self._registrations = RateLimit(limits.register_rate, limits.register_burst)
        self._spoofing = spoofing
        self._turn = turn
        #: Segments to be sent under another address than ours; whoever sends them empties it.
        self.syn_acks: list[SynAck] = []
        self._handlers: dict[type, Callable[[NodeRecord, ClientEnvelope, float], list[Datagram]]] = {
            Register: self._register,
            Lookup: self._lookup,
            Introduce: self._introduce,
            Reply: self._reply,
            KeepAlive: self._keep_alive,
            Spoof: self._spoof,
            AskTurn: self._ask_turn,
            Bye: self._bye,
        }
        self._hot_path = HotPath(
            self._registry,
            self._sealer,
            self._requests,
            self.counters,
            self._tickets,
            self._greetings,
            self._strangers,
            self.dropped,
        )

    def __len__(self) -> int:
        """How many instances are connected."""
        return len(self._registry)

    @property
    def name_count(self) -> int:
        """How many names belong to a key."""
        return self._registry.names.count

    def expire(self, now: float) -> None:
        """Forget the silent; to be called now and then where nothing arrives."""
        self._registry.expire(now, _MOST_SWEPT)

    def answer_known(self, datagram: bytes, origin: bytes, now: float) -> list[tuple[bytes, bytes]] | None:
        """What `receive` answers to the frequent, with packed sources; None: give the datagram to `receive`."""
        return self._hot_path.answer(datagram, origin, now)

    def receive(self, datagram: bytes, source: Source, now: float) -> list[Datagram]:
        """Answer a datagram. Whatever is wrong with it is counted, never raised."""
        self._registry.expire(now)
        self.was_in_session = False
        try:
            if datagram[:1] == bytes((KEY_REQUEST,)):
                return self._key_request(datagram, source, now)
            return self._sealed(datagram, source, now)
        except BadMessage as error:
            # The first argument is one of few texts; what follows it may be a stranger's.
            return self._drop(error.args[0])
        except sqlite3.Error:
            # Disk full, file gone: names cannot be known now. The client asks again.
            return self._drop("name store failed")

    def _drop(self, reason: str) -> list[Datagram]:
        self.dropped[reason] += 1
        return []

    # Before a session.

    def _key_request(self, datagram: bytes, source: Source, now: float) -> list[Datagram]:
        nonce = decode_key_request_untrusted(datagram)
        if not self._greetings.take(source.host, now):
            return self._drop("too many greetings")
        return [(encode_key_reply(nonce, self.key), source)]

    def _sealed(self, datagram: bytes, source: Source, now: float) -> list[Datagram]:
        if len(datagram) > MAX_DATAGRAM:
            return self._drop("too long")
        claimed = datagram[1 : 1 + KEY_LENGTH]
        if not self._sealer.knows(claimed):
            if not self._greetings.take(source.host, now):
                return self._drop("too many greetings")
            if not self._strangers.take("", now):
                return self._drop("too many strangers")
        key, payload = self._sealer.open_untrusted(datagram)
        envelope = decode_from_node(payload)
        if isinstance(envelope.body, Hello):
            return self._hello(datagram, key, envelope, envelope.body, source, now)
        node = self._registry.by_session(envelope.session, now)
        if isinstance(envelope.body, Prove) and node is not None and node.key == key:
            return self._prove(datagram, node, envelope, envelope.body, source, now)
        if node is None or node.key != key or node.packed_source != pack_source(source):
            # After our restart, or after its NAT gave it another address, a node learns it here.
            return self._challenge(datagram, key, envelope.request, source, now)
        if not node.accept(envelope.counter):
            return self._drop("replay")
        self._registry.touch(node, now)
        self.was_in_session = True
        return self._handlers[type(envelope.body)](node, envelope, now)

    def _hello(
        self,
        datagram: bytes,
        key: bytes,
        envelope: ClientEnvelope,
        hello: Hello,
        source: Source,
        now: float,
    ) -> list[Datagram]:
        if not self._is_fresh(hello.cookie, key, source, now):
            return self._challenge(datagram, key, envelope.request, source, now)
        self.round_trips.answered(source, now)
        node = self._registry.instance(key, hello.instance, now)
        if node is None:
            self.counters.sessions += 1
            session = self._random_bytes(SESSION_LENGTH)
            shared = self._sealer.shared_key(key)
            node = self._registry.add(key, shared, hello.instance, session, source, now)
            if node is None:
                return self._drop("full")
        if not node.accept(envelope.counter):
            return self._drop("replay")
        # The session stays the same where one is open: a Welcome may have been lost, or the address
        # may have changed, and neither is a reason to forget what is registered.
        node.source = source
        node.hidden = hello.hidden
        self._registry.touch(node, now)
        self.was_in_session = True
        observed = endpoint_of(source)
        elsewhere = tuple(place for place in self._elsewhere if place.is_ipv6 != observed.is_ipv6)
        spoofs = self._spoofing is not None
        welcome = Welcome(node.session, observed, self._stun, elsewhere, spoofs, self._relays)
        return [self._to(node, envelope.request, welcome)]

    def _prove(
        self,
        datagram: bytes,
        node: NodeRecord,
        envelope: ClientEnvelope,
        prove: Prove,
        source: Source,
        now: float,
    ) -> list[Datagram]:
        if not self._is_fresh(prove.cookie, node.key, source, now):
            return self._challenge(datagram, node.key, envelope.request, source, now)
        if not node.accept(envelope.counter):
            return self._drop("replay")
        node.prove(source.host, now)
        frame, _ = self._to(node, envelope.request, Proved())
        return [(frame, source)]

    def _challenge(
        self, datagram: bytes, key: bytes, request: int, source: Source, now: float
    ) -> list[Datagram]:
        cookie = self._cookie(int(now // _COOKIE_SLOT), key, source)
        # No counter: there is no state to count in. The echoed request number tells a replay.
        frame = self._sealer.seal(key, encode_from_broker(NO_SESSION, 0, request, Challenge(cookie)))
        if len(frame) > len(datagram):
            return self._drop("answer larger than question")
        self.round_trips.challenged(source, now)
        return [(frame, source)]

    def _cookie(self, slot: int, key: bytes, source: Source) -> bytes:
        """Proof that its holder receives at `source`, which costs us no memory."""
        text = f"{slot} {source.port} {source.host}".encode()
        return hashlib.blake2b(text + key, key=self._cookie_secret, digest_size=COOKIE_LENGTH).digest()

    def _is_fresh(self, cookie: bytes, key: bytes, source: Source, now: float) -> bool:
        slot = int(now // _COOKIE_SLOT)
        return any(
            hmac.compare_digest(cookie, self._cookie(number, key, source)) for number in (slot, slot - 1)
        )

    # In a session.

    def _to(self, node: NodeRecord, request: int, body: FromBroker) -> Datagram:
        node.sent += 1
        payload = encode_from_broker(node.session, node.sent, request, body)
        return self._sealer.seal_with(node.shared, node.key, payload), node.source

    def _refusal(self, node: NodeRecord, request: int, body: Refused | Unreachable) -> Datagram:
        self.counters.refused[body.reason.name.lower().replace("_", " ")] += 1
        return self._to(node, request, body)

    def _asker(self, node: NodeRecord) -> Asker:
        return Asker(node.key, self._registry.names.names_of(node.key))

    def _register(self, node: NodeRecord, envelope: ClientEnvelope, now: float) -> list[Datagram]:
        assert isinstance(envelope.body, Register)
        registration = envelope.body
        if envelope.counter < node.registration:
            # Overtaken on the way by a newer one, or by Bye.
            return self._drop("old registration")
        if not self._registrations.take(node.host, now):
            return [self._refusal(node, envelope.request, Refused(Reason.BUSY))]
        outcome, name = self._registry.names.claim(registration.names, node.key, registration.allow)
        if outcome != "kept":
            return [self._refusal(node, envelope.request, Refused(_REFUSALS[outcome], name))]
        self.counters.registrations += 1
        node.register(envelope.counter, registration)
        self._registry.names_changed(node.key)
        self._registry.touch(node, now)
        return [self._to(node, envelope.request, Registered())]

    def _lookup(self, node: NodeRecord, envelope: ClientEnvelope, now: float) -> list[Datagram]:
        assert isinstance(envelope.body, Lookup)
        if not self._requests.take(node.host, now):
            return self._drop("too many requests")
        self.counters.lookups += 1
        record = self._registry.visible_name(envelope.body.name, self._asker(node))
        if record is None:
            return [self._refusal(node, envelope.request, Unreachable(Reason.NOT_FOUND))]
        return [self._to(node, envelope.request, Found(record.key))]

    def _ask_turn(self, node: NodeRecord, envelope: ClientEnvelope, now: float) -> list[Datagram]:
        if not self._requests.take(node.host, now):
            return self._drop("too many requests")
        places = TurnPlaces() if self._turn is None else self._turn.places(node.key, self._wall_clock())
        return [self._to(node, envelope.request, places)]

    def _introduce(self, node: NodeRecord, envelope: ClientEnvelope, now: float) -> list[Datagram]:
        assert isinstance(envelope.body, Introduce)
        offer = envelope.body
        if not self._requests.take(node.host, now):
            return self._drop("too many requests")
        asker = self._asker(node)
        if offer.name is not None:
            record = self._registry.visible_name(offer.name, asker)
            if record is None or record.key != offer.to:
                return [self._refusal(node, envelope.request, Unreachable(Reason.NOT_FOUND))]
        if offer.instance is not None:
            target = self._registry.instance(offer.to, offer.instance, now)
        else:
            target = self._registry.route(offer.to, offer.port, asker, now)
        if target is None:
            return [self._refusal(node, envelope.request, Unreachable(Reason.OFFLINE))]
        self.counters.introductions += 1
        # Both in the same instant: neither side waits for the other. An Introduce that is repeated is
        # delivered again, since nobody knows which of the two datagrams was lost.
        name = asker.name_for(target.allow)
        if target.allow is None:
            node.show(name)
        delivery = Deliver(node.key, node.instance, offer.sealed, name, *node.whereabouts(now))
        introduction = Introduced(
            target.key,
            target.instance,
            target.card,
            *target.whereabouts(now),
            self._tickets(node.key, target.key),
        )
        return [self._to(target, 0, delivery), self._to(node, envelope.request, introduction)]

    def _tickets(self, dialer: bytes, listener: bytes) -> tuple[bytes, bytes] | None:
        """Nothing is remembered of them, and most are never used."""
        if not self._relays or self._relay_secret is None:
            return None
        session = self._random_bytes(RELAY_SESSION_LENGTH)
        return issue_pair(self._relay_secret, session, dialer, listener, self._wall_clock())

    def _reply(self, node: NodeRecord, envelope: ClientEnvelope, now: float) -> list[Datagram]:
        assert isinstance(envelope.body, Reply)
        reply = envelope.body
        if not self._requests.take(node.host, now):
            return self._drop("too many requests")
        target = self._registry.instance(reply.to, reply.instance, now)
        if target is None:
            return self._drop("reply to nobody")
        self.counters.replies += 1
        name = node.names[0] if node.names else None
        delivery = Deliver(node.key, node.instance, reply.sealed, name, *node.whereabouts(now))
        return [self._to(target, 0, delivery)]

    def _spoof(self, node: NodeRecord, envelope: ClientEnvelope, now: float) -> list[Datagram]:
        assert isinstance(envelope.body, Spoof)
        if not self._requests.take(node.host, now):
            return self._drop("too many requests")
        outcome = SpoofOutcome.OFF
        if self._spoofing is not None:
            outcome, segments = self._spoofing.ask(node.key, node.host, envelope.body, now)
            self.syn_acks += segments
        return [self._to(node, envelope.request, Spoofed(outcome))]

    def _keep_alive(self, node: NodeRecord, envelope: ClientEnvelope, now: float) -> list[Datagram]:
        return [self._to(node, envelope.request, KeepAliveAck())]

    def _bye(self, node: NodeRecord, envelope: ClientEnvelope, now: float) -> list[Datagram]:
        node.leave(envelope.counter)
        self._registry.touch(node, now)
        return []


_REFUSALS: dict[Claim, Reason] = {
    "taken": Reason.NAME_TAKEN,
    "too many": Reason.TOO_MANY_NAMES,
    "full": Reason.BUSY,
}
