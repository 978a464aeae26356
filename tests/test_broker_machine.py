"""The client machine and the broker's core, joined by a simulated network."""

from __future__ import annotations

import itertools

import pytest
from broker_support import BROKER, LATENCY, SEALED, SimulatedNetwork, make_identity, registration

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._servers.names import NameStore
from ntcpsock._traversal.broker.events import (
    Answered,
    Connected,
    Disconnected,
    RegistrationLost,
    TimedOut,
    WrongKeyShown,
)
from ntcpsock._traversal.broker.fields import MAX_ALLOWED, MAX_CARD, MAX_DATAGRAM, MAX_SEALED
from ntcpsock._traversal.broker.keep_alives import PROBE_TIMEOUT
from ntcpsock._traversal.broker.message import (
    Found,
    Introduce,
    Introduced,
    Lookup,
    Reason,
    Refused,
    Registered,
    Reply,
    Unreachable,
)

ROUND_TRIP = 2 * LATENCY


def test_hello_takes_two_round_trips() -> None:
    network = SimulatedNetwork()
    begin = network.now
    node = network.add(1)
    assert network.now - begin == pytest.approx(2 * ROUND_TRIP)
    assert node.welcomes[0].observed == node.address
    assert node.welcomes[0].stun == (Endpoint("198.51.100.1", 3478),)
    assert node.machine.rtt == pytest.approx(ROUND_TRIP)


def test_unknown_broker_key_takes_one_round_trip_more() -> None:
    network = SimulatedNetwork()
    begin = network.now
    node = network.add(1, know_key=False)
    assert network.now - begin == pytest.approx(3 * ROUND_TRIP)
    assert node.machine.broker_key == network.broker_identity.public_key


def hello_times(number: int) -> list[float]:
    """Of one whom nobody answers, from its start on."""
    network = SimulatedNetwork(seed=number, loss=1.0)
    node = network.add(number, start=False)
    begin = network.now
    node.machine.start(network.now)
    node.collect()
    times = [0.0]
    while times[-1] < 20:
        sent = len(network.log)
        network.run(until=lambda sent=sent: len(network.log) > sent, seconds=60)  # type: ignore[misc]
        times.append(network.now - begin)
    return times


def test_hello_schedule_without_answer() -> None:
    """The first pause is that of the round trip; from then on each is somewhere between half of what it may be and all
    of it."""
    for number in range(1, 20):
        times = hello_times(number)
        assert times[1] == 0.25
        pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
        for pause, most in zip(
            pauses[1:], itertools.chain((0.5, 1.0, 2.0, 4.0), itertools.repeat(5.0)), strict=False
        ):
            assert most / 2 <= pause <= most


def test_who_loses_a_broker_in_the_same_instant_does_not_come_again_in_the_same_instants() -> None:
    """Else a broker that cannot hear all of them at once hears as few of them each time, and nobody in between."""
    times = [hello_times(number) for number in range(1, 21)]
    assert len({round(each[4], 1) for each in times}) > 5


def test_introduction_reaches_both_in_the_same_instant() -> None:
    network = SimulatedNetwork()
    listener, dialer = network.add(1), network.add(2)
    assert listener.ask(registration("alice")) == Registered()
    found = dialer.lookup("alice")
    assert found == Found(listener.identity.public_key)
    dialer.ask(registration("bob"))
    sent = len(network.log)
    begin = network.now
    answer = dialer.introduce(listener.identity.public_key, name="alice")
    assert answer == Introduced(
        listener.identity.public_key, listener.machine.instance, b"card", listener.address.host
    )
    assert network.now - begin == pytest.approx(ROUND_TRIP)
    assert {target for _, source, target in network.log[sent:] if source == BROKER} == {
        listener.address,
        dialer.address,
    }
    (delivery,) = listener.deliveries
    assert delivery.sender == dialer.identity.public_key
    assert delivery.sender_instance == dialer.machine.instance
    assert delivery.sender_name == "bob"
    assert delivery.sealed == SEALED


