"""Requests of nodes about names: register them, look them up."""

from __future__ import annotations

import sqlite3

from ntcpsock._servers.broker_state import BrokerState
from ntcpsock._servers.names import Claim, NameRecord
from ntcpsock._servers.node_record import NodeRecord
from ntcpsock._servers.sources import Datagram
from ntcpsock._traversal.broker.message import (
    ClientEnvelope,
    Found,
    Lookup,
    Reason,
    Refused,
    Register,
    Registered,
    Unreachable,
)

_REFUSALS: dict[Claim, Reason] = {
    "taken": Reason.NAME_TAKEN,
    "too many": Reason.TOO_MANY_NAMES,
    "full": Reason.BUSY,
    "away": Reason.BUSY,
    "unwritten": Reason.BUSY,
}


class NameRequests(BrokerState):
    """Register, Lookup."""

    def _register(self, node: NodeRecord, envelope: ClientEnvelope, now: float) -> list[Datagram]:
        assert isinstance(envelope.body, Register)
        registration = envelope.body
        if envelope.counter < node.registration:
            # Overtaken on the way by a newer one, or by Bye.
            return self._drop("old registration")
        asked = node.session, envelope.request
        if asked in self._registering:
            # Said again while it waits for the store: the answer to the first is one to this, too.
            return []
        if not self._registrations.take(node.host, now):
            return [self._refusal(node, envelope.request, Refused(Reason.BUSY))]
        refusal = self.gate.refuses_registration(node.key, node.host, registration, self.key, now)
        if refusal is not None:
            return [self._refusal(node, envelope.request, Refused(*refusal))]
        counter, request, session = envelope.counter, envelope.request, node.session

        def settle(outcome: Claim, name: str | None, now: float) -> list[Datagram]:
            self._registering.discard(asked)
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
                    self._registering.add(asked)
                    return self.cluster.registered(node.key, node.instance, known, now)
            return [self._to(node, request, Registered())]

        def known(now: float) -> list[Datagram]:
            self._registering.discard(asked)
            node = self._registry.by_session(session, now)
            return [] if node is None else [self._to(node, request, Registered())]

        try:
            if self.cluster is not None:
                self._registering.add(asked)
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
