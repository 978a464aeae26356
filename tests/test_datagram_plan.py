"""Which UDP candidates are checked, when and how often, and which joint attempts follow."""

from __future__ import annotations

import itertools

import pytest

from ntcpsock._address import Endpoint
from ntcpsock._config import Config, Prefer
from ntcpsock._errors import ConfigurationError
from ntcpsock._report import Budget
from ntcpsock._traversal.checks.machine import MAX_TRIES
from ntcpsock._traversal.datagram_plan import (
    BEHIND_TCP,
    MAX_PROBES,
    PREDICT_ROUNDS,
    SHORTEST_TCP_HEAD_START,
    CheckTarget,
    DatagramPlan,
    birthday_cost,
    head_start_of_tcp,
    make_datagram_plan,
    make_joint_datagram_plan,
    opening_plan,
    preference,
    udp_profile,
)
from ntcpsock._traversal.plan import LATE, UNPROVEN_PACE
from ntcpsock._traversal.punch.message import Candidate, CandidateType, DialKind, MappingBehavior, NATProfile

A, B = "192.0.2.1", "198.51.100.1"
V6 = "2001:db8:7::1"


def candidate(kind: CandidateType, host: str, port: int = 5000) -> Candidate:
    return Candidate(kind, "udp", host, port)


OURS = (candidate("host", "10.1.0.2"), candidate("srflx", A))
THEIRS = (candidate("host", "10.2.0.2"), candidate("host", V6), candidate("srflx", B, 6000))


def plan(remote: tuple[Candidate, ...] = THEIRS, **settings: object) -> DatagramPlan | None:
    arguments: dict[str, object] = {
        "techniques": ("udp-punch",),
        "rtt": 0.1,
        "budget": 8.0,
        "proven_host": B,
        **settings,
    }
    return make_datagram_plan(OURS, remote, **arguments)  # type: ignore[arg-type]


def checked(remote: tuple[Candidate, ...] = THEIRS, **settings: object) -> DatagramPlan:
    made = plan(remote, **settings)
    assert made is not None
    return made


def test_what_is_proven_is_checked_at_once_and_often() -> None:
    targets = {target.remote: target for target in checked().targets}
    assert targets[Endpoint(B, 6000)] == CheckTarget(Endpoint(B, 6000), "srflx", MAX_TRIES)
    assert len(targets) == 3


def test_what_only_the_peer_says_gets_one_paced_check() -> None:
    many = tuple(candidate("host", f"203.0.113.{number}") for number in range(1, 7))
    unproven = [target for target in checked((*many, *THEIRS)).targets if target.is_check]
    assert {target.tries for target in unproven} == {1}
    assert len(unproven) == 8
    delays = sorted(target.delay for target in unproven)
    assert all(after - before >= UNPROVEN_PACE - 1e-9 for before, after in itertools.pairwise(delays))
    assert all(target.low_for == 0 for target in unproven)


def test_the_first_packet_goes_to_proven_places_only_one_of_each_family() -> None:
    assert checked().guesses == (Endpoint(B, 6000),)
    assert checked(also_proven=(V6,)).guesses == (Endpoint(V6, 5000), Endpoint(B, 6000))
    assert checked(proven_host="203.0.113.77").guesses == ()
    public = (candidate("host", B, 7000), candidate("srflx", B, 6000))
    assert checked(public).guesses == (Endpoint(B, 7000),)


def test_who_is_early_opens_its_own_nat_only() -> None:
    made = checked(wait=0.3)
    low = {target.kind: target.low_for for target in made.targets}
    assert low == {"host": 0.0, "srflx": 0.3}
    assert made.attempt.delay == 0.0


@pytest.mark.parametrize(("rtt", "low_for"), [(0.02, 0.5), (0.6, 1.2)])
def test_a_port_that_its_word_makes_known_opens_its_own_nat_first(rtt: float, low_for: float) -> None:
    """Until the other side can have heard of it; a check that comes before is answered all the same."""
    remote = (*THEIRS, candidate("srflx", "203.0.113.5"))
    usual = checked(remote)
    opening = opening_plan(usual, rtt)
    assert [
        target.low_for for target in opening.targets if target.kind == "srflx" and not target.is_check
    ] == [low_for]
    assert all(not target.low_for for target in opening.targets if target.kind == "host" or target.is_check)
    assert [target.remote for target in opening.targets] == [target.remote for target in usual.targets]
    assert (opening.attempt, opening.guesses) == (usual.attempt, usual.guesses)


def test_a_private_address_of_another_network_waits() -> None:
    (private,) = [target for target in checked().targets if target.remote.host == "10.2.0.2"]
    assert private.delay >= 0.3
    same = (candidate("host", "10.1.0.3"), candidate("srflx", A, 6000))
    (private,) = [target for target in checked(same, proven_host=A).targets if target.kind == "host"]
    assert private.delay == 0.0