def test_reply_goes_to_the_instance_that_asked() -> None:
    network = SimulatedNetwork()
    listener, dialer = network.add(1), network.add(2)
    other = network.add(3, identity=dialer.identity)
    listener.machine.reply(Reply(dialer.identity.public_key, dialer.machine.instance, SEALED))
    listener.collect()
    network.run(seconds=1)
    assert [delivery.sender for delivery in dialer.deliveries] == [listener.identity.public_key]
    assert other.deliveries == []


def test_offline_unknown_and_mismatching() -> None:
    network = SimulatedNetwork()
    listener, dialer = network.add(1), network.add(2)
    listener.ask(registration("alice"))
    stranger = make_identity(77).public_key
    assert dialer.lookup("nobody") == Unreachable(Reason.NOT_FOUND)
    assert dialer.introduce(stranger) == Unreachable(Reason.OFFLINE)
    assert dialer.introduce(stranger, name="nobody") == Unreachable(Reason.NOT_FOUND)
    # The name is another key's: the dialer's pin or its look-up is out of date.
    assert dialer.introduce(stranger, name="alice") == Unreachable(Reason.NOT_FOUND)
    listener.machine.close()
    listener.collect()
    network.run(seconds=1)
    assert dialer.introduce(listener.identity.public_key, name="alice") == Unreachable(Reason.OFFLINE)
    assert dialer.lookup("alice") == Found(listener.identity.public_key)


def test_a_node_that_does_not_listen_gets_no_introductions() -> None:
    network = SimulatedNetwork()
    idle, dialer = network.add(1), network.add(2)
    assert dialer.introduce(idle.identity.public_key) == Unreachable(Reason.OFFLINE)


@pytest.mark.parametrize("seed", range(10))
def test_everything_works_over_a_terrible_network(seed: int) -> None:
    network = SimulatedNetwork(seed=seed, loss=0.1, duplication=0.2, reordering=0.4)
    listener, dialer = network.add(1), network.add(2, know_key=False)
    assert listener.ask(registration("alice")) == Registered()
    for _ in range(20):
        assert isinstance(dialer.lookup("alice"), Found)
        assert isinstance(dialer.introduce(listener.identity.public_key), Introduced)
    assert 10 <= len(listener.deliveries) <= 400
    network.run(seconds=120)
    assert listener.machine.connected
    assert dialer.machine.connected


def test_repeated_introduce_is_delivered_again_and_answered_alike() -> None:
    network = SimulatedNetwork()
    listener, dialer = network.add(1), network.add(2)
    listener.ask(registration("alice"))
    first = dialer.introduce(listener.identity.public_key)
    assert dialer.introduce(listener.identity.public_key) == first
    assert len({delivery.sealed for delivery in listener.deliveries}) == 1
    assert len(listener.deliveries) == 2


def test_restart_of_the_broker_is_healed_within_one_keep_alive() -> None:
    network = SimulatedNetwork()
    listener = network.add(1)
    listener.ask(registration("alice"))
    network.restart_broker()
    dialer = network.add(2)
    network.run(seconds=20 + 3 * ROUND_TRIP)
    assert [type(event) for event in listener.received] == [
        Connected,
        Answered,
        Disconnected,
        Connected,
        Answered,
    ]
    assert isinstance(dialer.introduce(listener.identity.public_key, name="alice"), Introduced)


def test_requests_survive_a_restart_of_the_broker() -> None:
    network = SimulatedNetwork()
    listener = network.add(1)
    listener.ask(registration("alice"))
    network.restart_broker()
    begin = network.now
    assert isinstance(listener.lookup("alice"), Found)
    # Challenge, Welcome, answer.
    assert network.now - begin == pytest.approx(3 * ROUND_TRIP)


def test_a_reply_lost_to_a_restart_makes_the_node_say_hello() -> None:
    network = SimulatedNetwork()
    node = network.add(1)
    network.restart_broker()
    node.machine.reply(Reply(make_identity(5).public_key, bytes(8), SEALED))
    node.collect()
    network.run(seconds=1)
    assert len(node.welcomes) == 2


