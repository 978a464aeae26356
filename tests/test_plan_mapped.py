"""Mapped ports as a table: how connections are called, in which order they are tried, what is passed on."""

from __future__ import annotations

import socket

import pytest
import trio

from ntcpsock._address import Endpoint
from ntcpsock._traversal.candidate import name_of_connection, name_of_pair, usable_candidates
from ntcpsock._traversal.gather import WarmPort
from ntcpsock._traversal.nat import judge_external_address
from ntcpsock._traversal.plan import make_plan, mapping_delay
from ntcpsock._traversal.punch.message import MAX_CANDIDATES_OF_TRANSPORT, Candidate, NATProfile

ALL = ("public", "lan", "port-mapped", "tcp-open")
DIALER, LISTENER, CARRIERS = "192.0.2.1", "198.51.100.1", "100.64.1.2"


def host(address: str) -> Candidate:
    return Candidate("host", "tcp", address, 1000)


def srflx(address: str, port: int = 1000) -> Candidate:
    return Candidate("srflx", "tcp", address, port)


def mapped(address: str, port: int = 1000) -> Candidate:
    return Candidate("mapped", "tcp", address, port)


BEHIND_NAT = (host("10.0.0.2"), srflx(DIALER))
#: A router that keeps ports, one that does not, and one with a carrier's NAT before it.
KEEPING = (host("192.168.1.9"), srflx(LISTENER), mapped(LISTENER))
CHANGING = (host("192.168.1.9"), srflx(LISTENER, 5555), mapped(LISTENER))
CARRIER = (host("192.168.1.9"), srflx(LISTENER), mapped(CARRIERS))
SAME_CARRIER = (host("10.0.0.2"), srflx(LISTENER, 7777))


@pytest.mark.parametrize(
    ("local", "remote", "expected"),
    [
        (BEHIND_NAT, KEEPING, [("port-mapped", 1000, 0.0), ("tcp-open", 1000, 0.0), ("lan", 1000, 0.3)]),
        (BEHIND_NAT, CHANGING, [("port-mapped", 1000, 0.0), ("tcp-open", 5555, 0.0), ("lan", 1000, 0.3)]),
        # All that leaves the listener comes from the mapped port: no harm, and the same name at both ends.
        (KEEPING, BEHIND_NAT, [("port-mapped", 1000, 0.0), ("lan", 1000, 0.3)]),
        # Its own SYN would lead answers to a port that the dialer does not know.
        (CHANGING, BEHIND_NAT, [("tcp-open", 1000, 0.15), ("lan", 1000, 0.3)]),
        # Behind a carrier's NAT the mapping is of use to the carrier's other customers.
        (SAME_CARRIER, CARRIER, [("port-mapped", 1000, 0.0), ("tcp-open", 1000, 0.0), ("lan", 1000, 0.05)]),
        (BEHIND_NAT, CARRIER, [("tcp-open", 1000, 0.0), ("port-mapped", 1000, 0.3), ("lan", 1000, 0.35)]),
    ],
)
def test_plans(
    local: tuple[Candidate, ...], remote: tuple[Candidate, ...], expected: list[tuple[str, int, float]]
) -> None:
    targets = usable_candidates(remote, "tcp", loopback_allowed=False)
    (proven,) = (candidate.host for candidate in remote if candidate.type == "srflx")
    plan = make_plan(local, targets, techniques=ALL, rtt=0.1, budget=8.0, proven_host=proven)
    got = [(attempt.technique, attempt.remote.port, round(attempt.delay, 6)) for attempt in plan]
    assert got == expected


def test_an_endpoint_that_is_mapped_can_still_be_punched_to() -> None:
    for technique in ("port-mapped", "tcp-open"):
        targets = usable_candidates(KEEPING, "tcp", loopback_allowed=False)
        plan = make_plan(
            BEHIND_NAT, targets, techniques=(technique,), rtt=0.1, budget=8.0, proven_host=LISTENER
        )
        assert [(attempt.technique, attempt.max_tries > 1) for attempt in plan] == [(technique, True)]


@pytest.mark.parametrize(
    ("address", "tries"),
    [(LISTENER, 64), ("203.0.113.9", 1), (CARRIERS, 1)],
)
def test_only_the_proven_address_gets_more_than_one_syn(address: str, tries: int) -> None:
    plan = make_plan(BEHIND_NAT, [mapped(address)], techniques=ALL, rtt=0.1, budget=8.0, proven_host=LISTENER)
    assert [attempt.max_tries for attempt in plan] == [tries]


