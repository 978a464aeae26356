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
from ntcpsock._servers.cluster.machine import ClusterMachine
from ntcpsock._servers.cluster.message import Answer, Met, Offer
from ntcpsock._servers.cluster.nodes import OwnNodes
from ntcpsock._servers.gate import Gate
from ntcpsock._servers.hot_path import HotPath
from ntcpsock._servers.limits import RateLimit
from ntcpsock._servers.names import Claim, NameRecord, NameStore
from ntcpsock._servers.node_record import NodeRecord
from ntcpsock._servers.node_sealer import NodeSealer
from ntcpsock._servers.outcomes import Outcomes
from ntcpsock._servers.random_pool import RandomPool
from ntcpsock._servers.registry import Asker, Registry
from ntcpsock._servers.relay_book import RelayBook
from ntcpsock._servers.round_trips import RoundTrips
from ntcpsock._servers.sources import Datagram, Source, endpoint_of, pack_source
from ntcpsock._servers.spoofing import SpoofingDesk, SynAck
from ntcpsock._servers.turn_desk import TurnDesk
from ntcpsock._traversal.broker.fields import (
    COOKIE_LENGTH,
    MAX_DATAGRAM,
    MIN_TTL,
    NO_SESSION,
    SESSION_LENGTH,
    RelayPlace,
)
from ntcpsock._traversal.broker.frame import (
    KEY_LENGTH,
    KEY_REQUEST,
    decode_key_request_untrusted,
    encode_key_reply,
)
from ntcpsock._traversal.broker.message import (
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
from ntcpsock._traversal.broker.operation import OfferRelay, Outcome, RelayTaken, WithdrawRelay
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
    #: Frames of keys without a session, and requests for ours: a stranger's first costs a Diffie-Hellman, 34 us.
    greeting_rate: float = 200.0
    greeting_burst: float = 1000.0
    #: Diffie-Hellmans for all addresses together, which may be invented: half of a processor at most.
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
        gate: Gate | None = None,
        cluster: ClusterMachine | None = None,
        turn: TurnDesk | None = None,
        random_bytes: Callable[[int], bytes] | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """relays: those that nodes are told; relay_secret: what these check our tickets with. cluster: our part
        in one, whose replica `names` is. `wall_clock` is Unix time, which tickets need because a relay may be
        another machine."""
        limits = limits or BrokerLimits()
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
        self._sealer = NodeSealer(identity, self._registry, random_bytes)
        self._greetings = RateLimit(limits.greeting_rate, limits.greeting_burst)
        self._strangers = RateLimit(limits.strangers_rate, limits.strangers_burst)
        self._requests = RateLimit(limits.request_rate, limits.request_burst)
        self._registrations = RateLimit(limits.register_rate, limits.register_burst)
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
        self._handlers: dict[type, Callable[[NodeRecord, ClientEnvelope, float], list[Datagram]]] = {
            Register: self._register,
            Lookup: self._lookup,
            Introduce: self._introduce,
            Reply: self._reply,
            KeepAlive: self._keep_alive,
            Spoof: self._spoof,
            AskTurn: self._ask_turn,
            Bye: self._bye,
            Outcome: self._outcome,
            OfferRelay: self._offer_relay,
            WithdrawRelay: self._withdraw_relay,
        }
        self._hot_path = HotPath(
            self._registry,
            self._sealer,
            self._requests,
            self.counters,
            self._tickets,
            self.relays,
            self.gate,
            self._greetings,
            self.dropped,
            is_alone=cluster is None,
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

    def keys(self) -> list[bytes]:
        """Of all nodes that are here."""
        return self._registry.keys()

    def receive(self, datagram: bytes, source: Source, now: float) -> list[Datagram]:
        """Answer a datagram. Whatever is wrong with it is counted, never raised."""
        self._registry.expire(now)
        self.was_in_session = False
        if self.gate.is_shut_for(source.host):
            return self._drop("banned address")
        try:
            if datagram[:1] == bytes((KEY_REQUEST,)):
                return self._key_request(datagram, source, now)
            return self._sealed(datagram, source, now)
        except BadMessage as error:
            # The first argument is one of few texts; what follows it may be a stranger's.
            return self._drop(error.args[0])
        except sqlite3.Error:
            # File gone: names cannot be known now. The client asks again.
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
        if not self._registry.knows(claimed):
            if not self._greetings.take(source.host, now):
                return self._drop("too many greetings")
            if not self._sealer.knows(claimed) and not self._strangers.take("", now):
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
        reason = self.gate.refuses(key, hello.token, self.key)
        if reason is not None:
            return self._turn_away(key, envelope.request, reason, source)
        node = self._registry.instance(key, hello.instance, now)
        if node is None:
            self.counters.sessions += 1
            session = self._random_bytes(SESSION_LENGTH)
            shared = self._sealer.shared_key(key)
            node = self._registry.add(key, shared, hello.instance, session, source, now)
            if node is None:
                return self._drop("full")
            self._sealer.settled(key)
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
        edition, relays = self.relays.told(now)
        welcome = Welcome(node.session, observed, self._stun, elsewhere, spoofs, relays, edition)
        return [self._to(node, envelope.request, welcome)]

    def _turn_away(self, key: bytes, request: int, reason: Reason, source: Source) -> list[Datagram]:
        """An answer to a Hello from a proved address: no session, and why."""
        self.counters.refused[_words(reason)] += 1
        frame = self._sealer.seal(key, encode_from_broker(NO_SESSION, 0, request, Refused(reason)))
        return [(frame, source)]

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
        self.counters.refused[_words(body.reason)] += 1
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
        refusal = self.gate.refuses_registration(node.key, node.host, registration, self.key, now)
        if refusal is not None:
            return [self._refusal(node, envelope.request, Refused(*refusal))]
        counter, request, session = envelope.counter, envelope.request, node.session

        def settle(outcome: Claim, name: str | None, now: float) -> list[Datagram]:
            node = self._registry.by_session(session, now)
            if node is None:
                return []
            if outcome != "kept":
                return [self._refusal(node, request, Refused(_REFUSALS[outcome], name))]
            if counter >= node.registration:
                self.counters.registrations += 1
                node.register(counter, registration)
                self._registry.names_changed(node.key)
                if self.cluster is None:
                    owned = self._registry.names.names_of(node.key)
                    node.show(owned[0] if owned else None)
                self._registry.touch(node, now)
                if self.cluster is not None:
                    return self.cluster.registered(node.key, node.instance, known, now)
            return [self._to(node, request, Registered())]

        def known(now: float) -> list[Datagram]:
            node = self._registry.by_session(session, now)
            return [] if node is None else [self._to(node, request, Registered())]

        try:
            if self.cluster is not None:
                return self.cluster.claim(registration.names, node.key, registration.allow, settle, now)
            outcome = self._registry.names.claim(registration.names, node.key, registration.allow)
        except sqlite3.Error:
            # The disk is full, perhaps: nobody gets a new name, and all else goes on.
            self.unwritten += 1
            return settle("unwritten", None, now)
        return settle(*outcome, now)

    def _lookup(self, node: NodeRecord, envelope: ClientEnvelope, now: float) -> list[Datagram]:
        assert isinstance(envelope.body, Lookup)
        if not self._requests.take(node.host, now):
            return self._drop("too many requests")
        self.counters.lookups += 1
        name, request, session = envelope.body.name, envelope.request, node.session
        if self.cluster is None or self._registry.names.get(name) is not None:
            return self._found(node, request, name)

        def found(_: NameRecord | None, now: float) -> list[Datagram]:
            node = self._registry.by_session(session, now)
            return [] if node is None else self._found(node, request, name)

        return self.cluster.find(name, found, now)

    def _found(self, node: NodeRecord, request: int, name: str) -> list[Datagram]:
        record = self._registry.visible_name(name, self._asker(node))
        if record is None:
            return [self._refusal(node, request, Unreachable(Reason.NOT_FOUND))]
        return [self._to(node, request, Found(record.key))]

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
        if not self.gate.may_introduce(node.key, node.host, now):
            return self._drop("over quota")
        if self.cluster is None or offer.name is None or self._registry.names.get(offer.name) is not None:
            return self._meet(node, envelope.request, offer, now)
        request, session = envelope.request, node.session

        def found(_: NameRecord | None, now: float) -> list[Datagram]:
            node = self._registry.by_session(session, now)
            return [] if node is None else self._meet(node, request, offer, now)

        return self.cluster.find(offer.name, found, now)

    def _meet(self, node: NodeRecord, request: int, offer: Introduce, now: float) -> list[Datagram]:
        asker = self._asker(node)
        if offer.name is not None:
            record = self._registry.visible_name(offer.name, asker)
            if record is None or record.key != offer.to:
                return [self._refusal(node, request, Unreachable(Reason.NOT_FOUND))]
        if offer.instance is not None:
            target = self._registry.instance(offer.to, offer.instance, now)
            is_here = target is not None
        else:
            target = self._registry.route(offer.to, offer.port, asker, now)
            is_here = target is not None and offer.port in target.ports
        if self.cluster is None or is_here:
            return self._meet_here(node, request, offer, target, now)
        session, exact = node.session, target is not None

        def met(there: Met | None, now: float) -> list[Datagram]:
            node = self._registry.by_session(session, now)
            if node is None:
                return []
            if there is None:
                asker = self._asker(node)
                target = None if offer.instance else self._registry.route(offer.to, offer.port, asker, now)
                return self._meet_here(node, request, offer, target, now)
            self.counters.introductions += 1
            tickets = self._tickets(node.key, offer.to, now)
            where = there.observed_host, there.also_observed
            introduction = Introduced(offer.to, there.instance, there.card, *where, tickets)
            return [self._to(node, request, introduction)]

        where = node.whereabouts(now)
        wanted = Offer(
            self.cluster.broker,
            0,
            offer.to,
            offer.port,
            exact,
            node.key,
            node.instance,
            offer.sealed,
            offer.instance,
            *where,
        )
        return self.cluster.forward(wanted, met, now)

    def _meet_here(
        self, node: NodeRecord, request: int, offer: Introduce, target: NodeRecord | None, now: float
    ) -> list[Datagram]:
        if target is None:
            return [self._refusal(node, request, Unreachable(Reason.OFFLINE))]
        self.counters.introductions += 1
        # Both in the same instant: neither side waits for the other. An Introduce that is repeated is
        # delivered again, since nobody knows which of the two datagrams was lost.
        name = self._asker(node).name_for(target.allow)
        if target.allow is None:
            node.show(name)
        delivery = Deliver(node.key, node.instance, offer.sealed, name, *node.whereabouts(now))
        introduction = Introduced(
            target.key,
            target.instance,
            target.card,
            *target.whereabouts(now),
            self._tickets(node.key, target.key, now),
        )
        return [self._to(target, 0, delivery), self._to(node, request, introduction)]

    def _tickets(self, dialer: bytes, listener: bytes, now: float) -> tuple[bytes, bytes] | None:
        """Nothing is remembered of them, and most are never used."""
        if self._relay_secret is None or not self.relays.told(now)[1]:
            return None
        session = self._random_bytes(RELAY_SESSION_LENGTH)
        return issue_pair(self._relay_secret, session, dialer, listener, self._wall_clock())

    def _reply(self, node: NodeRecord, envelope: ClientEnvelope, now: float) -> list[Datagram]:
        assert isinstance(envelope.body, Reply)
        reply = envelope.body
        if not self._requests.take(node.host, now):
            return self._drop("too many requests")
        name = node.names[0] if node.names else None
        target = self._registry.instance(reply.to, reply.instance, now)
        if target is None:
            where = node.whereabouts(now)
            if self.cluster is not None and self.cluster.answer(
                Answer(
                    self.cluster.broker,
                    reply.to,
                    reply.instance,
                    node.key,
                    node.instance,
                    reply.sealed,
                    name,
                    *where,
                )
            ):
                self.counters.replies += 1
                return []
            return self._drop("reply to nobody")
        self.counters.replies += 1
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
        assert isinstance(envelope.body, KeepAlive)
        edition, relays = self.relays.told(now)
        ack = _ACK if envelope.body.relays == edition else KeepAliveAck(relays, edition)
        return [self._to(node, envelope.request, ack)]

    def _outcome(self, node: NodeRecord, envelope: ClientEnvelope, now: float) -> list[Datagram]:
        assert isinstance(envelope.body, Outcome)
        if not self._requests.take(node.host, now):
            return self._drop("too many requests")
        self.outcomes.note(envelope.body)
        return []

    def _offer_relay(self, node: NodeRecord, envelope: ClientEnvelope, now: float) -> list[Datagram]:
        assert isinstance(envelope.body, OfferRelay)
        secret = self.relays.offer(node.key, envelope.body, node.host, now)
        if secret is None:
            return [self._refusal(node, envelope.request, Refused(Reason.NOT_ADMITTED))]
        return [self._to(node, envelope.request, RelayTaken(secret))]

    def _withdraw_relay(self, node: NodeRecord, envelope: ClientEnvelope, now: float) -> list[Datagram]:
        self.relays.withdraw(node.key)
        return [self._to(node, envelope.request, RelayTaken())]

    def _bye(self, node: NodeRecord, envelope: ClientEnvelope, now: float) -> list[Datagram]:
        node.leave(envelope.counter)
        self._registry.touch(node, now)
        if self.cluster is not None:
            self.cluster.left(node.key, now)
        return []


_ACK = KeepAliveAck()


def _words(reason: Reason) -> str:
    return reason.name.lower().replace("_", " ")


_REFUSALS: dict[Claim, Reason] = {
    "taken": Reason.NAME_TAKEN,
    "too many": Reason.TOO_MANY_NAMES,
    "full": Reason.BUSY,
    "away": Reason.BUSY,
    "unwritten": Reason.BUSY,
}
