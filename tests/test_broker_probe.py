"""A machine that doubts its way to the broker: it is known again within two round trips, or lost after a moment; where
nothing has changed nothing does."""

from __future__ import annotations

import math

import pytest
from broker_support import LATENCY, SEALED, SimulatedNetwork, SimulatedNode, registration

from ntcpsock._address import Endpoint
from ntcpsock._servers.node_record import NodeRecord
from ntcpsock._traversal.broker.events import Disconnected
from ntcpsock._traversal.broker.keep_alives import KEEP_ALIVE_LEAD, PROBE_TIMEOUT
from ntcpsock._traversal.broker.message import Found, Lookup

ROUND_TRIP = 2 * LATENCY
ELSEWHERE = Endpoint("203.0.113.200", 1)


def probe(node: SimulatedNode) -> None:
    node.machine.probe(node.network.now)
    node.collect()


def test_a_new_address_is_known_after_two_round_trips() -> None:
    network = SimulatedNetwork()
    listener, dialer = network.add(1), network.add(2)
    listener.ask(registration("alice"))
    network.move(listener, ELSEWHERE)
    begin = network.now
    probe(listener)
    network.run(until=lambda: len(listener.welcomes) == 2, seconds=30)
    assert network.now - begin == pytest.approx(2 * ROUND_TRIP)
    assert listener.welcomes[-1].observed == ELSEWHERE
    assert listener.welcomes[-1].session == listener.welcomes[0].session
    dialer.introduce(listener.identity.public_key)
    assert [delivery.sealed for delivery in listener.deliveries] == [SEALED]


def test_where_nothing_has_changed_nothing_does() -> None:
    network = SimulatedNetwork()
    node = network.add(1)
    node.ask(registration("alice"))
    before = list(node.received)
    network.run(seconds=5)
    sent = len(network.log)
    for _ in range(3):
        probe(node)
    network.run(seconds=1)
    assert node.machine.connected
    assert node.received == before
    assert len(node.welcomes) == 1
    assert len(network.log) - sent == 6
    # The next keep-alive is as far as ever.
    sent = len(network.log)
    network.run(seconds=18.9 - KEEP_ALIVE_LEAD)
    assert len(network.log) == sent
    network.run(seconds=0.2)
    assert len(network.log) > sent


def test_a_way_that_does_not_answer_is_lost_after_a_moment() -> None:
    network = SimulatedNetwork()
    node = network.add(1)
    network.broker_is_up = False
    probe(node)
    network.run(seconds=PROBE_TIMEOUT - 0.01)
    assert node.machine.connected
    network.run(seconds=0.02)
    assert node.received[-1] == Disconnected(silent=True)


def test_a_long_way_has_four_round_trips() -> None:
    network = SimulatedNetwork()
    node = network.add(1)
    node.machine._round_trip.measure(0.6)
    network.broker_is_up = False
    probe(node)
    network.run(seconds=2.39)
    assert node.machine.connected
    network.run(seconds=0.02)
    assert not node.machine.connected


def test_a_keep_alive_without_an_answer_is_a_reason_too() -> None:
    network = SimulatedNetwork()
    node = network.add(1)
    network.broker_is_up = False
    network.run(seconds=20 - KEEP_ALIVE_LEAD + PROBE_TIMEOUT - 0.1)
    assert node.machine.connected
    network.run(seconds=0.2)
    assert not node.machine.connected


def test_whoever_is_lost_says_hello_at_once() -> None:
    network = SimulatedNetwork()
    node = network.add(1)
    network.broker_is_up = False
    probe(node)
    network.run(seconds=60)
    assert not node.machine.connected
    network.broker_is_up = True
    network.run(until=lambda: node.machine.next_timer() > network.now + 2.0, seconds=30)  # type: ignore[operator]
    if not node.machine.connected:
        begin = network.now
        probe(node)
        network.run(until=lambda: node.machine.connected, seconds=30)
        assert network.now - begin <= 2 * ROUND_TRIP + 1e-6


def test_requests_under_way_arrive_by_the_new_way() -> None:
    network = SimulatedNetwork()
    listener, dialer = network.add(1), network.add(2)
    listener.ask(registration("alice"))
    old = dialer.address
    network.move(dialer, ELSEWHERE)
    # Sent as if from the old address: its answer goes where nobody is any more.
    dialer.address = old
    number = dialer.machine.request(Lookup("alice"), network.now)
    dialer.collect()
    dialer.address = ELSEWHERE
    probe(dialer)
    network.run(until=lambda: number not in dialer.machine._requests, seconds=30)
    assert Found(listener.identity.public_key) in [getattr(event, "body", None) for event in dialer.received]


def test_a_restarted_broker_is_found_by_a_probe() -> None:
    network = SimulatedNetwork()
    node = network.add(1)
    node.ask(registration("alice"))
    network.restart_broker()
    probe(node)
    network.run(seconds=4 * ROUND_TRIP)
    assert network.core._registry.visible_name("alice", network.core._asker(_record(network, node)))
    assert _record(network, node).registered


def _record(network: SimulatedNetwork, node: SimulatedNode) -> NodeRecord:
    (record,) = network.core._registry.instances(node.identity.public_key, network.now)
    return record


def test_closed_and_lazy_machines() -> None:
    network = SimulatedNetwork()
    node, lazy = network.add(1), network.add(2, keep_alive_interval=math.inf)
    assert (node.machine.is_lazy, lazy.machine.is_lazy) == (False, True)
    node.machine.close()
    node.collect()
    sent = len(network.log)
    probe(node)
    assert len(network.log) == sent


def test_nothing_goes_another_way_after_the_end() -> None:
    """A hello there would open a session anew, of which nobody knows."""
    network = SimulatedNetwork()
    node = network.add(1)
    node.machine.try_way(network.now)
    node.machine.close()
    assert not node.machine.moves_to_send()


@pytest.mark.parametrize("seed", range(5))
def test_over_a_terrible_network_too(seed: int) -> None:
    network = SimulatedNetwork(seed=seed, loss=0.3, duplication=0.2, reordering=0.3)
    node = network.add(1)
    node.ask(registration("alice"))
    for number in range(20):
        network.move(node, Endpoint("203.0.113.200", 1 + number))
        probe(node)
        network.run(
            until=lambda: node.machine.connected and _record(network, node).source.port == node.address.port,
            seconds=120,
        )
        assert _record(network, node).source.port == node.address.port
    network.run(seconds=30)
    assert _record(network, node).registered
