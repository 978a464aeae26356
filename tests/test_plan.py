"""Plans as a table: which attempts, in which order, and that both sides name one pair alike."""

import itertools
import random
from typing import cast, get_args

import pytest

from ntcpsock._address import Endpoint
from ntcpsock._report import Budget, Report
from ntcpsock._traversal.candidate import name_of_connection, name_of_pair, usable_candidates
from ntcpsock._traversal.datagram_plan import make_joint_datagram_plan
from ntcpsock._traversal.nat import profile_from_observations
from ntcpsock._traversal.nominate import Nomination, OneTimeToken, Role
from ntcpsock._traversal.observe import FIRST_SAMPLES
from ntcpsock._traversal.plan import (
    JOINT_TECHNIQUES,
    LATE,
    MAX_TRIES,
    UNPROVEN_PACE,
    UNPROVEN_TRIES,
    PlannedAttempt,
    ipv6_head_start,
    make_joint_plan,
    make_plan,
)
from ntcpsock._traversal.prediction import BAND_SAMPLES, MAX_SESSIONS
from ntcpsock._traversal.punch.message import (
    MAX_CANDIDATES_OF_TRANSPORT,
    Candidate,
    FilteringBehavior,
    MappingBehavior,
    NATProfile,
    SynAnswer,
)
from ntcpsock._traversal.start import order_of_start, waiting_time

ALL = ("public", "lan", "ipv6", "tcp-open")


def host(address: str, port: int = 1000) -> Candidate:
    return Candidate("host", "tcp", address, port)


def srflx(address: str, port: int = 1000) -> Candidate:
    return Candidate("srflx", "tcp", address, port)


BEHIND_A = (host("10.0.0.2"), srflx("192.0.2.1"))
BEHIND_B = (host("192.168.1.9"), srflx("198.51.100.1"))
ALSO_BEHIND_A = (host("10.0.0.3"), srflx("192.0.2.1", 1001))
PUBLIC = (host("203.0.113.5"),)
NO_STUN = (host("10.0.0.7"),)
DUAL_A = (host("10.0.0.2"), host("2001:db8:a::2"), srflx("192.0.2.1"))
DUAL_B = (host("192.168.1.9"), host("2001:db8:b::9"), srflx("198.51.100.1"))
DUAL_PUBLIC = (host("203.0.113.5"), host("2001:db8:c::5"))
ALSO_DUAL_A = (host("10.0.0.3"), host("2001:db8:a::3"), srflx("192.0.2.1", 1001))
ONLY_IPV6 = (host("2001:db8:d::4"),)
TRANSLATED_IPV6 = (host("fd00::2"), srflx("2001:db8:e::2"))


