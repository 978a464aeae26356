"""The user-space NAT as a pure machine: mapping, filtering, allocation, hairpinning, strays; table by table."""

from __future__ import annotations

import itertools

import natlab_packets as p
import pytest
from natlab_world import INNER, OTHER, PUBLIC, REMOTES, STRANGER, World, both

from ntcpsock.testing.natlab.router.behaviour import (
    Allocation,
    Filtering,
    Hairpin,
    Mapping,
    StrayAnswer,
)
from ntcpsock.testing.natlab.router.words import parse_behaviour

PROTOCOLS = pytest.mark.parametrize("protocol", ["udp", "tcp"])


@PROTOCOLS
@pytest.mark.parametrize("allocation", list(Allocation))
@pytest.mark.parametrize("filtering", list(Filtering))
@pytest.mark.parametrize("mapping", list(Mapping))
def test_mapping_and_filtering(
    mapping: Mapping, filtering: Filtering, allocation: Allocation, protocol: str
) -> None:
    world = World(both(mapping=mapping, filtering=filtering, allocation=allocation))
    ports = [world.mapped(protocol, INNER, remote) for remote in REMOTES]
    assert None not in ports
    per_session = allocation is Allocation.PER_SESSION and protocol == "tcp"
    distinct = {
        Mapping.ENDPOINT_INDEPENDENT: 1,
        Mapping.ADDRESS_DEPENDENT: 2,
        Mapping.ADDRESS_AND_PORT_DEPENDENT: 3,
    }[mapping]
    assert len(set(ports)) == (3 if per_session else distinct)
    if mapping is Mapping.ADDRESS_DEPENDENT and not per_session:
        assert ports[0] == ports[1]
    assert [world.mapped(protocol, INNER, remote) for remote in REMOTES] == ports  # retransmitted

    world = World(both(mapping=mapping, filtering=filtering, allocation=allocation))
    port = world.mapped(protocol, INNER, REMOTES[0])
    assert port is not None
    expected = {
        Filtering.ENDPOINT_INDEPENDENT: [True, True, True],
        Filtering.ADDRESS_DEPENDENT: [True, True, False],
        Filtering.ADDRESS_AND_PORT_DEPENDENT: [True, False, False],
    }[filtering]
    # The permitted one last: an earlier guest must not open the door for the next.
    assert [world.lets_in(protocol, remote, port) for remote in reversed(REMOTES)] == expected[::-1]


@PROTOCOLS
def test_words_of_both_protocols_are_apart(protocol: str) -> None:
    behaviour = parse_behaviour("udp:eim+tcp:apdm+udp:preserving+tcp:sequential=3")
    world = World(behaviour)
    ports = [world.mapped(protocol, INNER, remote) for remote in REMOTES]
    if protocol == "udp":
        assert ports == [4001] * 3
    else:
        first, second, third = (port or 0 for port in ports)
        assert (second - first, third - second) == (3, 3)


@PROTOCOLS
@pytest.mark.parametrize("delta", [1, 2, -1, 7])
def test_sequential(protocol: str, delta: int) -> None:
    world = World(
        both(mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT, allocation=Allocation.SEQUENTIAL, delta=delta)
    )
    ports = [world.mapped(protocol, INNER, ("11.22.55.2", 1000 + i)) or 0 for i in range(20)]
    assert {after - before for before, after in itertools.pairwise(ports)} == {delta}


@PROTOCOLS
@pytest.mark.parametrize("offset", [0, 100])
def test_preserving(protocol: str, offset: int) -> None:
    world = World(both(offset=offset))
    assert world.mapped(protocol, INNER, REMOTES[0]) == 4001 + offset
    # Taken: the next one (no overloading, RFC 4787 REQ-3).
    assert world.mapped(protocol, OTHER, REMOTES[0]) == 4002 + offset


