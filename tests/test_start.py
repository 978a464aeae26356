"""When both sides start: a table, and SYNs on their way in a model of two NATs and a broker."""

from __future__ import annotations

import itertools

import pytest

from ntcpsock._traversal.nominate import Role
from ntcpsock._traversal.punch.message import NATProfile, SynAnswer
from ntcpsock._traversal.start import MARGIN, Order, order_of_start, waiting_time

ANSWERS: tuple[SynAnswer, ...] = ("unknown", "drop", "reset", "icmp")


def nat(answer: SynAnswer) -> NATProfile:
    return NATProfile(True, "endpoint-independent", stray_syn=answer)


def wait(
    role: Role, order: Order, answers: tuple[SynAnswer, SynAnswer], dialer_rtt: float, listener_rtt: float
) -> float:
    dialer, listener = (nat(answer) for answer in answers)
    return waiting_time(role, order, dialer, listener, dialer_rtt=dialer_rtt, listener_rtt=listener_rtt)


@pytest.mark.parametrize(
    ("dialer", "listener", "orders"),
    [
        ("drop", "drop", ("together", "dialer first", "listener first")),
        ("unknown", "unknown", ("together", "dialer first", "listener first")),
        ("reset", "reset", ("together", "dialer first", "listener first")),
        ("reset", "unknown", ("together", "dialer first", "listener first")),
        ("reset", "drop", ("dialer first", "listener first", "together")),
        ("icmp", "drop", ("dialer first", "listener first", "together")),
        ("drop", "reset", ("listener first", "together", "dialer first")),
    ],
)
def test_orders(dialer: SynAnswer, listener: SynAnswer, orders: tuple[Order, ...]) -> None:
    """Where one NAT alone answers, its host goes first. The next attempt, and the one after it, change roles."""
    got = tuple(order_of_start(nat(dialer), nat(listener), turn) for turn in range(6))
    assert got == orders * 2


@pytest.mark.parametrize(
    ("order", "answers", "rtts", "dialer_waits", "listener_waits"),
    [
        # Nobody answers stray SYNs, or both are equally far from the broker.
        ("together", ("drop", "drop"), (0.01, 0.3), 0.0, 0.0),
        ("together", ("reset", "reset"), (0.1, 0.1), 0.0, 0.0),
        ("together", ("unknown", "unknown"), (0.05, 0.3), 0.0, 0.0),
        # The early one waits: what is needed for crossing on a path that is 0.7 of the one by the broker.
        ("together", ("reset", "reset"), (0.01, 0.3), 0.145 + MARGIN - 0.7 * 0.155, 0.0),
        ("together", ("reset", "reset"), (0.3, 0.01), 0.0, 0.145 + MARGIN - 0.7 * 0.155),
        # Less where nobody knows whether it is needed.
        ("together", ("unknown", "unknown"), (0.01, 0.3), MARGIN - 0.01, 0.0),
        ("together", ("unknown", "unknown"), (0.3, 0.01), 0.0, MARGIN - 0.01),
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


@pytest.mark.parametrize("path_share", [0.7, 1.0, 1.3])
@pytest.mark.parametrize(
    "answers", [("reset", "reset"), ("reset", "drop"), ("drop", "reset"), ("icmp", "icmp")]
)
def test_no_first_syn_meets_a_nat_that_answers(
    answers: tuple[SynAnswer, SynAnswer], path_share: float
) -> None:
    """On paths from 0.7 to 1.3 times the one by the broker each SYN leaves before the other one arrives, wherever
    arriving first would be answered; and nobody waits for longer than until both are ready."""
    for dialer_rtt, listener_rtt in itertools.product(RTTS, RTTS):
        order = order_of_start(nat(answers[0]), nat(answers[1]), 0)
        waits = [wait(role, order, answers, dialer_rtt, listener_rtt) for role in ("leader", "follower")]
        dialer_sends = dialer_rtt + waits[0]
        listener_sends = (dialer_rtt + listener_rtt) / 2 + waits[1]
        one_way = path_share * (dialer_rtt + listener_rtt) / 2
        if answers[0] != "drop":
            assert listener_sends + one_way > dialer_sends
        if answers[1] != "drop":
            assert dialer_sends + one_way > listener_sends
        assert min(waits) == 0.0
        ready = max(dialer_rtt, (dialer_rtt + listener_rtt) / 2)
        assert max(dialer_sends, listener_sends) <= ready + MARGIN + 1e-9
