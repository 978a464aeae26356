"""The lab's routers do what their kinds say, seen with plain sockets."""

from __future__ import annotations

import lab_programs as programs
import pytest

from ntcpsock.testing.natlab import Answer, Host, Lab, NatKind
from ntcpsock.testing.pytest_plugin import NatLabFactory

pytestmark = pytest.mark.lab

TELL = 7000  # port of the server that tells addresses
DELAY = 0.01
SILENCE = 1.5  # seconds without an answer that count as silence: many round trips


def tellers(lab: Lab) -> list[tuple[str, int]]:
    """Start the address teller; its two addresses."""
    lab.server.start(programs.tell_addresses, list(lab.server_addresses), TELL)
    servers = [(address, TELL) for address in lab.server_addresses]
    # UDP has no way to wait for a server: TCP waits until the last socket is there.
    lab.server.call(programs.seen_by_tcp, servers[-1], 0)
    return servers


@pytest.mark.parametrize("kind", ["default", "reject", "accept"])
def test_masquerade_keeps_the_port(nat_lab: NatLabFactory, kind: str) -> None:
    lab = nat_lab(kind, kind, delay=DELAY)
    servers = tellers(lab)
    for host, router in ((lab.host_a, lab.nat_a), (lab.host_b, lab.nat_b)):
        assert host.address.startswith("10.")
        for server in servers:
            assert host.call(programs.seen_by_tcp, server, 4001) == (router.public_address, 4001)
        assert host.call(programs.seen_by_udp_twice, servers, 4002) == [(router.public_address, 4002)] * 2
    assert lab.nat_a.public_address != lab.nat_b.public_address
    assert lab.host_a.address != lab.host_b.address


@pytest.mark.parametrize("kind", ["random", "fully-random-reject"])
def test_random_ports_depend_on_the_destination(nat_lab: NatLabFactory, kind: str) -> None:
    lab = nat_lab(kind, delay=DELAY)
    servers = tellers(lab)
    mapped = lab.host_a.call(programs.seen_by_udp_twice, servers * 2, 4002)
    assert {host for host, _ in mapped} == {lab.nat_a.public_address}
    # One flow keeps its mapping, two flows have two; one of 64 k numbers is equal by chance.
    assert mapped[:2] == mapped[2:]
    assert len({4002, mapped[0][1], mapped[1][1]}) == 3
    tcp = [lab.host_a.call(programs.seen_by_tcp, server, 4001) for server in servers]
    assert len({4001, tcp[0][1], tcp[1][1]}) == 3


@pytest.mark.parametrize("kind", ["none", "firewall"])
def test_public_host_is_seen_as_it_is(nat_lab: NatLabFactory, kind: str) -> None:
    lab = nat_lab(kind, delay=DELAY)
    server = tellers(lab)[0]
    assert lab.host_a.address == lab.nat_a.public_address
    assert lab.host_a.call(programs.seen_by_tcp, server, 4001) == (lab.host_a.address, 4001)
    assert lab.host_a.call(programs.seen_by_udp, server, 4002) == (lab.host_a.address, 4002)


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("default", "timeout"),
        ("random", "timeout"),
        ("reject", "ECONNREFUSED"),
        ("accept", "ECONNREFUSED"),
        ("random-reject", "ECONNREFUSED"),
        ("firewall", "timeout"),
        ("firewall-reject", "ECONNREFUSED"),
        ("none", "ECONNREFUSED"),
    ],
)
def test_stray_syn(nat_lab: NatLabFactory, kind: str, outcome: str) -> None:
    lab = nat_lab(kind, delay=DELAY)
    timeout = SILENCE if outcome == "timeout" else programs.PATIENCE
    assert lab.host_b.call(programs.knock, (lab.nat_a.public_address, 4001), timeout) == outcome


@pytest.mark.parametrize("same_private_range", [False, True])
def test_private_addresses_do_not_cross(nat_lab: NatLabFactory, same_private_range: bool) -> None:
    lab = nat_lab("default", "default", delay=DELAY, same_private_range=same_private_range)
    assert (lab.host_a.address == lab.host_b.address) is same_private_range
    target = lab.host_b.address if not same_private_range else "10.2.0.10"
    heard = lab.host_b.start(programs.receive_datagram, 4002, SILENCE)
    lab.host_a.call(programs.send_datagrams, (target, 4002), 10)
    assert heard.result(programs.PATIENCE) is None
    assert lab.host_a.call(programs.knock, (target, 4001), SILENCE) == "timeout"


def test_two_hosts_behind_one_nat(nat_lab: NatLabFactory) -> None:
    lab = nat_lab("default", same_nat=True, delay=DELAY)
    server = tellers(lab)[0]
    assert lab.nat_b is lab.nat_a
    for host, port in ((lab.host_a, 4001), (lab.host_b, 4003)):
        assert host.call(programs.seen_by_tcp, server, port) == (lab.nat_a.public_address, port)
    lab.host_b.start(programs.tell_addresses, [lab.host_b.address], TELL)
    seen = lab.host_a.call(programs.seen_by_tcp, (lab.host_b.address, TELL), 4001)
    assert seen == (lab.host_a.address, 4001)


def test_flushed_mapping_is_forgotten(nat_lab: NatLabFactory) -> None:
    lab = nat_lab("random", delay=DELAY)
    server = tellers(lab)[0]
    before = lab.host_a.call(programs.seen_by_udp, server, 4002)
    assert lab.host_a.call(programs.seen_by_udp, server, 4002) == before
    lab.nat_a.flush_mappings()
    assert lab.host_a.call(programs.seen_by_udp, server, 4002) != before


@pytest.mark.parametrize("late", [0.0, 0.3])
@pytest.mark.parametrize(
    ("nat_a", "nat_b"),
    [
        ("default", "default"),
        ("reject", "reject"),
        ("accept", "accept"),
        ("default", "reject"),
        ("firewall", "default"),
    ],
)
def test_simultaneous_open(nat_lab: NatLabFactory, nat_a: str, nat_b: str, late: float) -> None:
    lab = nat_lab(nat_a, nat_b)
    sides: list[tuple[Host, tuple[str, int], bytes, float]] = [
        (lab.host_a, (lab.nat_b.public_address, 4001), b"from a", 0.0),
        (lab.host_b, (lab.nat_a.public_address, 4001), b"from b", late),
    ]
    calls = [
        host.start(programs.punch, 4001, peer, lab.path_rtt, word, skew) for host, peer, word, skew in sides
    ]
    (heard_a, attempts), (heard_b, _) = [call.result(2 * programs.PATIENCE) for call in calls]
    assert (heard_a, heard_b) == (b"from b", b"from a")
    # An early SYN at a router that drops stays alive until the other side's comes.
    assert isinstance(lab.nat_b.kind, NatKind)
    assert attempts == 1 or lab.nat_b.kind.answer is not Answer.DROP
