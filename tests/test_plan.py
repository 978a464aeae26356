"""Plans as a table: which attempts, in which order, and that both sides name one pair alike."""

import pytest

from ntcpsock._address import Endpoint
from ntcpsock._traversal.candidate import name_of_connection, name_of_pair, usable_candidates
from ntcpsock._traversal.nat import profile_from_observations
from ntcpsock._traversal.nominate import Nomination, OneTimeToken
from ntcpsock._traversal.plan import make_plan
from ntcpsock._traversal.punch.message import MAX_CANDIDATES, Candidate, NATProfile

ALL = ("public", "lan", "tcp-open")


def host(address: str, port: int = 1000) -> Candidate:
    return Candidate("host", "tcp", address, port)


def srflx(address: str, port: int = 1000) -> Candidate:
    return Candidate("srflx", "tcp", address, port)


BEHIND_A = (host("10.0.0.2"), srflx("192.0.2.1"))
BEHIND_B = (host("192.168.1.9"), srflx("198.51.100.1"))
ALSO_BEHIND_A = (host("10.0.0.3"), srflx("192.0.2.1", 1001))
PUBLIC = (host("203.0.113.5"),)
NO_STUN = (host("10.0.0.7"),)


@pytest.mark.parametrize(
    ("local", "remote", "expected"),
    [
        (BEHIND_A, BEHIND_B, [("tcp-open", "198.51.100.1", 0.0), ("lan", "192.168.1.9", 0.3)]),
        (BEHIND_A, ALSO_BEHIND_A, [("lan", "10.0.0.3", 0.0), ("tcp-open", "192.0.2.1", 0.0)]),
        (BEHIND_A, PUBLIC, [("public", "203.0.113.5", 0.0)]),
        (PUBLIC, BEHIND_A, [("public", "192.0.2.1", 0.0), ("lan", "10.0.0.2", 0.3)]),
        (NO_STUN, BEHIND_A, [("lan", "10.0.0.2", 0.0), ("tcp-open", "192.0.2.1", 0.0)]),
        (BEHIND_A, NO_STUN, [("lan", "10.0.0.7", 0.0)]),
        (BEHIND_A, (), []),
    ],
)
def test_plans(
    local: tuple[Candidate, ...], remote: tuple[Candidate, ...], expected: list[tuple[str, str, float]]
) -> None:
    plan = make_plan(local, remote, techniques=ALL, rtt=0.1, budget=8.0, proven_host="")
    got = [(str(attempt.technique), attempt.remote.host, round(attempt.delay, 6)) for attempt in plan]
    assert got == expected
    assert all(attempt.budget == attempt.delay + 0.95 for attempt in plan)


@pytest.mark.parametrize("technique", ALL)
def test_only_allowed_techniques(technique: str) -> None:
    plan = make_plan(
        BEHIND_A, BEHIND_B + PUBLIC, techniques=(technique,), rtt=0.1, budget=1.0, proven_host=""
    )
    assert {attempt.technique for attempt in plan} == {technique}


def test_a_foreign_lan_waits_for_the_punch_on_a_long_path() -> None:
    plan = make_plan(BEHIND_A, BEHIND_B, techniques=ALL, rtt=0.5, budget=1.0, proven_host="")
    assert plan[-1].delay == 1.5


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(BEHIND_A, BEHIND_B), (BEHIND_A, PUBLIC), (PUBLIC, BEHIND_B), (BEHIND_A, ALSO_BEHIND_A)],
)
def test_both_ends_call_a_connection_alike(
    ours: tuple[Candidate, ...], theirs: tuple[Candidate, ...]
) -> None:
    seen_here = name_of_connection(ours, theirs, theirs[-1].endpoint)
    seen_there = name_of_connection(theirs, ours, ours[-1].endpoint)
    assert seen_here == seen_there


def test_a_connection_from_an_unknown_port_has_a_name() -> None:
    assert name_of_connection(BEHIND_A, BEHIND_B, Endpoint("198.51.100.1", 9)) == "tcp-open"
    assert name_of_pair(PUBLIC, srflx("198.51.100.1", 9)) == "public"


def test_a_liars_candidates() -> None:
    lies = [host("127.0.0.1"), host("0.0.0.0"), host("224.0.0.1"), Candidate("host", "udp", "192.0.2.1", 5)]
    assert usable_candidates(lies, "tcp", loopback_allowed=False) == ()
    assert usable_candidates(lies, "tcp", loopback_allowed=True) == (host("127.0.0.1"),)
    many = [srflx("192.0.2.1", port) for port in range(1, 10_000)]
    assert len(usable_candidates(many, "tcp", loopback_allowed=False)) == MAX_CANDIDATES
    assert len(usable_candidates([srflx("192.0.2.1")] * 5, "tcp", loopback_allowed=False)) == 1


@pytest.mark.parametrize(
    ("mapped", "profile"),
    [
        ([], NATProfile(None, "unknown")),
        ([("10.0.0.1", 5)], NATProfile(False, "unknown")),
        ([("192.0.2.1", 5)], NATProfile(True, "unknown")),
        ([("192.0.2.1", 5), ("192.0.2.1", 5)], NATProfile(True, "endpoint-independent")),
        ([("192.0.2.1", 5), ("192.0.2.1", 6)], NATProfile(True, "endpoint-dependent")),
    ],
)
def test_profiles(mapped: list[tuple[str, int]], profile: NATProfile) -> None:
    observed = [Endpoint(*endpoint) for endpoint in mapped]
    assert profile_from_observations(Endpoint("10.0.0.1", 5), observed) == profile


def test_the_first_authenticated_connection_is_nominated() -> None:
    nomination: Nomination[str] = Nomination()
    assert nomination.propose("first")
    assert not nomination.propose("second")
    assert nomination.nominated == "first"


def test_a_token_is_good_for_one_connection() -> None:
    token = OneTimeToken(b"secret")
    assert not token.redeem(b"guess")
    assert token.redeem(b"secret")
    assert not token.redeem(b"secret")
