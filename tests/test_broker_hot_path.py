"""The hot path of the broker answers octet by octet what the long way answers, or leaves it to that."""

from __future__ import annotations

import random

import pytest
from broker_support import BROKER, SEALED, SimulatedNetwork, make_identity, registration
from hypothesis import given, settings
from hypothesis import strategies as st

from ntcpsock._address import Endpoint
from ntcpsock._servers.broker_core import BrokerCore
from ntcpsock._servers.broker_state import BrokerLimits
from ntcpsock._servers.names import NameStore
from ntcpsock._servers.node_record import ALL_SEEN, RECORD, NodeRecord, Records
from ntcpsock._servers.policy import Policy
from ntcpsock._servers.quotas import Quotas
from ntcpsock._servers.sources import Connection, pack_source, unpack_source
from ntcpsock._traversal.broker.fields import RelayPlace
from ntcpsock._traversal.broker.frame import Sealer
from ntcpsock._traversal.broker.machine import ClientMachine
from ntcpsock._traversal.broker.message import (
    Bye,
    FromNode,
    Introduce,
    KeepAlive,
    Lookup,
    Register,
    encode_from_node,
)
from ntcpsock._traversal.broker.short_keep_alive import (
    SHORT_KEEP_ALIVE_LENGTH,
    ShortKeepAlive,
    encode_short_keep_alive,
)

STEP = 0.5


class Twins:
    """The same broker twice, with the same random bytes; one has its hot path."""

    def __init__(self, limits: BrokerLimits | None = None) -> None:
        self.now = 1000.0
        self.limits = limits
        self.taken = 0
        self.cores = [self._core() for _ in range(2)]

    def _core(self) -> BrokerCore:
        chance = random.Random(7)
        return BrokerCore(
            make_identity(999), NameStore(None), limits=self.limits, random_bytes=chance.randbytes
        )

    def give(self, datagram: bytes, source: Endpoint) -> list[tuple[bytes, Endpoint | Connection]]:
        """Both get it, and must say the same."""
        first, second = self.cores
        for core in self.cores:
            core.sweep(self.now)
        plain = first.receive(datagram, source, self.now)
        if len(datagram) == SHORT_KEEP_ALIVE_LENGTH:
            ack = second.answer_keep_alives([(datagram, pack_source(source))], self.now)[0]
            if ack is not None:
                self.taken += 1
                assert plain == ([(ack, source)] if ack else [])
                self.check_alike()
                return plain
        packed = second.answer_known(datagram, pack_source(source), self.now)
        if packed is None:
            hot = second.receive(datagram, source, self.now)
        else:
            self.taken += 1
            hot = [
                (second.sealer.seal_with(shared, key, payload), unpack_source(target))
                for payload, key, shared, target in packed
            ]
        assert plain == hot
        self.check_alike()
        return plain

    def check_alike(self) -> None:
        """Both have come to the same state."""
        first, second = self.cores
        assert first.counters == second.counters
        assert first.dropped == second.dropped
        assert bytes(first._registry.records.packed) == bytes(second._registry.records.packed)
        assert first._registry.records.offered == second._registry.records.offered


class Node:
    """It says what it is told to, and hears all."""

    def __init__(self, twins: Twins, number: int) -> None:
        self.twins = twins
        self.identity = make_identity(number)
        self.sealer = Sealer(self.identity)
        self.source = Endpoint(f"203.0.113.{number}", 4000 + number)
        self.machine = ClientMachine(self.sealer, twins.cores[0].key, keep_alive_interval=20.0)
        self.machine.start(twins.now)
        for _ in range(4):
            for datagram in self.machine.datagrams_to_send():
                for answer, target in twins.give(datagram, self.source):
                    assert target == self.source
                    self.machine.receive_datagram(answer, twins.now)
        assert self.machine.connected
        self.session = next(
            record.session for record in twins.cores[0]._registry if record.key == self.identity.public_key
        )
        self.counter = 100
        self.recorded: list[bytes] = []

    def frame(self, body: FromNode) -> bytes:
        self.counter += 1
        payload = encode_from_node(self.session, self.counter, self.counter, body)
        self.recorded.append(self.sealer.seal(self.twins.cores[0].key, payload))
        return self.recorded[-1]

    def keep_alive(self, relays: int = 0, ahead: int = 1) -> bytes:
        """A short one, whose counter is so much higher than that of the last frame."""
        self.counter += ahead
        request = ShortKeepAlive(self.session, self.counter, 1, relays)
        return encode_short_keep_alive(request, self.sealer.shared_key(self.twins.cores[0].key))[0]

    def say(self, body: FromNode) -> int:
        """How many frames came of it."""
        return len(self.twins.give(self.frame(body), self.source))