def test_loss_of_the_broker_is_noticed_and_its_return_too() -> None:
    network = SimulatedNetwork()
    node = network.add(1)
    node.ask(registration("alice"))
    network.broker_is_up = False
    network.run(seconds=26)
    assert Disconnected(silent=True) in node.received
    assert node.lookup("alice") is None
    assert not node.machine.connected
    assert any(isinstance(event, TimedOut) for event in node.received)
    network.run(seconds=300)
    network.broker_is_up = True
    network.run(seconds=6)
    assert len(node.welcomes) == 2
    assert len(network.core) == 1


def test_a_new_address_of_the_node_keeps_session_and_registration() -> None:
    network = SimulatedNetwork()
    listener, dialer = network.add(1), network.add(2)
    listener.ask(registration("alice"))
    session = listener.welcomes[0].session
    network.move(listener, Endpoint("203.0.113.200", 1))
    network.run(seconds=21)
    assert listener.welcomes[-1].observed == listener.address
    assert listener.welcomes[-1].session == session
    assert isinstance(dialer.introduce(listener.identity.public_key), Introduced)
    assert len(listener.deliveries) == 1
    assert len(network.core) == 2


def test_stolen_name_is_refused_and_the_old_registration_stands() -> None:
    network = SimulatedNetwork()
    owner, thief = network.add(1), network.add(2)
    assert owner.ask(registration("alice")) == Registered()
    assert thief.ask(registration("mallory")) == Registered()
    assert thief.ask(registration("alice", "new")) == Refused(Reason.NAME_TAKEN, "alice")
    assert owner.lookup("alice") == Found(owner.identity.public_key)
    assert owner.lookup("new") == Unreachable(Reason.NOT_FOUND)
    network.restart_broker()
    network.run(seconds=25)
    assert isinstance(owner.introduce(thief.identity.public_key, name="mallory"), Introduced)


def test_registration_that_a_new_broker_refuses_is_reported() -> None:
    network = SimulatedNetwork()
    node = network.add(1)
    node.ask(registration("alice"))
    network.names = NameStore(None)
    network.names.claim(("alice",), make_identity(55).public_key, None)
    network.restart_broker()
    network.run(seconds=25)
    assert RegistrationLost(Reason.NAME_TAKEN, "alice") in node.received


def test_another_key_than_the_expected_one_is_hinted_at() -> None:
    network = SimulatedNetwork()
    node = network.add(1, start=False)
    node.machine._handshake.broker_key = make_identity(5).public_key
    node.machine.start(network.now)
    node.collect()
    network.run(seconds=1)
    assert WrongKeyShown(network.broker_identity.public_key) in node.received
    assert not node.machine.connected


def test_two_instances_are_told_apart_by_port_and_age() -> None:
    network = SimulatedNetwork()
    one, two, dialer = network.add(1), network.add(2, identity=make_identity(1)), network.add(3)
    key = one.identity.public_key
    one.ask(registration("alice", ports=(80, 81), card=b"one"))
    two.ask(registration("alice", ports=(443, 81), card=b"two"))
    cards = {}
    for port in (80, 443, 81, 9):
        answer = dialer.introduce(key, port)
        assert isinstance(answer, Introduced)
        cards[port] = answer.card
    # 81: the newest of both. 9: nobody has it, the newest says so to the dialer.
    assert cards == {80: b"one", 443: b"two", 81: b"two", 9: b"two"}
    two.machine.close()
    two.collect()
    network.run(seconds=1)
    answer = dialer.introduce(key, 443)
    assert isinstance(answer, Introduced)
    assert answer.card == b"one"


def test_a_node_reaches_its_own_key() -> None:
    network = SimulatedNetwork()
    node = network.add(1)
    node.ask(registration("alice", allow=()))
    answer = node.introduce(node.identity.public_key, name="alice")
    assert isinstance(answer, Introduced)
    assert len(node.deliveries) == 1