@pytest.mark.parametrize(
    ("prefer", "round_number", "rtt", "seconds"),
    [
        ("tcp", 1, 0.2, 0.6),
        ("tcp", 1, 0.0, SHORTEST_TCP_HEAD_START),
        ("tcp", 2, 0.2, 0.0),
        ("udp", 1, 0.2, 0.0),
    ],
)
def test_where_tcp_is_preferred_it_has_a_head_start(
    prefer: Prefer, round_number: int, rtt: float, seconds: float
) -> None:
    head_start = head_start_of_tcp(prefer, round_number, rtt)
    assert head_start == pytest.approx(seconds)
    assert checked(head_start=head_start).attempt.delay == head_start


@pytest.mark.parametrize(
    ("prefer", "techniques", "kind", "expected"),
    [
        ("tcp", ("tcp-open", "udp-punch"), "stream", "tcp"),
        ("udp", ("tcp-open", "udp-punch"), "stream", "udp"),
        ("tcp", ("tcp-predict", "udp-punch"), "stream", "udp"),
        ("tcp", ("tcp-open", "udp-punch"), "datagram", "udp"),
    ],
)
def test_nobody_waits_for_what_is_not_tried(
    prefer: Prefer, techniques: tuple[str, ...], kind: DialKind, expected: Prefer
) -> None:
    assert preference(prefer, techniques, kind) == expected


def test_nothing_to_check() -> None:
    assert plan(()) is None
    assert plan(techniques=("tcp-open",)) is None
    late = checked(late={"udp-punch"})
    assert late.attempt.delay == LATE
    assert late.attempt.cost(0.1) == Budget(1, 50.0, 3)


# --- joint attempts -------------------------------------------------------------------------------


@pytest.mark.parametrize("ours", ["unknown", "endpoint-independent", "address-and-port-dependent"])
@pytest.mark.parametrize("theirs", ["unknown", "endpoint-independent", "endpoint-dependent"])
def test_labels_order_and_never_forbid(ours: MappingBehavior, theirs: MappingBehavior) -> None:
    attempts = make_joint_datagram_plan(
        NATProfile(mapping=ours),
        NATProfile(mapping=theirs),
        techniques=("udp-predict", "udp-birthday"),
        budget=10.0,
        proven_host=B,
        birthday=birthday_cost(256, 250.0),
    )
    assert [attempt.technique for attempt in attempts] == [
        "udp-predict",
        "udp-birthday",
        "udp-birthday",
        *["udp-predict"] * (PREDICT_ROUNDS - 1),
    ]
    changes = "dependent" in ours.replace("independent", "") or "dependent" in theirs.replace(
        "independent", ""
    )
    first = attempts[0].delay
    assert (first == 0) == changes
    if not changes:
        assert first == (1.0 if "unknown" in (ours, theirs) else 2.5)
    assert attempts[1].delay > first
    assert attempts[1].cost(0.1) == Budget(256 + 17, 1000.0, MAX_PROBES)
    assert all(attempt.remote == Endpoint(B, 0) for attempt in attempts)
    behind = make_joint_datagram_plan(
        NATProfile(mapping=ours),
        NATProfile(mapping=theirs),
        techniques=("udp-predict", "udp-birthday"),
        budget=10.0,
        proven_host=B,
        behind_tcp=True,
    )
    assert [attempt.delay - BEHIND_TCP for attempt in behind] == pytest.approx(
        [attempt.delay for attempt in attempts]
    )


def test_without_a_proven_address_nobody_is_aimed_at() -> None:
    known = NATProfile(mapping="endpoint-independent")
    assert (
        make_joint_datagram_plan(known, known, techniques=("udp-birthday",), budget=8.0, proven_host="") == ()
    )
    assert make_joint_datagram_plan(known, known, techniques=("tcp-open",), budget=8.0, proven_host=B) == ()


def test_a_profile_for_udp_counts_where_there_is_one() -> None:
    tcp, udp = NATProfile(mapping="endpoint-independent"), NATProfile(mapping="endpoint-dependent")
    assert udp_profile(tcp, udp) is udp
    assert udp_profile(tcp, None) is tcp


# --- configuration --------------------------------------------------------------------------------


def test_birthdays_can_be_switched_off() -> None:
    assert "udp-birthday" in Config().usable_techniques
    assert "udp-birthday" not in Config(birthday_sockets=0).usable_techniques
    assert Config.load({"NTCP_BIRTHDAY_SOCKETS": "64", "NTCP_BIRTHDAY_RATE": "100"}).birthday_rate == 100.0
    for wrong in (
        {"birthday_sockets": -1},
        {"birthday_sockets": 9999},
        {"birthday_rate": 0.0},
        {"prefer": "sctp"},
    ):
        with pytest.raises(ConfigurationError):
            Config(**wrong)


def test_streams_without_encryption_are_tcp() -> None:
    assert not any(name.startswith("udp-") for name in Config(encryption="off").usable_techniques)
    assert Config.load({"NTCP_PREFER": "udp"}).prefer == "udp"
