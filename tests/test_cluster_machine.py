"""One broker's part in a cluster, without a store: what it decides, whom it makes wait, what it does not believe."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path

import pytest
from broker_support import SEALED, make_identity
from hypothesis import given, settings
from hypothesis import strategies as st

from ntcpsock._errors import BadMessage
from ntcpsock._servers.cluster import machine as machine_module
from ntcpsock._servers.cluster.commands import Claim, Fetch, Forward, Place, Send, port_mark
from ntcpsock._servers.cluster.machine import PATIENCE, ClusterMachine, State
from ntcpsock._servers.cluster.message import (
    Absent,
    Answer,
    Message,
    Met,
    Moved,
    Offer,
    decode_untrusted,
    encode,
)
from ntcpsock._servers.cluster.replica import MAX_UNWRITTEN, NameReplica
from ntcpsock._servers.cluster.rows import (
    Change,
    decode_announcement_untrusted,
    decode_change_untrusted,
    decode_row_untrusted,
    encode_row,
)
from ntcpsock._servers.names import NameRecord
from ntcpsock._servers.sources import Datagram
from ntcpsock._traversal.broker.frame import Sealer

CLUSTER = make_identity(999)
ALICE, BOB, CAROL = (make_identity(number).public_key for number in (1, 2, 3))
HERE, THERE = b"broker-1", b"broker-2"
INSTANCE = b"instance"


class Nodes:
    """Of this broker: `ports` by key."""

    def __init__(self) -> None:
        self.ports: dict[bytes, tuple[int, ...]] = {}
        self.offers: list[Offer] = []
        self.answers: list[Answer] = []
        self.forgotten: list[tuple[bytes, bytes]] = []

    def deliver_offer(self, offer: Offer, now: float) -> tuple[Met | Absent, list[Datagram]]:
        if offer.to not in self.ports:
            return Absent(HERE, offer.number), []
        self.offers.append(offer)
        return Met(HERE, offer.number, INSTANCE, b"card", "192.0.2.1"), []

    def deliver_answer(self, answer: Answer, now: float) -> list[Datagram]:
        self.answers.append(answer)
        return []

    def forget_instance(self, key: bytes, instance: bytes, now: float) -> bool:
        self.forgotten.append((key, instance))
        return self.ports.pop(key, None) is not None

    def marks_here(self, key: bytes, now: float) -> tuple[bytes, ...] | None:
        ports = self.ports.get(key)
        return None if ports is None else tuple(port_mark(port) for port in ports)


class Broker:
    """A machine with nodes, and what its requests came to."""

    def __init__(self, state: State = State.READY) -> None:
        self.names = NameReplica(None)
        self.machine = ClusterMachine(HERE, Sealer(CLUSTER), self.names)
        self.machine.state = state
        self.nodes = Nodes()
        self.machine.serve(self.nodes)
        self.settled: list[tuple[str, str | None]] = []
        self.found: list[NameRecord | None] = []
        self.met: list[Met | None] = []

    def know(self, name: str, key: bytes, allow: bytes | None = None) -> None:
        self.names.apply([Change(1, name, NameRecord(name, key, allow))])

    def claim(self, *names: str, key: bytes = ALICE, allow: bytes | None = None, now: float = 0.0) -> None:
        def settle(outcome: str, name: str | None, now: float) -> list[Datagram]:
            self.settled.append((outcome, name))
            return []

        self.machine.claim(names, key, allow, settle, now)

    def find(self, name: str, now: float = 0.0) -> None:
        def found(record: NameRecord | None, now: float) -> list[Datagram]:
            self.found.append(record)
            return []

        self.machine.find(name, found, now)

    def forward(self, to: bytes, now: float = 0.0) -> None:
        def met(there: Met | None, now: float) -> list[Datagram]:
            self.met.append(there)
            return []

        self.machine.forward(Offer(HERE, 0, to, 80, False, BOB, INSTANCE, SEALED), met, now)

    def hear(self, message: Message) -> None:
        self.machine.receive(seal(message), 0.0)

    def said(self) -> list[Message]:
        """To other brokers."""
        return [opened(send.frame) for send in self.machine.take(100) if isinstance(send, Send)]


def seal(message: Message) -> bytes:
    return Sealer(CLUSTER).seal(CLUSTER.public_key, encode(message))


def opened(frame: bytes) -> Message:
    return decode_untrusted(Sealer(CLUSTER).open_untrusted(frame)[1])


def test_what_the_replica_knows_needs_no_store() -> None:
    broker = Broker()
    broker.know("alice", ALICE)
    broker.claim("alice")
    broker.claim("alice", key=BOB)
    broker.claim("bob", "alice", key=BOB)
    assert broker.settled == [("kept", None), ("taken", "alice"), ("taken", "alice")]
    assert not broker.machine.has_commands


@pytest.mark.parametrize("state", [State.READY, State.SYNCING])
def test_the_store_decides_who_gets_a_new_name(state: State) -> None:
    broker = Broker(state)
    broker.claim("alice", "al")
    broker.claim("bob", key=BOB)
    assert broker.settled == []
    first, second = broker.machine.take(10)
    assert first == Claim(1, ("alice", "al"), ALICE, None)
    assert isinstance(second, Claim)
    broker.machine.claimed(1, "kept", None, [], 0.1)
    record = NameRecord("bob", CAROL, None)
    broker.machine.claimed(second.number, "taken", "bob", [Change(0, "bob", record)], 0.1)
    assert broker.settled == [("kept", None), ("taken", "bob")]
    # It knows of both from now on, whether or not they have come round.
    assert broker.names.get("al") == NameRecord("al", ALICE, None)
    assert broker.names.get("bob") == record
    # Twice the same answer is none.
    assert broker.machine.claimed(1, "kept", None, [], 0.2) == []
    assert len(broker.settled) == 2


def test_while_the_store_is_away_nobody_gets_a_name_that_he_has_not() -> None:
    broker = Broker(State.AWAY)
    broker.know("alice", ALICE)
    broker.claim("fresh")
    broker.claim("alice", "fresh")
    broker.claim("alice", key=BOB)
    broker.claim("alice")
    assert broker.settled == [("away", "fresh"), ("away", "fresh"), ("taken", "alice"), ("kept", None)]
    # Another policy for it is his to choose, and told later.
    broker.claim("alice", allow=b"d" * 16)
    assert broker.settled[-1] == ("kept", None)
    assert broker.names.get("alice") == NameRecord("alice", ALICE, b"d" * 16)
    assert broker.machine.untold() == [("alice", ALICE, b"d" * 16)]
    broker.machine.told("alice")
    assert broker.machine.untold() == []


def test_who_waits_is_answered_when_the_store_goes_away_or_says_nothing() -> None:
    for end in ("away", "expire"):
        broker = Broker()
        broker.claim("alice")
        broker.find("bob")
        broker.forward(CAROL)
        assert broker.machine.waiting == 3
        if end == "away":
            broker.machine.away(1.0)
            assert not broker.machine.has_commands
        else:
            broker.machine.expire(PATIENCE - 0.1)
            assert broker.machine.waiting == 3
            broker.machine.expire(PATIENCE)
        assert (broker.settled, broker.found, broker.met) == ([("away", "alice")], [None], [None])
        assert broker.machine.waiting == 0


def test_those_who_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "MAX_WAITING", 3)
    broker = Broker()
    for number in range(5):
        broker.find(f"name-{number}")
        broker.forward(CAROL)
        broker.claim(f"other-{number}")
    assert broker.machine.waiting == 3
    assert len(broker.machine.take(100)) == 3
    assert len(broker.found) + len(broker.met) + len(broker.settled) == 12


def test_the_store_that_refuses_a_request_ends_it() -> None:
    broker = Broker()
    broker.claim("alice")
    broker.machine.failed(1, 0.0)
    assert broker.settled == [("away", "alice")]


def test_a_name_that_is_younger_than_the_replica_is_fetched() -> None:
    broker = Broker()
    broker.find("bob")
    (command,) = broker.machine.take(1)
    assert isinstance(command, Fetch)
    record = NameRecord("bob", BOB, None)
    broker.machine.fetched(command.number, record, 0.1)
    assert broker.found == [record]
    assert broker.names.get("bob") == record


def test_an_offer_goes_to_another_broker_and_its_answer_back() -> None:
    dialer, listener = Broker(), Broker()
    listener.machine.broker = THERE
    listener.nodes.ports[CAROL] = (80,)
    dialer.forward(CAROL)
    (command,) = dialer.machine.take(1)
    assert isinstance(command, Forward)
    assert (command.key, command.mark, command.exact) == (CAROL, b"80", False)
    dialer.machine.forwarded(command.number, True, 0.0)
    assert dialer.met == []
    listener.machine.receive(command.frame, 0.0)
    (offer,) = listener.nodes.offers
    assert (offer.origin, offer.sender, offer.sealed) == (HERE, BOB, SEALED)
    (met,) = listener.said()
    dialer.hear(met)
    assert dialer.met == [met]
    # The listener's answer finds its way without anybody's help; one to nobody does not.
    assert listener.machine.answer(Answer(THERE, BOB, INSTANCE, CAROL, INSTANCE, SEALED))
    assert not listener.machine.answer(Answer(THERE, ALICE, INSTANCE, CAROL, INSTANCE, SEALED))
    (send,) = listener.machine.take(10)
    assert isinstance(send, Send)
    assert send.broker == HERE
    dialer.machine.receive(send.frame, 0.0)
    assert [answer.sender for answer in dialer.nodes.answers] == [CAROL]


def test_an_offer_that_reaches_nobody() -> None:
    broker = Broker()
    for _ in range(2):
        broker.forward(CAROL)
    one, two = broker.machine.take(2)
    assert isinstance(one, Forward)
    assert isinstance(two, Forward)
    broker.machine.forwarded(one.number, False, 0.0)
    broker.hear(Absent(THERE, two.number))
    assert broker.met == [None, None]
    # Who has nobody of that key says so to the store as well.
    broker.hear(Offer(THERE, 9, CAROL, 80, False, BOB, INSTANCE, SEALED))
    assert broker.said() == [Absent(HERE, 9)]
    assert broker.machine.take_places(9) == [Place(CAROL, None, b"")]


def test_of_each_node_the_latest_place_is_told() -> None:
    broker = Broker()
    broker.nodes.ports[ALICE] = (80,)
    told: list[float] = []

    def known(now: float) -> list[Datagram]:
        told.append(now)
        return []

    broker.machine.registered(ALICE, INSTANCE, known, 0.0)
    broker.nodes.ports[ALICE] = (80, 81)
    broker.machine.retell([ALICE], 0.0)
    (place,) = broker.machine.take_places(10)
    assert place.marks == (b"80", b"81")
    # Whoever hears that he is registered can be met.
    assert told == []
    for _ in range(2):
        broker.machine.placed([place], 0.5)
        assert told == [0.5]
    broker.machine.registered(ALICE, INSTANCE, known, 1.0)
    broker.machine.away(2.0)
    broker.machine.registered(ALICE, INSTANCE, known, 3.0)
    assert told == [0.5, 2.0, 3.0]
    broker.machine.state = State.READY
    assert opened(place.message) == Moved(HERE, ALICE, INSTANCE)
    broker.hear(Moved(THERE, ALICE, INSTANCE))
    assert broker.nodes.forgotten == [(ALICE, INSTANCE)]
    assert broker.machine.take_places(10) == [Place(ALICE, None, b"")]
    # What was never here changes nothing.
    broker.hear(Moved(THERE, ALICE, INSTANCE))
    assert not broker.machine.has_places


def test_dialers_elsewhere_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "MAX_DIALERS", 10)
    broker = Broker()
    broker.nodes.ports[ALICE] = (80,)
    keys = [make_identity(100 + number).public_key for number in range(30)]
    for key in keys:
        broker.hear(Offer(THERE, 1, ALICE, 80, False, key, INSTANCE, SEALED))
    known = [broker.machine.answer(Answer(HERE, key, INSTANCE, ALICE, INSTANCE, SEALED)) for key in keys]
    assert known == [False] * 20 + [True] * 10


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, 200), st.integers(1, 255))
def test_strangers_frames_are_counted_and_nothing_else(noise: bytes, at: int, flip: int) -> None:
    broker = Broker()
    broker.nodes.ports[ALICE] = (80,)
    good = seal(Offer(THERE, 1, ALICE, 80, False, BOB, INSTANCE, SEALED))
    at %= len(good)
    altered = good[:at] + bytes((good[at] ^ flip,)) + good[at + 1 :]
    stranger = make_identity(66)
    for frame in (
        noise,
        altered,
        Sealer(stranger).seal(CLUSTER.public_key, encode(Moved(THERE, ALICE, INSTANCE))),
        Sealer(CLUSTER).seal(CLUSTER.public_key, noise),
        good + bytes(4096),
    ):
        broker.machine.receive(frame, 0.0)
    assert broker.nodes.offers == []
    assert broker.nodes.forgotten == []
    assert sum(broker.machine.counters.values()) == 5
    broker.machine.receive(good, 0.0)
    assert len(broker.nodes.offers) == 1


names = st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True)
allows = st.none() | st.integers(0, 5).map(lambda count: b"0123456789abcdef" * count)


@settings(deadline=None)
@given(names, st.binary(min_size=32, max_size=32), allows, st.integers(0, 2**40))
def test_rows_and_changes_round_trip(name: str, key: bytes, allow: bytes | None, number: int) -> None:
    row = encode_row(key, allow)
    record = NameRecord(name, key, allow)
    assert decode_row_untrusted(name, row) == record
    assert decode_change_untrusted(number, name.encode(), row) == Change(number, name, record)
    announced = b"%d %s\0" % (number, name.encode())
    assert decode_announcement_untrusted(announced + row) == Change(number, name, record)
    assert decode_announcement_untrusted(announced) == Change(number, name, None)


@settings(deadline=None)
@given(st.binary(max_size=100), st.binary(max_size=100))
def test_only_bad_message_leaves_the_decoders(one: bytes, two: bytes) -> None:
    for decode in (
        lambda: decode_announcement_untrusted(one),
        lambda: decode_announcement_untrusted(b"1 " + one + b"\0" + two),
        lambda: decode_row_untrusted("name", one),
        lambda: decode_change_untrusted(1, one, two),
        lambda: decode_untrusted(one),
    ):
        with suppress(BadMessage):
            decode()


def test_the_replica_reads_what_is_not_yet_written(tmp_path: Path) -> None:
    path = tmp_path / "names"
    replica = NameReplica(path)
    replica.claim(("one", "two"), ALICE, None)
    replica.apply(
        [
            Change(1, "two", NameRecord("two", ALICE, b"d" * 16)),
            Change(2, "zoe", NameRecord("zoe", ALICE, None)),
            Change(3, "bob", NameRecord("bob", BOB, None)),
            Change(4, "one", None),
        ]
    )
    for _ in range(2):
        assert replica.get("one") is None
        assert replica.get("two") == NameRecord("two", ALICE, b"d" * 16)
        assert replica.names_of(ALICE) == ("two", "zoe")
        assert replica.names_of(BOB) == ("bob",)
        replica.flush()
    assert replica.count == 3
    replica.apply([Change(5, "two", NameRecord("two", BOB, None))])
    replica.close()
    again = NameReplica(path)
    assert [record.name for record in again.page("", 2)] == ["bob", "two"]
    assert again.page("two", 9) == [NameRecord("zoe", ALICE, None)]
    assert again.get("two") == NameRecord("two", BOB, None)
    again.close()


def test_the_replica_is_bounded_and_survives_its_disk() -> None:
    replica = NameReplica(None, total=MAX_UNWRITTEN)
    replica.apply(
        Change(number, f"n{number}", NameRecord(f"n{number}", ALICE, None))
        for number in range(2 * MAX_UNWRITTEN)
    )
    assert replica.count == MAX_UNWRITTEN
    replica._database.execute("PRAGMA query_only = ON")
    replica.apply([Change(1, "n1", NameRecord("n1", BOB, None))])
    replica.flush()
    assert (replica.unwritten, replica.lost, replica.count) == (1, 0, MAX_UNWRITTEN)
    with pytest.raises(sqlite3.Error):
        replica.claim(("n1",), ALICE, b"")
    replica._database.execute("PRAGMA query_only = OFF")
    replica.apply([Change(1, "n1", NameRecord("n1", BOB, None))])
    replica.flush()
    assert replica.lost == 1
