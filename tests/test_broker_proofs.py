"""Addresses that a node proves to the broker beside the one of its session, in virtual time."""

from __future__ import annotations

import pytest
from broker_support import BROKER, LATENCY, SimulatedNetwork, SimulatedNode, registration

from ntcpsock._address import Endpoint
from ntcpsock._traversal.broker.fields import MAX_PROVED
from ntcpsock._traversal.broker.message import Introduced

SIX = Endpoint("2001:db8::1", 50000)
SECOND = Endpoint("203.0.113.77", 50001)


def proved(asker: SimulatedNode, node: SimulatedNode) -> tuple[str, ...]:
    """What an introduction to `node` tells."""
    answer = asker.introduce(node.identity.public_key)
    assert isinstance(answer, Introduced)
    assert answer.observed_host == node.address.host
    return answer.also_observed


def two_nodes(network: SimulatedNetwork) -> tuple[SimulatedNode, SimulatedNode]:
    alice, bob = network.add(1), network.add(2)
    assert alice.ask(registration("alice")) is not None
    return alice, bob


def test_it_is_told_to_both_sides_of_an_introduction() -> None:
    network = SimulatedNetwork()
    alice, bob = two_nodes(network)
    assert not proved(bob, alice)
    alice.prove(SIX)
    bob.prove(SECOND)
    network.run(seconds=1)
    assert proved(bob, alice) == (SIX.host,)
    network.run(seconds=1)
    assert alice.deliveries[-1].observed_host == bob.address.host
    assert alice.deliveries[-1].also_observed == (SECOND.host,)


def test_it_takes_two_round_trips() -> None:
    network = SimulatedNetwork()
    alice, _ = two_nodes(network)
    before = len(network.log)
    alice.prove(SIX)
    network.run(seconds=4 * LATENCY + 0.001)
    sent = [(source, destination) for _, source, destination in network.log[before:]]
    assert sent == [(SIX, BROKER), (BROKER, SIX)] * 2


def test_without_return_routability_nothing_is_proved() -> None:
    """The node sends from an address at which it does not receive: a victim's."""
    network = SimulatedNetwork()
    alice, bob = two_nodes(network)
    alice.prove(SIX)
    del network.nodes[SIX]
    network.run(seconds=300)
    assert proved(bob, alice) == ()
    to_victim = [datagram for datagram, _, destination in network.log if destination == SIX]
    from_victim = [datagram for datagram, source, _ in network.log if source == SIX]
    # No more than it was sent, and soon one each keep-alive only.
    assert sum(map(len, to_victim)) <= sum(map(len, from_victim))
    assert len(from_victim) < 30


def test_somebody_elses_proof_is_not_ours() -> None:
    """A recorded proof, sent again from another address, or in another node's session."""
    network = SimulatedNetwork()
    alice, bob = two_nodes(network)
    alice.prove(SIX)
    network.run(seconds=1)
    proofs = [datagram for datagram, source, _ in network.log if source == SIX]
    victim = Endpoint("192.0.2.66", 9)
    for datagram in proofs:
        for answer, destination in network.replay(datagram, victim):
            assert destination == victim
            assert len(answer) <= len(datagram)
    assert proved(bob, alice) == (SIX.host,)


def test_a_repeated_proof_is_a_replay() -> None:
    network = SimulatedNetwork()
    alice, _ = two_nodes(network)
    alice.prove(SIX)
    network.run(seconds=1)
    with_cookie = [datagram for datagram, source, _ in network.log if source == SIX][-1]
    assert network.replay(with_cookie, SIX) == []
    assert network.core.dropped["replay"] == 1


def test_it_is_proved_again_and_again_and_forgotten_where_it_is_not() -> None:
    network = SimulatedNetwork()
    alice, bob = two_nodes(network)
    alice.prove(SIX)
    network.run(seconds=300)
    assert proved(bob, alice) == (SIX.host,)
    del network.nodes[SIX]
    network.run(seconds=200)
    assert proved(bob, alice) == ()
    network.nodes[SIX] = alice
    network.run(seconds=60)
    assert proved(bob, alice) == (SIX.host,)


def test_a_restarted_broker_is_told_at_once() -> None:
    network = SimulatedNetwork()
    alice, bob = two_nodes(network)
    alice.prove(SIX)
    network.run(seconds=1)
    network.restart_broker()
    network.run(until=lambda: len(alice.welcomes) == 2 and len(bob.welcomes) == 2, seconds=60)
    network.run(seconds=1)
    assert proved(bob, alice) == (SIX.host,)


def test_a_node_that_left_is_nowhere() -> None:
    network = SimulatedNetwork()
    alice, _ = two_nodes(network)
    alice.prove(SIX)
    network.run(seconds=1)
    alice.machine.close()
    alice.collect()
    network.run(seconds=1)
    (node, *_) = network.core._registry.instances(alice.identity.public_key, network.now)
    assert node.proved == ()


@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_no_more_than_a_few_are_kept(loss: float) -> None:
    network = SimulatedNetwork(loss=loss, seed=4)
    alice, bob = two_nodes(network)
    alice.prove(*(Endpoint(f"2001:db8::{number}", 1) for number in range(1, 8)))
    network.run(seconds=30)
    network.loss = 0.0
    assert len(proved(bob, alice)) == MAX_PROVED


def test_the_address_of_the_session_is_not_told_twice() -> None:
    network = SimulatedNetwork()
    alice, bob = two_nodes(network)
    alice.prove(Endpoint(alice.address.host, 7), SIX)
    network.run(seconds=1)
    assert proved(bob, alice) == (SIX.host,)
