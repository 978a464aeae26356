"""Requests of nodes about each other: offers and cards in the same instant, and the answers."""

from __future__ import annotations

from ntcpsock._servers.broker_state import BrokerState
from ntcpsock._servers.cluster.message import Answer, Met, Offer
from ntcpsock._servers.names import NameRecord
from ntcpsock._servers.node_record import NodeRecord
from ntcpsock._servers.sources import Datagram
from ntcpsock._traversal.broker.message import (
    ClientEnvelope,
    Deliver,
    Introduce,
    Introduced,
    Reason,
    Reply,
    Spoof,
    Spoofed,
    SpoofOutcome,
    Unreachable,
)


class Meetings(BrokerState):
    """Introduce, Reply, Spoof."""

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
