"""Forwarded ports of a user-space NAT: who gets in, what leaves how, and what else stays as it was."""

from __future__ import annotations

import natlab_packets as p
import pytest
from natlab_world import INNER, OTHER, PUBLIC, REMOTES, STRANGER, World, both

from ntcpsock.testing.natlab import Allocation, Filtering, Mapping

PORT = INNER[1]
FORWARDED = (PUBLIC, PORT)


def strict(allocation: Allocation) -> World:
    """A NAT that lets nobody in who was not asked."""
    return World(
        both(
            mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT,
            filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT,
            allocation=allocation,
        )
    )


def inner_of(place: p.Place) -> tuple[int, int]:
    return p.number(place[0]), place[1]


@pytest.fixture(params=[Allocation.PRESERVING, Allocation.RANDOM])
def world(request: pytest.FixtureRequest) -> World:
    made = strict(request.param)
    made.nat.forward(PORT, inner_of(INNER))
    return made


def test_a_stranger_gets_in_and_the_answer_comes_from_the_port(world: World) -> None:
    for stranger in (STRANGER, REMOTES[0]):
        assert world.lets_in("tcp", stranger, PORT)
        answer = world.out(p.tcp(INNER, stranger, p.SYN | p.ACK, 700, 901))
        assert answer is not None
        assert p.ends(answer) == (FORWARDED, stranger)
    assert not world.lets_in("udp", STRANGER, PORT)


def test_own_flows_are_mapped_as_ever(world: World) -> None:
    assert world.lets_in("tcp", STRANGER, PORT)
    assert world.mapped("tcp", INNER, REMOTES[0]) is not None
    assert world.lets_in("tcp", REMOTES[2], PORT)
    answer = world.out(p.tcp(INNER, STRANGER, p.SYN | p.ACK, 700, 901))
    assert answer is not None
    assert p.ends(answer) == (FORWARDED, STRANGER)


def test_a_port_that_a_flow_of_its_host_has_is_forwarded_too() -> None:
    world = strict(Allocation.PRESERVING)
    assert world.mapped("tcp", INNER, REMOTES[0]) == PORT
    assert not world.lets_in("tcp", STRANGER, PORT)
    world.nat.forward(PORT, inner_of(INNER))
    assert world.lets_in("tcp", STRANGER, PORT)
    # The flow itself goes on.
    assert world.mapped("tcp", INNER, REMOTES[0], 501) == PORT


def test_no_other_host_gets_the_port() -> None:
    world = strict(Allocation.PRESERVING)
    world.nat.forward(PORT, inner_of(INNER))
    assert world.mapped("tcp", OTHER, REMOTES[0]) not in (None, PORT)
    assert world.lets_in("tcp", STRANGER, PORT)


def test_the_end_of_it_lets_sessions_go_on(world: World) -> None:
    assert world.lets_in("tcp", STRANGER, PORT)
    world.nat.forward(PORT, None)
    assert not world.lets_in("tcp", REMOTES[0], PORT)
    answer = world.out(p.tcp(INNER, STRANGER, p.SYN | p.ACK, 700, 901))
    assert answer is not None
    assert p.ends(answer) == (FORWARDED, STRANGER)


def test_a_restart_forgets_it(world: World) -> None:
    world.nat.forget()
    assert not world.lets_in("tcp", STRANGER, PORT)