def test_it_takes_the_plain_cases() -> None:
    twins = Twins()
    listener, dialer = Node(twins, 1), Node(twins, 2)
    listener.say(registration("alice"))
    before = twins.taken
    assert listener.say(KeepAlive()) == 1
    assert twins.taken == before + 1
    # The first goes the long way, which finds out what name to show.
    for _ in range(3):
        assert dialer.say(Introduce(listener.identity.public_key, 80, SEALED, "alice")) == 2
        assert dialer.say(Introduce(listener.identity.public_key, 80, SEALED)) == 2
    assert twins.taken == before + 6


def test_it_takes_short_keep_alives() -> None:
    twins = Twins()
    node = Node(twins, 1)
    before = twins.taken
    assert len(twins.give(node.keep_alive(), node.source)) == 1
    assert len(twins.give(node.keep_alive(ahead=5), node.source)) == 1
    late = node.keep_alive(ahead=-2)
    assert len(twins.give(late, node.source)) == 1
    # A replay, another's address, an octet changed, a session that is none, a session of a place that is none.
    node.counter += 10
    fresh = node.keep_alive()
    assert twins.give(late, node.source) == []
    assert twins.give(fresh, Endpoint("192.0.2.1", 9)) == []
    assert twins.give(fresh[:-1] + bytes([fresh[-1] ^ 1]), node.source) == []
    assert twins.give(fresh[:8] + b"x" + fresh[9:], node.source) == []
    assert twins.give(fresh[:1] + b"\xff" * 8 + fresh[9:], node.source) == []
    assert twins.taken == before + 8
    assert twins.cores[0].dropped == {
        "replay": 1,
        "keep-alive of no session": 3,
        "keep-alive of another key": 1,
    }
    # Another list of relays, and what is no keep-alive, are for the long way.
    assert len(twins.give(node.keep_alive(relays=7), node.source)) == 1
    assert twins.give(b"\1" + fresh[1:], node.source) == []
    assert twins.taken == before + 8
    # It is over when its time is.
    twins.now += 61
    assert twins.give(node.keep_alive(), node.source) == []


def test_the_name_that_is_shown_follows_the_registrations() -> None:
    twins = Twins()
    listener, dialer = Node(twins, 1), Node(twins, 2)
    listener.say(registration("alice"))
    for names in (("bob",), ("alf", "bob"), ()):
        for _ in range(2):
            dialer.say(Introduce(listener.identity.public_key, 80, SEALED))
        dialer.say(registration(*names))
        for _ in range(2):
            dialer.say(Introduce(listener.identity.public_key, 80, SEALED))


def test_it_tells_of_relays_and_keeps_to_quotas() -> None:
    twins = Twins()
    listener, dialer = Node(twins, 1), Node(twins, 2)
    listener.say(registration("alice"))
    dialer.say(Introduce(listener.identity.public_key, 80, SEALED))
    for core in twins.cores:
        core.relays.static = (RelayPlace("0.0.0.0", 0),)
    twins.now += 2
    edition, _ = twins.cores[0].relays.told(twins.now)
    assert edition
    before = twins.taken
    for known in (0, edition, edition + 1):
        assert listener.say(KeepAlive(known)) == 1
    assert twins.taken == before + 3
    for core in twins.cores:
        core.gate.configure(Policy(), Quotas(introductions_of_a_node=0.2))
    delivered = [dialer.say(Introduce(listener.identity.public_key, 80, SEALED)) for _ in range(4)]
    assert delivered == [2, 2, 0, 0]