@pytest.mark.parametrize("listener", [KEEPING, CHANGING])
def test_both_ends_call_a_connection_alike(listener: tuple[Candidate, ...]) -> None:
    assert name_of_pair(BEHIND_NAT, mapped(LISTENER)) == "port-mapped"
    # It comes from where the dialer's NAT lets it out: known or not.
    for port in (1000, 4321):
        assert name_of_connection(listener, BEHIND_NAT, Endpoint(DIALER, port)) == "port-mapped"
    assert name_of_connection(listener, BEHIND_NAT, Endpoint("10.0.0.2", 1000)) == "lan"


PUBLIC = (host("203.0.113.5"),)


def test_a_public_side_makes_a_mapping_superfluous() -> None:
    assert name_of_pair(PUBLIC, mapped(LISTENER)) == "public"


SAME, CHANGES, UNKNOWN = (
    NATProfile(True, mapping) for mapping in ("endpoint-independent", "address-and-port-dependent", "unknown")
)


@pytest.mark.parametrize(
    ("local", "remote", "candidates", "techniques", "delay"),
    [
        (CHANGES, SAME, BEHIND_NAT, ALL, 0.0),
        (SAME, CHANGES, BEHIND_NAT, ALL, 0.0),
        (SAME, UNKNOWN, BEHIND_NAT, ALL, 0.5),
        (SAME, SAME, BEHIND_NAT, ALL, 1.0),
        (CHANGES, CHANGES, KEEPING, ALL, 1.5),
        (CHANGES, CHANGES, PUBLIC, ALL, 1.5),
        (SAME, SAME, BEHIND_NAT, ("port-mapped",), 0.0),
    ],
)
def test_when_a_dialer_asks_its_router(
    local: NATProfile,
    remote: NATProfile,
    candidates: tuple[Candidate, ...],
    techniques: tuple[str, ...],
    delay: float,
) -> None:
    assert mapping_delay(local, remote, candidates, techniques=techniques) == delay


@pytest.mark.parametrize(
    ("external", "seen", "verdict"),
    [
        (LISTENER, [LISTENER], "public"),
        (LISTENER, [], "public"),
        (LISTENER, ["10.0.0.1"], "public"),
        (LISTENER, [DIALER], "elsewhere"),
        (CARRIERS, [LISTENER], "double NAT"),
        ("192.168.0.2", [], "double NAT"),
    ],
)
def test_verdicts(external: str, seen: list[str], verdict: str) -> None:
    assert judge_external_address(external, seen) == verdict


async def test_a_warm_port_takes_and_loses_its_mapping() -> None:
    with trio.socket.from_stdlib_socket(socket.socket()) as listener:
        warm = WarmPort(1000, (listener,), BEHIND_NAT)
        assert warm.set_mapped(Endpoint(DIALER, 1000))
        assert list(warm.candidates) == [*BEHIND_NAT, mapped(DIALER)]
        assert not warm.set_mapped(Endpoint(DIALER, 1000))
        assert warm.set_mapped(Endpoint(CARRIERS, 1000))
        assert list(warm.candidates) == [*BEHIND_NAT, mapped(CARRIERS)]
        assert warm.set_mapped(None)
        # Another address than the world sees may be somebody else's.
        assert not warm.set_mapped(Endpoint("203.0.113.9", 1000))
        assert list(warm.candidates) == [*BEHIND_NAT]
        warm.candidates = tuple(srflx(DIALER, port) for port in range(1, MAX_CANDIDATES_OF_TRANSPORT + 1))
        assert warm.set_mapped(Endpoint(DIALER, 1000))
        assert len(warm.candidates) == MAX_CANDIDATES_OF_TRANSPORT
        assert warm.candidates[-1] == mapped(DIALER)


@pytest.mark.parametrize(
    ("candidates", "profile", "needed"),
    [
        (BEHIND_NAT, NATProfile(True), True),
        (BEHIND_NAT, NATProfile(), True),  # no STUN server answered
        ((host("10.0.0.2"),), NATProfile(False), False),
        (PUBLIC, NATProfile(), False),
        ((host("127.0.0.1"),), NATProfile(), False),
    ],
)
async def test_which_ports_need_a_mapping(
    candidates: tuple[Candidate, ...], profile: NATProfile, needed: bool
) -> None:
    with trio.socket.from_stdlib_socket(socket.socket()) as listener:
        assert WarmPort(1000, (listener,), candidates, profile).needs_mapping is needed