@PROTOCOLS
def test_band(protocol: str) -> None:
    world = World(both(mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT, allocation=Allocation.BAND, band=64))
    ports = [world.mapped(protocol, INNER, ("11.22.55.2", 1000 + i)) for i in range(70)]
    given = [port for port in ports if port is not None]
    assert len(given) == len(set(given)) == 64  # then the block is full
    assert len({port // 64 for port in given}) == 1
    assert sorted(given) != given
    other = world.mapped(protocol, OTHER, REMOTES[0])
    assert other is not None
    assert other // 64 != given[0] // 64


@PROTOCOLS
def test_random(protocol: str) -> None:
    world = World(both(mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT, allocation=Allocation.RANDOM))
    ports = [world.mapped(protocol, INNER, ("11.22.55.2", 1000 + i)) or 0 for i in range(200)]
    assert len(set(ports)) == 200
    assert min(ports) >= 1024
    assert max(ports) - min(ports) > 30_000


def test_per_session() -> None:
    world = World(both(allocation=Allocation.PER_SESSION))
    ports = [world.mapped("tcp", INNER, REMOTES[0], sequence) for sequence in range(0, 5000, 1000)]
    assert len(set(ports)) == 5
    assert world.mapped("tcp", INNER, REMOTES[0], 4000) == ports[-1]  # retransmitted
    assert world.lets_in("tcp", REMOTES[0], ports[-1] or 0)
    assert not world.lets_in("tcp", REMOTES[0], ports[0] or 0)


@PROTOCOLS
@pytest.mark.parametrize("hairpin", list(Hairpin))
def test_hairpin(protocol: str, hairpin: Hairpin) -> None:
    world = World(both(hairpin=hairpin, filtering=Filtering.ENDPOINT_INDEPENDENT))
    port = world.mapped(protocol, INNER, REMOTES[0])
    target = (PUBLIC, port or 0)
    packet = p.udp(OTHER, target) if protocol == "udp" else p.tcp(OTHER, target, p.SYN, 5)
    got = world.turned(packet)
    if hairpin is Hairpin.NONE:
        assert got is None
        return
    assert got is not None
    assert p.ends(got) == ((PUBLIC, 4002) if hairpin is Hairpin.EXTERNAL else OTHER, INNER)


def test_simultaneous_open_over_a_hairpin() -> None:
    world = World(parse_behaviour("hairpin+conntrack"))
    one, other = (PUBLIC, 4001), (PUBLIC, 4002)
    # The first mapping exists because its owner talked to the server.
    assert world.mapped("tcp", INNER, REMOTES[0]) == 4001
    assert world.mapped("tcp", OTHER, REMOTES[0]) == 4002
    assert world.turned(p.tcp(INNER, other, p.SYN, 10)) is None  # stray at the other mapping
    got = world.turned(p.tcp(OTHER, one, p.SYN, 20))
    assert got is not None
    assert p.ends(got) == (other, INNER)
    got = world.turned(p.tcp(INNER, other, p.SYN | p.ACK, 10, 21))
    assert got is not None
    assert p.ends(got) == (one, OTHER)
    assert world.turned(p.tcp(OTHER, one, p.ACK, 21, 11)) is not None


@pytest.mark.parametrize("answer", list(StrayAnswer))
@pytest.mark.parametrize("hairpinned", [False, True])
def test_stray_syn(answer: StrayAnswer, hairpinned: bool) -> None:
    world = World(both(answer=answer, hairpin=Hairpin.EXTERNAL))
    target = (PUBLIC, 9999)
    if hairpinned:
        got = world.turned(p.tcp(INNER, target, p.SYN, 77))
        sender = INNER
    else:
        got = world.answer(p.tcp(STRANGER, target, p.SYN, 77))
        sender = STRANGER
    if answer is StrayAnswer.DROP:
        assert got is None
    elif answer is StrayAnswer.RST:
        assert got is not None
        assert p.ends(got) == (target, sender)
        assert p.flags_of(got) == p.RST | p.ACK
        assert int.from_bytes(got[28:32], "big") == 78
    else:
        assert got is not None
        assert p.ends(got) == ((PUBLIC, 0), (sender[0], 0))
        assert (got[20], got[21]) == (3, 3)
        assert p.ends(got[28:]) == (sender, target)
    assert world.answer(p.tcp(STRANGER, target, p.RST, 77)) is None


@pytest.mark.parametrize("answer", list(StrayAnswer))
def test_stray_datagram(answer: StrayAnswer) -> None:
    world = World(both(answer=answer))
    got = world.answer(p.udp(STRANGER, (PUBLIC, 9999), b"z"))
    assert (got is None) is (answer is StrayAnswer.DROP)
    assert got is None or (got[9], got[20], got[21]) == (p.ICMP, 3, 3)
