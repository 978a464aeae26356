"""What a broker does for those who say a thing again because its answer is late."""

from __future__ import annotations

from broker_support import make_identity, registration

from ntcpsock._address import Endpoint
from ntcpsock._servers.broker_core import BrokerCore
from ntcpsock._servers.cluster.commands import Place
from ntcpsock._servers.cluster.machine import PATIENCE, ClusterMachine, State
from ntcpsock._servers.cluster.replica import NameReplica
from ntcpsock._servers.cluster.rows import Change
from ntcpsock._servers.names import NameRecord
from ntcpsock._traversal.broker.events import Answered
from ntcpsock._traversal.broker.frame import Sealer
from ntcpsock._traversal.broker.machine import ClientMachine
from ntcpsock._traversal.broker.message import Registered

BROKER, NODE = make_identity(999), make_identity(1)
SOURCE = Endpoint("203.0.113.1", 4000)


class Store:
    """A broker of a cluster, and a node in session with it that knows its name already."""

    def __init__(self) -> None:
        names = NameReplica(None)
        names.apply([Change(1, "alice", NameRecord("alice", NODE.public_key, None))])
        self.cluster = ClusterMachine(b"\1" * 8, Sealer(BROKER), names)
        self.core = BrokerCore(BROKER, names, cluster=self.cluster)
        self.cluster.state = State.READY
        self.node = ClientMachine(Sealer(NODE), BROKER.public_key)
        self.node.start(0.0)
        while not self.node.connected:
            self.exchange(0.0)

    def exchange(self, now: float) -> int:
        """What the node has to say; how many answers came at once."""
        answers = [
            answer
            for frame in self.node.datagrams_to_send()
            for answer in self.core.receive(frame, SOURCE, now)
        ]
        for frame, _ in answers:
            self.node.receive_datagram(frame, now)
        return len(answers)

    def registered(self) -> int:
        """How often the node has heard so, since the last look."""
        return sum(
            isinstance(event, Answered) and isinstance(event.body, Registered) for event in self.node.events()
        )


def test_a_registration_that_waits_for_the_store_is_made_once() -> None:
    """Its retransmissions would each cost what the first does, and write the place again."""
    store = Store()
    store.node.register(registration("alice"), 0.0)
    assert store.exchange(0.0) == 0
    for now in (0.6, 1.7, 2.8):
        store.node.handle_timer(now)
        assert store.exchange(now) == 0
    assert store.core.counters.registrations == 1
    (place,) = store.cluster.take_places(10)
    assert isinstance(place, Place)
    assert len(place.numbers) == 1
    for frame, _ in store.cluster.placed([place], 2.9):
        store.node.receive_datagram(frame, 2.9)
    assert store.registered() == 1
    # Another one is made, and so is one whose answer got lost.
    store.node.register(registration("alice", ports=(1,)), 3.0)
    store.exchange(3.0)
    assert store.core.counters.registrations == 2
    store.cluster.placed(store.cluster.take_places(10), 3.0)
    store.node.handle_timer(4.1)
    store.exchange(4.1)
    assert store.core.counters.registrations == 3


def test_a_store_that_says_nothing_keeps_nobody_waiting_for_ever() -> None:
    """Also where it goes away: what is known is known here."""
    store = Store()
    store.node.register(registration("alice"), 0.0)
    assert store.exchange(0.0) == 0
    for frame, _ in store.cluster.expire(PATIENCE):
        store.node.receive_datagram(frame, PATIENCE)
    assert store.registered() == 1
    store.node.register(registration("alice", ports=(1,)), 4.0)
    assert store.exchange(4.0) == 0
    for frame, _ in store.cluster.away(4.0):
        store.node.receive_datagram(frame, 4.0)
    assert store.registered() == 1
    assert not store.core._registering