bodies = st.one_of(
    st.just(KeepAlive()),
    st.builds(
        lambda to, name, instance: Introduce(make_identity(to).public_key, 80, SEALED, name, instance),
        st.integers(1, 5),
        st.sampled_from([None, "alice", "bob", "nobody"]),
        st.sampled_from([None, None, bytes(8)]),
    ),
    st.builds(
        lambda name, private: registration(name, allow=("alice",) if private else None),
        st.sampled_from(["alice", "bob", "carol"]),
        st.booleans(),
    ),
    st.just(Lookup("alice")),
    st.just(Bye()),
    st.just(Register((), (), 60)),
)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            bodies,
            st.sampled_from(["new", "again", "moved", "cut", "bit", "short"]),
            st.floats(0, 30),
        ),
        max_size=40,
    )
)
@settings(max_examples=40, deadline=None)
def test_both_ways_say_the_same(script: list[tuple[int, FromNode, str, float]]) -> None:
    twins = Twins()
    nodes = [Node(twins, number) for number in (1, 2, 3)]
    for who, body, how, pause in script:
        twins.now += pause
        node = nodes[who]
        frame = node.keep_alive(who, who + 1) if how == "short" else node.frame(body)
        if how == "again":
            twins.give(frame, node.source)
        elif how == "moved":
            twins.give(frame, Endpoint("192.0.2.1", 9))
        elif how == "cut":
            frame = frame[: 20 + who * 40]
        elif how == "bit":
            frame = frame[:-1] + bytes([frame[-1] ^ 1])
        twins.give(frame, node.source)


@pytest.mark.parametrize(
    "limits",
    [BrokerLimits(greeting_burst=7, greeting_rate=1), BrokerLimits(strangers_burst=5, strangers_rate=1)],
)
def test_strangers_over_a_limit_are_dropped_alike(limits: BrokerLimits) -> None:
    twins = Twins(limits)
    chance = random.Random(1)
    sources = [Endpoint("192.0.2.1", 1), Endpoint("192.0.2.2", 1), Endpoint("2001:db8::1", 1)]
    for _ in range(100):
        twins.now += chance.random() / 50
        twins.give(chance.randbytes(chance.choice([0, 1, 40, 200, 1300])), chance.choice(sources))
        twins.give(b"\x02".ljust(64, b"\0"), chance.choice(sources))
    (reason,) = twins.cores[0].dropped.keys() & {"too many greetings", "too many strangers"}
    # Who has said too much already is dropped without another look.
    assert (twins.taken > 50) == (reason == "too many greetings")


def test_an_instance_among_others_goes_the_long_way() -> None:
    twins = Twins()
    listener, dialer = Node(twins, 1), Node(twins, 2)
    listener.say(registration("alice"))
    dialer.say(Introduce(listener.identity.public_key, 80, SEALED))
    Node(twins, 1)
    before = twins.taken
    assert dialer.say(Introduce(listener.identity.public_key, 80, SEALED)) == 2
    assert listener.say(KeepAlive()) == 1
    assert twins.taken == before


@pytest.mark.parametrize(
    "source",
    [
        Endpoint("192.0.2.1", 1),
        Endpoint("2001:db8::1", 65535),
        Endpoint("fe80::1%3", 5),
        Connection("192.0.2.1", 80, 0),
        Connection("2001:db8::1", 80, 2**40),
        Connection("fe80::1%3", 80, 7),
    ],
)
def test_sources_are_packed_and_unpacked(source: Endpoint | Connection) -> None:
    assert unpack_source(pack_source(source)) == source
    assert type(unpack_source(pack_source(source))) is type(source)


def test_the_fields_of_a_record_are_where_the_whole_has_them() -> None:
    records = Records(bytearray(2 * RECORD.size), [None] * 2)
    source = Endpoint("192.0.2.1", 7)
    records.write(1, b"k" * 32, b"s" * 32, b"i" * 8, b"n" * 8, source, 5.5)
    node = NodeRecord(records, 1)
    node.sent, node.registration, node.due, node.next, node.flags = 3, 4, 6, 8, 2
    assert node.accept(9)
    assert not node.accept(9)
    fields = RECORD.unpack_from(records.packed, RECORD.size)
    assert fields[:5] == (b"k" * 32, b"s" * 32, b"i" * 8, b"n" * 8, pack_source(source))
    assert fields[5:] == (9, ALL_SEEN, 3, 5.5, 4, 6, 8, 60, 2)
    assert RECORD.unpack_from(records.packed, 0) == RECORD.unpack(bytes(RECORD.size))


def test_a_network_of_nodes_works_as_before() -> None:
    """Through the simulated network, whose nodes are whole machines."""
    network = SimulatedNetwork(loss=0.1, duplication=0.1, reordering=0.1)
    listener, dialer = network.add(1), network.add(2)
    listener.ask(registration("alice"))
    for _ in range(5):
        assert dialer.introduce(listener.identity.public_key) is not None
    assert any(target == BROKER for _, _, target in network.log)