@pytest.mark.parametrize(
    ("local", "remote", "expected"),
    [
        (BEHIND_A, BEHIND_B, [("tcp-open", "198.51.100.1", 0.0), ("lan", "192.168.1.9", 0.3)]),
        (BEHIND_A, ALSO_BEHIND_A, [("lan", "10.0.0.3", 0.0), ("tcp-open", "192.0.2.1", 0.05)]),
        (BEHIND_A, PUBLIC, [("public", "203.0.113.5", 0.0)]),
        (PUBLIC, BEHIND_A, [("public", "192.0.2.1", 0.0), ("lan", "10.0.0.2", 0.3)]),
        (NO_STUN, BEHIND_A, [("lan", "10.0.0.2", 0.0), ("tcp-open", "192.0.2.1", 0.05)]),
        (BEHIND_A, NO_STUN, [("lan", "10.0.0.7", 0.0)]),
        (BEHIND_A, (), []),
        # IPv6 together with the IPv4 punch.
        (
            DUAL_A,
            DUAL_B,
            [("ipv6", "2001:db8:b::9", 0.0), ("tcp-open", "198.51.100.1", 0.05), ("lan", "192.168.1.9", 0.3)],
        ),
        (DUAL_A, DUAL_PUBLIC, [("public", "203.0.113.5", 0.0), ("ipv6", "2001:db8:c::5", 0.05)]),
        # One /64 is one network.
        (
            DUAL_A,
            ALSO_DUAL_A,
            [("lan", "10.0.0.3", 0.0), ("lan", "2001:db8:a::3", 0.05), ("tcp-open", "192.0.2.1", 0.1)],
        ),
        # A family that one side has not is nothing to try.
        (BEHIND_A, DUAL_B, [("tcp-open", "198.51.100.1", 0.0), ("lan", "192.168.1.9", 0.3)]),
        (ONLY_IPV6, DUAL_B, [("ipv6", "2001:db8:b::9", 0.0)]),
        (DUAL_B, ONLY_IPV6, [("ipv6", "2001:db8:d::4", 0.0)]),
        (BEHIND_A, ONLY_IPV6, []),
        ((), ONLY_IPV6, [("ipv6", "2001:db8:d::4", 0.0)]),
        # NPTv6 and NAT66: a unique local address is a neighbour's, or nobody's.
        (ONLY_IPV6, TRANSLATED_IPV6, [("lan", "fd00::2", 0.0), ("ipv6", "2001:db8:e::2", 0.05)]),
        (TRANSLATED_IPV6, ONLY_IPV6, [("ipv6", "2001:db8:d::4", 0.0)]),
    ],
)
def test_plans(
    local: tuple[Candidate, ...], remote: tuple[Candidate, ...], expected: list[tuple[str, str, float]]
) -> None:
    plan = make_plan(local, remote, techniques=ALL, rtt=0.1, budget=8.0, proven_host="")
    got = [(str(attempt.technique), attempt.remote.host, round(attempt.delay, 6)) for attempt in plan]
    assert got == expected
    assert all(attempt.is_check and attempt.budget <= 8.0 for attempt in plan)


@pytest.mark.parametrize("technique", ALL)
def test_only_allowed_techniques(technique: str) -> None:
    plan = make_plan(DUAL_A, DUAL_B + PUBLIC, techniques=(technique,), rtt=0.1, budget=1.0, proven_host="")
    assert {attempt.technique for attempt in plan} == {technique}


def test_a_foreign_lan_waits_for_the_punch_on_a_long_path() -> None:
    plan = make_plan(BEHIND_A, BEHIND_B, techniques=ALL, rtt=0.5, budget=1.0, proven_host="")
    assert plan[-1].delay == 1.5


def test_what_was_proved_beside_the_brokers_view_gets_all_tries() -> None:
    plan = make_plan(
        DUAL_A,
        DUAL_B,
        techniques=ALL,
        rtt=0.1,
        budget=8.0,
        proven_host="198.51.100.1",
        also_proven=("2001:db8:b::9",),
    )
    tries = {attempt.technique: attempt.max_tries for attempt in plan}
    assert tries == {"ipv6": MAX_TRIES, "tcp-open": MAX_TRIES, "lan": UNPROVEN_TRIES}


def test_a_second_uplink_is_tried_a_little_later() -> None:
    plan = make_plan(
        DUAL_A,
        DUAL_B,
        techniques=ALL,
        rtt=0.1,
        budget=8.0,
        proven_host="198.51.100.1",
        uplinks=("10.3.0.2", "2001:db8:f::2"),
    )
    further = [(attempt.technique, attempt.source, attempt.delay) for attempt in plan if attempt.source]
    assert further == [("ipv6", "2001:db8:f::2", 0.1), ("tcp-open", "10.3.0.2", 0.1)]
    assert len(plan) == 5


def test_ipv6_has_a_head_start_before_joint_attempts() -> None:
    plans = [
        make_plan(ours, DUAL_B, techniques=ALL, rtt=0.1, budget=8.0, proven_host="")
        for ours in (DUAL_A, BEHIND_A)
    ]
    assert [ipv6_head_start(plan, 0.1) for plan in plans] == [pytest.approx(0.3), 0.0]
    assert ipv6_head_start(plans[0], 2.0) == 0.5


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (DUAL_A, DUAL_B),
        (ONLY_IPV6, TRANSLATED_IPV6),
        (BEHIND_A, BEHIND_B),
        (BEHIND_A, PUBLIC),
        (PUBLIC, BEHIND_B),
        (BEHIND_A, ALSO_BEHIND_A),
    ],
)
def test_both_ends_call_a_connection_alike(
    ours: tuple[Candidate, ...], theirs: tuple[Candidate, ...]
) -> None:
    seen_here = name_of_connection(ours, theirs, theirs[-1].endpoint)
    seen_there = name_of_connection(theirs, ours, ours[-1].endpoint)
    assert seen_here == seen_there


