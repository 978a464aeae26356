"""What a peer's word alone makes us send: a table of lies, and how often each may be told."""

from __future__ import annotations

import pytest

from ntcpsock._address import Endpoint
from ntcpsock._traversal.aim import (
    CHECKS_AT_ONCE,
    CHECKS_OF_PRIVATE_HOST,
    CHECKS_PER_SECOND,
    MAX_PROVEN_ENDPOINTS,
    MAX_UNPROVEN_HOSTS,
    PUBLIC_HOST_PAUSE,
    Aim,
    SharedAim,
    Standpoint,
)
from ntcpsock._traversal.plan import UNPROVEN_TRIES, PlannedAttempt
from ntcpsock._traversal.punch.message import Candidate

BROKER, STUN = "198.51.100.53", "198.51.100.54"
US = Standpoint("192.0.2.1", frozenset({BROKER, STUN}), frozenset({"10.0.0.2"}))
PEER = "203.0.113.7"


def candidate(host: str, port: int = 30000) -> Candidate:
    return Candidate("srflx", "tcp", host, port)


@pytest.mark.parametrize(
    ("host", "port", "dialled"),
    [
        (PEER, 30000, True),
        (PEER, 443, True),  # where the broker sees the peer any port may be its
        ("203.0.113.99", 30000, True),  # a victim, or the peer's other address: one check
        ("198.51.100.1", 30000, True),  # documentation ranges are public
        ("192.168.1.9", 30000, True),  # a neighbour, or nobody
        ("203.0.113.99", 80, False),
        ("203.0.113.99", 1023, False),
        ("192.168.1.1", 53, False),
        (PEER, 0, False),
        (BROKER, 30000, False),
        (BROKER, 6060, False),
        (STUN, 3478, False),
        ("10.0.0.2", 30000, False),  # our own
        ("127.0.0.1", 30000, False),
        ("127.9.9.9", 30000, False),
        ("0.0.0.0", 30000, False),
        ("0.1.2.3", 30000, False),
        ("224.0.0.251", 5353, False),
        ("255.255.255.255", 30000, False),
        ("169.254.169.254", 30000, False),
        ("::1", 30000, False),
        ("fe80::1", 30000, False),
        ("ff02::1", 30000, False),
        ("::", 30000, False),
    ],
)
def test_lies(host: str, port: int, dialled: bool) -> None:
    lie = candidate(host, port)
    assert US.targets([lie], "tcp", PEER) == ((lie,) if dialled else ())


@pytest.mark.parametrize(
    ("observed", "peer", "proven"),
    [
        ("192.0.2.1", PEER, PEER),
        ("10.0.0.5", "10.0.0.6", "10.0.0.6"),  # a broker in our own network
        ("10.0.0.5", PEER, PEER),
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("192.0.2.1", "127.0.0.1", ""),  # on the broker's machine: not on ours
        ("192.0.2.1", "10.0.0.6", ""),  # in the broker's network, which is not ours
        ("10.0.0.5", "127.0.0.1", ""),
        ("192.0.2.1", "", ""),
    ],
)
def test_where_the_broker_sees_a_peer(observed: str, peer: str, proven: str) -> None:
    assert Standpoint(observed).proven(peer) == proven


def test_who_is_seen_at_a_place_may_be_dialled_there() -> None:
    """A node on the broker's machine; one on our own; one in a network without any router."""
    assert US.targets([candidate(BROKER)], "tcp", BROKER)
    assert US.targets([candidate("10.0.0.2")], "tcp", US.observed)
    neighbour = Standpoint("169.254.3.4").proven("169.254.1.2")
    assert Standpoint("169.254.3.4").targets([candidate("169.254.1.2")], "tcp", neighbour)


def test_loopback_is_for_who_shares_the_machine() -> None:
    here = Standpoint("127.0.0.1", frozenset({"127.0.0.1"}), frozenset({"10.0.0.2"}))
    assert here.targets([candidate("127.0.0.1", 80), candidate("127.0.0.2")], "tcp", "127.0.0.1")


def check(host: str, port: int = 1) -> PlannedAttempt:
    return PlannedAttempt("public", Endpoint(host, port), 0.0, 1.0, UNPROVEN_TRIES)


def test_one_dial_checks_a_host_once_and_few_hosts() -> None:
    aim = Aim()
    assert [aim.allows(check("203.0.113.99", port)) for port in range(5)] == [
        True,
        False,
        False,
        False,
        False,
    ]
    assert sum(aim.allows(check("192.168.0.9", port)) for port in range(9)) == CHECKS_OF_PRIVATE_HOST
    assert sum(aim.allows(check(f"10.0.0.{number}")) for number in range(50)) == MAX_UNPROVEN_HOSTS - 2


def test_an_ipv6_network_gets_what_a_host_gets() -> None:
    """Who owns one address of a /64 owns them all: a liar must not reach a victim at each of them."""
    aim, shared = Aim(), SharedAim()
    for allows in (aim.allows, lambda planned: shared.allows(planned, 0.0)):
        assert allows(check("2001:db8::9", 80))
        assert not any(allows(check(f"2001:db8::{n}", 80)) for n in range(10, 99))
        assert allows(check("2001:db8:0:1::9", 80))


def test_what_else_a_peer_has_proved_is_dialled_as_it_is() -> None:
    assert US.also_proven(["2001:db8::9", "127.0.0.1"]) == ("2001:db8::9",)
    named = [candidate("2001:db8::9", 22)]
    assert US.targets(named, "tcp", PEER) == ()
    assert US.targets(named, "tcp", PEER, ("2001:db8::9",)) == tuple(named)


def test_one_dial_has_few_endpoints_even_where_the_peer_is_seen() -> None:
    aim = Aim()
    allowed = [
        aim.allows(PlannedAttempt("tcp-open", Endpoint(PEER, port), 0.0, 9.0)) for port in range(1, 999)
    ]
    assert sum(allowed) == MAX_PROVEN_ENDPOINTS


def test_dials_without_end_check_a_public_host_once_a_second() -> None:
    shared = SharedAim()
    sent = [now / 100 for now in range(1000) if shared.allows(check("203.0.113.99", now), now / 100)]
    assert len(sent) == 10 / PUBLIC_HOST_PAUSE


def test_dials_without_end_check_few_hosts_in_all() -> None:
    """Private addresses in bulk, public ones in bulk, for ten seconds."""
    for network in ("10.0.{}.{}", "203.{}.113.{}"):
        shared = SharedAim()
        sent = sum(
            shared.allows(check(network.format(number // 250, number % 250)), number / 1000)
            for number in range(10_000)
        )
        assert sent <= CHECKS_AT_ONCE + 10 * CHECKS_PER_SECOND


def test_what_the_broker_proves_is_not_shared_out() -> None:
    shared = SharedAim()
    proven = PlannedAttempt("tcp-open", Endpoint(PEER, 5), 0.0, 9.0)
    assert all(shared.allows(proven, 0.0) for _ in range(10_000))
    assert shared.allows(check("203.0.113.99"), 0.0)
