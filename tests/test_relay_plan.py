"""When a dial asks for a relay, by table."""

from __future__ import annotations

import pytest

from ntcpsock._address import Endpoint
from ntcpsock._traversal.punch.message import Candidate, NATProfile
from ntcpsock._traversal.relay_plan import (
    LONGEST_GRACE,
    NEIGHBOUR_GRACE,
    RelayPlan,
    has_to_predict,
    make_relay_plan,
)

RELAYS = (Endpoint("198.51.100.1", 6060),)
PRIVATE = Candidate("host", "tcp", "192.168.1.2", 20000)
PUBLIC = Candidate("host", "tcp", "203.0.113.1", 20000)
REFLEXIVE = Candidate("srflx", "tcp", "203.0.113.2", 20000)
STABLE = NATProfile(mapping="endpoint-independent")
CHANGING = NATProfile(mapping="endpoint-dependent")
TECHNIQUES = ("tcp-open", "tcp-predict", "udp-punch", "udp-birthday", "relay")
MAPPED = Candidate("mapped", "tcp", "203.0.113.3", 20000)


@pytest.mark.parametrize(
    ("local", "remote", "rtt", "plan"),
    [
        # Both can be aimed at: the direct path has its six round trips, at least a second.
        ([PRIVATE, REFLEXIVE], [PRIVATE, REFLEXIVE], 0.1, RelayPlan(0.6, 1.0)),
        ([PUBLIC], [PRIVATE, REFLEXIVE], 0.0, RelayPlan(1.0, 1.0)),
        ([MAPPED], [PUBLIC], 0.5, RelayPlan(1.0, 3.0)),
        ([PUBLIC], [PUBLIC], 10.0, RelayPlan(0.0, LONGEST_GRACE)),
        # One cannot: only a neighbour could be met.
        ([PRIVATE], [PRIVATE, REFLEXIVE], 0.1, RelayPlan(0.0, NEIGHBOUR_GRACE)),
        ([PUBLIC], [PRIVATE], 0.0, RelayPlan(NEIGHBOUR_GRACE, NEIGHBOUR_GRACE)),
        # Neither can: a network of their own.
        ([PRIVATE], [PRIVATE], 0.0, RelayPlan(1.0, 1.0)),
        # There is nothing to aim at: nothing is waited for.
        ([PUBLIC], [], 0.1, RelayPlan(0.0, 0.0)),
        ([], [], 0.1, RelayPlan(0.0, 0.0)),
    ],
)
def test_plan(local: list[Candidate], remote: list[Candidate], rtt: float, plan: RelayPlan) -> None:
    made = make_relay_plan(local, remote, techniques=("tcp-open", "relay"), relays=RELAYS, rtt=rtt)
    assert made is not None
    assert (made.prepare, made.use) == pytest.approx((plan.prepare, plan.use))


@pytest.mark.parametrize(
    ("tcp", "udp", "techniques", "predicts"),
    [
        ((STABLE, CHANGING), (STABLE, STABLE), TECHNIQUES, True),
        ((STABLE, STABLE), (CHANGING, STABLE), TECHNIQUES, True),
        ((STABLE, STABLE), (STABLE, STABLE), TECHNIQUES, False),
        ((NATProfile(), STABLE), (NATProfile(), STABLE), TECHNIQUES, False),
        ((CHANGING, CHANGING), (CHANGING, CHANGING), ("tcp-open", "udp-punch"), False),
    ],
)
def test_where_ports_are_foreseen(
    tcp: tuple[NATProfile, NATProfile],
    udp: tuple[NATProfile, NATProfile],
    techniques: tuple[str, ...],
    predicts: bool,
) -> None:
    assert has_to_predict(tcp, udp, techniques=techniques) is predicts


def test_prediction_has_more_time() -> None:
    for rtt, plan in (
        (0.1, RelayPlan(1.1, 1.5)),
        (0.2, RelayPlan(1.6, 2.4)),
        (1.0, RelayPlan(0.0, LONGEST_GRACE)),
    ):
        made = make_relay_plan(
            [REFLEXIVE], [REFLEXIVE], techniques=("relay",), relays=RELAYS, rtt=rtt, predicts=True
        )
        assert made is not None
        assert (made.prepare, made.use) == pytest.approx((plan.prepare, plan.use))


def test_no_plan_without_leave_or_relay() -> None:
    assert make_relay_plan([PUBLIC], [PUBLIC], techniques=("public",), relays=RELAYS, rtt=0.1) is None
    assert make_relay_plan([PUBLIC], [PUBLIC], techniques=("relay",), relays=(), rtt=0.1) is None