def test_a_connection_from_an_unknown_port_has_a_name() -> None:
    assert name_of_connection(BEHIND_A, BEHIND_B, Endpoint("198.51.100.1", 9)) == "tcp-open"
    assert name_of_connection(DUAL_A, DUAL_B, Endpoint("2001:db8:b::9", 9)) == "ipv6"
    assert name_of_pair(PUBLIC, srflx("198.51.100.1", 9)) == "public"


MAPPINGS = get_args(MappingBehavior)
FILTERINGS = get_args(FilteringBehavior)
ANSWERS = get_args(SynAnswer)
PROFILES = [
    NATProfile(mapping != "unknown", mapping, filtering, stray_syn)
    for mapping in MAPPINGS
    for filtering in FILTERINGS
    for stray_syn in ANSWERS
]
SIDES = (BEHIND_A, BEHIND_B, ALSO_BEHIND_A, PUBLIC, NO_STUN)
EVERY = (*ALL, *JOINT_TECHNIQUES)


def plans_of_both(
    ours: NATProfile, theirs: NATProfile, turn: int = 0, late: frozenset[str] = frozenset()
) -> tuple[list[PlannedAttempt], list[PlannedAttempt]]:
    """What the dialer A and the listener B plan, in a round of `turn`."""
    order = order_of_start(ours, theirs, turn)
    plans = []
    for role, local, remote, host_of_peer in (
        ("leader", BEHIND_A, BEHIND_B, "198.51.100.1"),
        ("follower", BEHIND_B, BEHIND_A, "192.0.2.1"),
    ):
        other, rtts = (theirs, (0.01, 0.3)) if role == "leader" else (ours, (0.3, 0.01))
        wait = waiting_time(cast(Role, role), order, other, own_rtt=rtts[0], other_rtt=rtts[1])
        direct = make_plan(
            local,
            remote,
            techniques=EVERY,
            rtt=0.31,
            budget=8.0,
            proven_host=host_of_peer,
            wait=wait,
            late=late,
        )
        joint = make_joint_plan(
            ours, theirs, techniques=EVERY, budget=8.0, proven_host=host_of_peer, late=late
        )
        over_udp = make_joint_datagram_plan(
            ours, theirs, techniques=EVERY, budget=8.0, proven_host=host_of_peer, late=late
        )
        plans.append([*direct, *joint, *over_udp])
    return plans[0], plans[1]


def test_labels_never_forbid() -> None:
    """Any two profiles, any turn, whatever has never worked: the same techniques towards the same places, within
    the time of a dial. Only their order and delays differ."""
    assert len(PROFILES) == 6 * 4 * 4
    rng = random.Random(1)
    expected = tuple(places(plan) for plan in plans_of_both(NATProfile(), NATProfile()))
    assert {technique for technique, _ in expected[0]} == {"tcp-open", "lan", *JOINT_TECHNIQUES}
    delays = set()
    for ours, theirs in itertools.product(PROFILES, PROFILES):
        late = frozenset(rng.sample(EVERY, rng.randrange(3)))
        plans = plans_of_both(ours, theirs, rng.randrange(6), late)
        assert tuple(places(plan) for plan in plans) == expected
        for plan in plans:
            assert all(0 <= attempt.delay < attempt.budget <= 8.0 for attempt in plan)
        delays.add(tuple(attempt.delay for attempt in plans[0]))
    assert len(delays) > 10


def places(plan: list[PlannedAttempt]) -> set[tuple[str, Endpoint]]:
    return {(attempt.technique, attempt.remote) for attempt in plan}