def test_late_registration_does_not_replace_a_newer_one() -> None:
    network = SimulatedNetwork()
    listener, dialer = network.add(1), network.add(2)
    listener.machine.register(registration("alice", card=b"old"), network.now)
    (old,) = listener.machine.datagrams_to_send()
    listener.ask(registration("alice", card=b"new"))
    assert network.replay(old, listener.address) == []
    answer = dialer.introduce(listener.identity.public_key)
    assert isinstance(answer, Introduced)
    assert answer.card == b"new"


def test_silent_nodes_expire() -> None:
    network = SimulatedNetwork()
    listener, dialer = network.add(1), network.add(2)
    listener.ask(registration("alice"))
    del network.nodes[listener.address]
    network.run(seconds=58)
    assert isinstance(dialer.introduce(listener.identity.public_key), Introduced)
    network.run(seconds=4)
    assert dialer.introduce(listener.identity.public_key) == Unreachable(Reason.OFFLINE)
    network.core.expire(network.now)
    assert len(network.core) == 1


def test_largest_messages_fit_into_a_datagram() -> None:
    network = SimulatedNetwork()
    listener, dialer = network.add(1), network.add(2)
    longest = "a" * 63 + "." + "b" * 63
    ports = tuple(range(65535, 65535 - 40, -1))
    assert listener.ask(registration(longest, ports=ports, card=b"c" * MAX_CARD)) == Registered()
    assert dialer.ask(registration(longest[1:], ports=(1,), allow=("x",) * MAX_ALLOWED)) == Registered()
    offer = Introduce(listener.identity.public_key, 65535, b"s" * MAX_SEALED, longest)
    answer = dialer.ask(offer)
    assert isinstance(answer, Introduced)
    assert len(listener.deliveries) == 1
    assert max(len(datagram) for datagram, _, _ in network.log) <= MAX_DATAGRAM


def test_what_is_out_of_bounds_is_refused_before_it_is_sent() -> None:
    network = SimulatedNetwork()
    node = network.add(1)
    sent = len(network.log)
    with pytest.raises(BadMessage):
        node.machine.request(Lookup("Not A Name"), network.now)
    with pytest.raises(BadMessage):
        node.machine.request(Introduce(bytes(31), 1, SEALED), network.now)
    with pytest.raises(BadMessage):
        node.machine.reply(Reply(bytes(32), bytes(8), b"s" * (MAX_SEALED + 1)))
    with pytest.raises(BadMessage, match="datagram"):
        node.machine.register(
            registration(*(f"{i}" * 63 + ".a" * 20 for i in range(8)), card=b"c" * 600), 0.0
        )
    node.collect()
    assert len(network.log) == sent


def test_closed_machine_is_silent() -> None:
    network = SimulatedNetwork()
    node = network.add(1)
    node.machine.close()
    node.collect()
    sent = len(network.log)
    network.run(seconds=100)
    assert len(network.log) == sent
    assert node.machine.next_timer() is None


def test_a_hint_that_the_broker_is_gone_is_checked_and_proves_nothing() -> None:
    """An ICMP error can be forged: an answer outweighs it, and only silence ends the session, sooner than usual."""
    network = SimulatedNetwork()
    node = network.add(1)
    for _ in range(20):
        node.machine.doubt(network.now)
        node.collect()
        network.run(seconds=1.5)
        assert node.machine.connected
    assert len(node.welcomes) == 1
    network.broker_is_up = False
    begin = network.now
    node.machine.doubt(begin)
    node.collect()
    network.run(until=lambda: not node.machine.connected, seconds=30)
    assert network.now - begin == pytest.approx(PROBE_TIMEOUT)
    assert Disconnected(silent=True) in node.received
    # Without a session there is nothing to doubt.
    node.machine.doubt(network.now)
    network.broker_is_up = True
    network.run(until=lambda: node.machine.connected, seconds=30)
    assert node.machine.connected
