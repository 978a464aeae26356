"""What a broker does with its own nodes for the other brokers of its cluster. Pure."""

from __future__ import annotations

from collections.abc import Callable

from ntcpsock._servers.cluster.commands import instance_mark, port_mark
from ntcpsock._servers.cluster.message import Absent, Answer, Met, Offer
from ntcpsock._servers.node_record import NodeRecord
from ntcpsock._servers.registry import Asker, Registry
from ntcpsock._servers.sources import Datagram
from ntcpsock._traversal.broker.message import Deliver, FromBroker


class OwnNodes:
    """send: a message in a node's session, as the core sends it."""

    def __init__(
        self, registry: Registry, send: Callable[[NodeRecord, int, FromBroker], Datagram], broker: bytes
    ) -> None:
        self._registry = registry
        self._send = send
        self._broker = broker

    def deliver_offer(self, offer: Offer, now: float) -> tuple[Met | Absent, list[Datagram]]:
        """To whom this broker would introduce the dialer if it were here."""
        asker = Asker(offer.sender, self._registry.names.names_of(offer.sender))
        if offer.instance is not None:
            target = self._registry.instance(offer.to, offer.instance, now)
        else:
            target = self._registry.route(offer.to, offer.port, asker, now)
            if offer.exact and target is not None and offer.port not in target.ports:
                target = None
        if target is None:
            return Absent(self._broker, offer.number), []
        delivery = Deliver(
            offer.sender,
            offer.sender_instance,
            offer.sealed,
            asker.name_for(target.allow),
            offer.observed_host,
            offer.also_observed,
        )
        met = Met(self._broker, offer.number, target.instance, target.card, *target.whereabouts(now))
        return met, [self._send(target, 0, delivery)]

    def deliver_answer(self, answer: Answer, now: float) -> list[Datagram]:
        """To the dialer, where it is still here."""
        target = self._registry.instance(answer.to, answer.instance, now)
        if target is None:
            return []
        delivery = Deliver(
            answer.sender,
            answer.sender_instance,
            answer.sealed,
            answer.sender_name,
            answer.observed_host,
            answer.also_observed,
        )
        return [self._send(target, 0, delivery)]

    def forget_instance(self, key: bytes, instance: bytes, now: float) -> bool:
        """Introduce nobody to it any more; what it says here itself is still heard. Whether it was here."""
        node = self._registry.instance(key, instance, now)
        if node is None or not node.registered:
            return False
        node.leave(node.registration)
        return True

    def marks_here(self, key: bytes, now: float) -> tuple[bytes, ...] | None:
        """Ports and instances that are registered here, as others look for them; None where there are none."""
        nodes = [node for node in self._registry.instances(key, now) if node.registered]
        if not nodes:
            return None
        ports = {port for node in nodes for port in node.ports}
        return (
            *(port_mark(port) for port in sorted(ports)),
            *(instance_mark(node.instance) for node in nodes),
        )