@pytest.mark.parametrize("local", SIDES)
@pytest.mark.parametrize("remote", SIDES)
@pytest.mark.parametrize("wait", [0.0, 0.4])
def test_every_candidate_is_planned_once(
    local: tuple[Candidate, ...], remote: tuple[Candidate, ...], wait: float
) -> None:
    plan = make_plan(
        local, remote, techniques=EVERY, rtt=0.1, budget=8.0, proven_host=remote[-1].host, wait=wait
    )
    assert sorted(attempt.remote for attempt in plan) == sorted(c.endpoint for c in remote)
    assert [attempt.delay for attempt in plan] == sorted(attempt.delay for attempt in plan)


def test_what_never_worked_here_starts_later() -> None:
    def starts(late: set[str]) -> dict[str, float]:
        plan = make_plan(
            BEHIND_A, BEHIND_B, techniques=EVERY, rtt=0.1, budget=8.0, proven_host="198.51.100.1", late=late
        )
        joint = make_joint_plan(
            NATProfile(mapping="endpoint-dependent"),
            NATProfile(),
            techniques=EVERY,
            budget=8.0,
            proven_host="198.51.100.1",
            late=late,
        )
        return {attempt.technique: round(attempt.delay, 6) for attempt in (*plan, *joint[:1])}

    assert starts(set()) == {"tcp-open": 0.0, "lan": 0.3, "tcp-predict": 0.0}
    assert starts({"tcp-open"}) == {"tcp-open": LATE, "lan": 0.3, "tcp-predict": 0.0}
    assert starts({"tcp-predict"}) == {"tcp-open": 0.0, "lan": 0.3, "tcp-predict": LATE}


def test_unproven_addresses_get_one_check_each_and_not_at_once() -> None:
    many = [host(f"203.0.113.{number}") for number in range(1, 8)]
    plan = make_plan(
        BEHIND_A,
        [*many, srflx("198.51.100.1")],
        techniques=ALL,
        rtt=0.1,
        budget=8.0,
        proven_host="198.51.100.1",
    )
    checks = [attempt for attempt in plan if attempt.is_check]
    assert len(checks) == len(many)
    assert all(attempt.max_tries == 1 and attempt.patience < 1.0 for attempt in checks)
    starts = [attempt.delay for attempt in checks]
    assert min(later - earlier for earlier, later in itertools.pairwise(starts)) > UNPROVEN_PACE * 0.99


def test_costs() -> None:
    """What the report shows of a plan: sockets, SYNs a second, NAT entries."""
    direct = PlannedAttempt("tcp-open", Endpoint("192.0.2.1", 5), 0.0, 8.0)
    check = PlannedAttempt("public", Endpoint("192.0.2.2", 5), 0.0, 8.0, 1)
    joint = PlannedAttempt("tcp-predict", Endpoint("192.0.2.1", 0), 0.0, 8.0)
    assert direct.cost(0.1) == Budget(1, 20.0, 1)
    assert direct.cost(0.0).packets_per_second == 100
    assert check.cost(0.1) == Budget(1, 1.0, 1)
    most = MAX_SESSIONS + 1 + FIRST_SAMPLES + BAND_SAMPLES
    assert joint.cost(0.1) == Budget(most, 2000.0, most)
    report = Report("bob", "dialer")
    for planned in (direct, check):
        report.attempt(planned.technique, None, planned.remote, 0.0).budget = planned.cost(0.1)
    assert report.budget == Budget(2, 21.0, 2)
    assert report.to_dict()["budget"] == {"sockets": 2, "packets_per_second": 21.0, "nat_entries": 2}
    assert "2 sockets, 21 packets/s, 2 NAT entries" in str(report)


def test_a_liars_candidates() -> None:
    lies = [host("127.0.0.1"), host("0.0.0.0"), host("224.0.0.1"), Candidate("host", "udp", "192.0.2.1", 5)]
    lies += [host("::"), host("fe80::1"), host("ff02::1"), host("::ffff:192.0.2.1"), host("2002:a00:1::1")]
    assert usable_candidates(lies, "tcp", loopback_allowed=False) == ()
    assert usable_candidates(lies, "tcp", loopback_allowed=True) == (host("127.0.0.1"),)
    many = [srflx("192.0.2.1", port) for port in range(1, 10_000)]
    assert len(usable_candidates(many, "tcp", loopback_allowed=False)) == MAX_CANDIDATES_OF_TRANSPORT
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
