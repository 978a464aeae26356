"""When both sides start: a table, and SYNs on their way in a model of two NATs and a broker."""

from __future__ import annotations

import itertools

import pytest

from ntcpsock._traversal.nominate import Role
from ntcpsock._traversal.punch.message import NATProfile, SynAnswer
from ntcpsock._traversal.start import LONGEST_WAIT, MARGIN, Order, order_of_start, waiting_time

ANSWERS: tuple[SynAnswer, ...] = ("unknown", "drop", "reset", "icmp")


def nat(answer: SynAnswer) -> NATProfile:
    return NATProfile(True, "endpoint-independent", stray_syn=answer)


def wait(
    role: Role, order: Order, answers: tuple[SynAnswer, SynAnswer], dialer_rtt: float, listener_rtt: float
) -> float:
    if role == "leader":
        return waiting_time(role, order, nat(answers[1]), own_rtt=dialer_rtt, other_rtt=listener_rtt)
    return waiting_time(role, order, nat(answers[0]), own_rtt=listener_rtt, other_rtt=dialer_rtt)


@pytest.mark.parametrize(
    ("dialer", "listener", "orders"),
    [
        ("drop", "drop", ("together", "dialer first", "listener first")),
        ("unknown", "unknown", ("together", "dialer first", "listener first")),
        ("reset", "reset", ("together", "dialer first", "listener first")),
        ("reset", "unknown", ("together", "dialer first", "listener first")),
        ("icmp", "drop", ("together", "dialer first", "listener first")),
        ("drop", "reset", ("together", "listener first", "dialer first")),
        ("unknown", "icmp", ("together", "listener first", "dialer first")),
    ],
)
def test_orders(dialer: SynAnswer, listener: SynAnswer, orders: tuple[Order, ...]) -> None:
    """The next attempt, and the one after it, change roles; whose NAT answers alone goes first then."""
    got = tuple(order_of_start(nat(dialer), nat(listener), turn) for turn in range(6))
    assert got == orders * 2


WITH_RESET = 0.145 + MARGIN - 0.7 * 0.155


@pytest.mark.parametrize(
    ("order", "answers", "rtts", "dialer_waits", "listener_waits"),
    [
        # Both are equally far from the broker, or far enough to cross by themselves.
        ("together", ("reset", "reset"), (0.1, 0.1), 0.0, 0.0),
        ("together", ("unknown", "unknown"), (0.05, 0.3), 0.0, 0.0),
        # The early one waits: what is needed for crossing on a path that is 0.7 of the one by the broker.
        ("together", ("reset", "reset"), (0.01, 0.3), WITH_RESET, 0.0),
        ("together", ("reset", "reset"), (0.3, 0.01), 0.0, WITH_RESET),
        # Less where the NAT that its SYN comes to is not known to answer.
        ("together", ("unknown", "unknown"), (0.01, 0.3), MARGIN - 0.01, 0.0),
        ("together", ("drop", "unknown"), (0.3, 0.01), 0.0, MARGIN - 0.01),
        ("together", ("drop", "reset"), (0.01, 0.3), WITH_RESET, 0.0),
        ("together", ("reset", "drop"), (0.01, 0.3), MARGIN - 0.01, 0.0),
        # The second one waits until the first one is sure to have sent.
        ("dialer first", ("reset", "drop"), (0.1, 0.1), 0.0, MARGIN),
        ("dialer first", ("reset", "drop"), (0.3, 0.01), 0.0, 0.145 + MARGIN),
        ("dialer first", ("reset", "drop"), (0.01, 0.3), 0.0, MARGIN),
        ("listener first", ("drop", "reset"), (0.01, 0.3), 0.145 + MARGIN, 0.0),
    ],
)
def test_waiting(
    order: Order,
    answers: tuple[SynAnswer, SynAnswer],
    rtts: tuple[float, float],
    dialer_waits: float,
    listener_waits: float,
) -> None:
    assert wait("leader", order, answers, *rtts) == pytest.approx(dialer_waits)
    assert wait("follower", order, answers, *rtts) == pytest.approx(listener_waits)


RTTS = (0.002, 0.01, 0.05, 0.1, 0.3, 0.6)
EVERY_PAIR = list(itertools.product(ANSWERS, ANSWERS))


@pytest.mark.parametrize("order", ["together", "dialer first", "listener first"])
@pytest.mark.parametrize("answers", EVERY_PAIR)
@pytest.mark.parametrize("path_share", [0.7, 1.0, 1.3])
def test_first_syns_meet_no_nat_that_answers(
    answers: tuple[SynAnswer, SynAnswer], path_share: float, order: Order
) -> None:
    """On paths from 0.7 to 1.3 times the one by the broker each SYN leaves before the other one comes, wherever
    coming first would be answered; where one goes first, its own NAT is safe on every path. Nobody waits for longer
    than until both are ready, and only one of them."""
    for dialer_rtt, listener_rtt in itertools.product(RTTS, RTTS):
        waits = [wait(role, order, answers, dialer_rtt, listener_rtt) for role in ROLES]
        dialer_sends = dialer_rtt + waits[0]
        listener_sends = (dialer_rtt + listener_rtt) / 2 + waits[1]
        one_way = path_share * (dialer_rtt + listener_rtt) / 2
        if order == "together" and (path_share >= 1 or answers[0] in ("reset", "icmp")):
            assert listener_sends + one_way > dialer_sends
        if order == "together" and (path_share >= 1 or answers[1] in ("reset", "icmp")):
            assert dialer_sends + one_way > listener_sends
        if order == "dialer first":
            assert listener_sends >= dialer_sends + MARGIN - 1e-9
        if order == "listener first":
            assert dialer_sends >= listener_sends + MARGIN - 1e-9
        assert min(waits) == 0.0
        ready = max(dialer_rtt, (dialer_rtt + listener_rtt) / 2)
        assert max(dialer_sends, listener_sends) <= ready + MARGIN + 1e-9


ROLES: tuple[Role, Role] = ("leader", "follower")


@pytest.mark.parametrize("order", ["together", "dialer first", "listener first"])
def test_who_says_that_it_is_far_away_keeps_nobody_waiting(order: Order) -> None:
    for role in ROLES:
        assert waiting_time(role, order, nat("reset"), own_rtt=0.01, other_rtt=60.0) <= LONGEST_WAIT
