"""When the techniques for NATs without simultaneous open have their turn, and what stands in the way of raw ones."""

from __future__ import annotations

import pytest

from ntcpsock._address import Endpoint
from ntcpsock._config import TECHNIQUES
from ntcpsock._traversal.plan import (
    JOINT_TECHNIQUES,
    LATE_BUDGET,
    RAW_TECHNIQUES,
    make_joint_plan,
    raw_obstacles,
)
from ntcpsock._traversal.punch.message import NATProfile
from ntcpsock._traversal.strategies import STRATEGIES

PROVEN = "192.0.2.1"
BUDGET = 8.0


def starts(*techniques: str, budget: float = BUDGET) -> list[tuple[str, float]]:
    plan = make_joint_plan(
        NATProfile(), NATProfile(), techniques=techniques, budget=budget, proven_host=PROVEN
    )
    assert all(attempt.remote == Endpoint(PROVEN, 0) for attempt in plan)
    assert all(attempt.delay < attempt.budget <= budget for attempt in plan)
    return [(attempt.technique, attempt.delay) for attempt in plan if attempt.technique != "tcp-predict"]


@pytest.mark.parametrize(
    ("techniques", "expected"),
    [
        (TECHNIQUES, [("tcp-stunt2", 2.5), ("tcp-natblaster", 3.5), ("tcp-stunt1", 4.5)]),
        (("tcp-open", "tcp-stunt2"), [("tcp-stunt2", 2.5)]),
        (("lan", "tcp-stunt1"), [("tcp-stunt1", 4.5)]),
        # Nothing to wait for.
        (("tcp-stunt2",), [("tcp-stunt2", 0.0)]),
        (("tcp-stunt2", "relay"), [("tcp-stunt2", 0.0)]),
        (("tcp-natblaster",), [("tcp-natblaster", 0.0)]),
        (("tcp-stunt1",), [("tcp-stunt1", 0.0)]),
        (("tcp-stunt1", "tcp-natblaster"), [("tcp-natblaster", 0.0), ("tcp-stunt1", 1.0)]),
        (("tcp-open", "tcp-predict"), []),
    ],
)
def test_turns(techniques: tuple[str, ...], expected: list[tuple[str, float]]) -> None:
    assert starts(*techniques) == expected


def test_what_has_no_time_left_is_not_planned() -> None:
    assert starts(*TECHNIQUES, budget=3.0) == [("tcp-stunt2", 2.5)]


def test_all_have_their_time_before_the_race_ends() -> None:
    plan = make_joint_plan(
        NATProfile(), NATProfile(), techniques=TECHNIQUES, budget=BUDGET, proven_host=PROVEN
    )
    for attempt in plan:
        if attempt.technique in ("tcp-stunt2", *RAW_TECHNIQUES):
            assert attempt.budget - attempt.delay >= min(LATE_BUDGET, 3.5)
    # Each is a round of its own, and an offer counts to 16; the first three are the direct ones'.
    assert len(plan) + 3 <= 16


def test_nobody_is_aimed_at_who_is_not_proven() -> None:
    profile = NATProfile()
    assert not make_joint_plan(profile, profile, techniques=TECHNIQUES, budget=BUDGET, proven_host="")


def test_every_joint_technique_has_its_strategy() -> None:
    assert set(JOINT_TECHNIQUES) <= set(TECHNIQUES) == set(STRATEGIES)


@pytest.mark.parametrize(
    ("here", "there", "spoofs", "impossible"),
    [
        (None, True, True, set()),
        (None, True, False, {"tcp-stunt1"}),
        (None, False, True, set(RAW_TECHNIQUES)),
        ("the right", True, True, set(RAW_TECHNIQUES)),
        ("the right", False, False, set(RAW_TECHNIQUES)),
    ],
)
def test_obstacles(here: str | None, there: bool, spoofs: bool, impossible: set[str]) -> None:
    found = raw_obstacles(TECHNIQUES, here=here, there=there, broker_spoofs=spoofs)
    assert set(found) == impossible
    assert all(technique in text for technique, text in found.items())
    assert raw_obstacles(("tcp-open", "tcp-stunt2"), here=here, there=there, broker_spoofs=spoofs) == {}


def test_each_obstacle_says_what_to_do() -> None:
    ours = raw_obstacles(TECHNIQUES, here="CAP_NET_RAW", there=True, broker_spoofs=True)
    assert ours["tcp-natblaster"] == "tcp-natblaster lacks CAP_NET_RAW"
    theirs = raw_obstacles(TECHNIQUES, here=None, there=False, broker_spoofs=True)
    assert "the other side" in theirs["tcp-natblaster"]
    brokers = raw_obstacles(TECHNIQUES, here=None, there=True, broker_spoofs=False)
    assert "--allow-spoofing" in brokers["tcp-stunt1"]
