"""The broker without I/O: a datagram, its source and `now` in; datagrams and their destinations out.

What protects it, in the order in which a datagram meets it: a rate for each source that has no session;
the box, which proves the sender's key; the cookie, which proves the source address; the session, its
address and its counter window, which refuse whatever was recorded and sent again. An address that has
proved nothing never gets more bytes than came from it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from ntcpsock._errors import BadMessage
from ntcpsock._servers.broker_greetings import Greetings
from ntcpsock._servers.broker_meetings import Meetings
from ntcpsock._servers.broker_names import NameRequests
from ntcpsock._servers.hot_path import HotPath
from ntcpsock._servers.node_record import NodeRecord
from ntcpsock._servers.sources import Datagram, Source, pack_source
from ntcpsock._traversal.broker.fields import (
    MAX_DATAGRAM,
)
from ntcpsock._traversal.broker.frame import (
    KEY_LENGTH,
    KEY_REQUEST,
)
from ntcpsock._traversal.broker.message import (
    AskTurn,
    Bye,
    ClientEnvelope,
    Hello,
    Introduce,
    KeepAlive,
    KeepAliveAck,
    Lookup,
    Prove,
    Reason,
    Refused,
    Register,
    Reply,
    Spoof,
    TurnPlaces,
    decode_from_node,
)
from ntcpsock._traversal.broker.operation import OfferRelay, Outcome, RelayTaken, WithdrawRelay
from ntcpsock._traversal.broker.short_keep_alive import (
    SHORT_KEEP_ALIVE,
    answer_to,
    decode_short_keep_alive_untrusted,
)

# Records looked at in a pause, some 20 ms; and after a batch of datagrams, a fifth of a millisecond.
_MOST_SWEPT = 20_000
_SWEPT_AFTER_A_BATCH = 256
_ACK = KeepAliveAck()


class BrokerCore(Greetings, NameRequests, Meetings):
    """One broker's state and answers."""

    def _set_up(self) -> None:
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
        hot_path = HotPath(
            self._registry,
            self._sealer,
            self._requests,
            self.counters,
            self._tickets,
            self.relays,
            self.gate,
            self._greetings,
            self.dropped,
            is_alone=self.cluster is None,
        )
        #: What `receive` answers to the frequent, with packed sources; None: give the datagram to `receive`.
        self.answer_known = hot_path.answer
        #: The same for many short keep-alives: the answers to send back, b"": none.
        self.answer_keep_alives = hot_path.answer_keep_alives

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

    def sweep(self, now: float) -> None:
        """A part of `expire` after each batch of what `answer_known` and `answer_keep_alives` take."""
        self._registry.expire(now, _SWEPT_AFTER_A_BATCH)

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
            if datagram[:1] == bytes((SHORT_KEEP_ALIVE,)):
                return self._short_keep_alive(datagram, source, now)
            return self._sealed(datagram, source, now)
        except BadMessage as error:
            # The first argument is one of few texts; what follows it may be a stranger's.
            return self._drop(error.args[0])
        except sqlite3.Error:
            # File gone: names cannot be known now. The client asks again.
            return self._drop("name store failed")

    def _sealed(self, datagram: bytes, source: Source, now: float) -> list[Datagram]:
        if len(datagram) > MAX_DATAGRAM:
            return self._drop("too long")
        claimed = datagram[1 : 1 + KEY_LENGTH]
        # Whoever comes from elsewhere than its session is as good as a stranger: anybody can say that he is a node.
        if not self._registry.is_at(claimed, pack_source(source)):
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

    def _ask_turn(self, node: NodeRecord, envelope: ClientEnvelope, now: float) -> list[Datagram]:
        if not self._requests.take(node.host, now):
            return self._drop("too many requests")
        places = TurnPlaces() if self._turn is None else self._turn.places(node.key, self._wall_clock())
        return [self._to(node, envelope.request, places)]

    def _keep_alive(self, node: NodeRecord, envelope: ClientEnvelope, now: float) -> list[Datagram]:
        assert isinstance(envelope.body, KeepAlive)
        edition, relays = self.relays.told(now)
        ack = _ACK if envelope.body.relays == edition else KeepAliveAck(relays, edition)
        return [self._to(node, envelope.request, ack)]

    def _short_keep_alive(self, datagram: bytes, source: Source, now: float) -> list[Datagram]:
        """Only in the plain case: in any other the node says it again, in a frame that can be challenged."""
        request = decode_short_keep_alive_untrusted(datagram)
        node = self._registry.by_session(request.session, now)
        if node is None or node.packed_source != pack_source(source):
            return self._drop("keep-alive of no session")
        answer = answer_to(datagram, node.shared)
        if answer is None:
            return self._drop("keep-alive of another key")
        if not node.accept(request.counter):
            return self._drop("replay")
        self._registry.touch(node, now)
        self.was_in_session = True
        edition, relays = self.relays.told(now)
        if request.relays != edition:
            return [self._to(node, request.number, KeepAliveAck(relays, edition))]
        return [(answer, source)]

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
