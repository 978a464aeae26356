"""When each side sends its first SYN, so that it meets what it needs (pure).

A SYN that comes to a NAT before that NAT's own host has sent one is stray. Most NATs drop it, and nothing is lost.
Some answer with RST, which ends the other side's attempt: there the first SYNs must cross on the way, so each has
to leave before the other one arrives. The dialer hears of the listener one round trip to the broker after it
asked, the listener hears of the dialer half of both round trips after that; whoever is early can wait.
"""

from __future__ import annotations

from typing import Literal

from ntcpsock._traversal.nominate import Role
from ntcpsock._traversal.punch.message import NATProfile

#: Who sends first. Where only one NAT answers stray SYNs, its own host going first is enough, at any skew.
Order = Literal["together", "dialer first", "listener first"]

_ORDERS: tuple[Order, ...] = ("together", "dialer first", "listener first")

# Seconds by which clocks of tasks, queues and round trips to the broker are off.
MARGIN = 0.02

# The direct path's round trip is 0.7 of the one by way of a third node in the median (Trautwein et al. 2025).
_DIRECT_PATH = 0.7


def order_of_start(dialer: NATProfile, listener: NATProfile, turn: int) -> Order:
    """Both sides' answer out of the same profiles. turn: how many attempts there were before; each next one has
    another order, for labels may be wrong."""
    answering = _answers_stray_syn(dialer), _answers_stray_syn(listener)
    best: Order = "together"
    if answering == (True, False):
        best = "dialer first"
    elif answering == (False, True):
        best = "listener first"
    return _ORDERS[(_ORDERS.index(best) + turn) % len(_ORDERS)]


def waiting_time(
    role: Role,
    order: Order,
    dialer: NATProfile,
    listener: NATProfile,
    *,
    dialer_rtt: float,
    listener_rtt: float,
) -> float:
    """Seconds that this side waits before its first SYN, from when it knows the other side's candidates.

    dialer_rtt, listener_rtt: each side's round trip to the broker. At most one side waits, and no longer than what is
    needed on a path of the expected length; not at all where neither NAT is thought to answer.
    """
    answering = _answers_stray_syn(dialer), _answers_stray_syn(listener)
    if answering == (False, False):
        return 0.0
    # How much later the dialer knows of the listener than the listener of the dialer.
    behind = (dialer_rtt - listener_rtt) / 2
    early = behind if role == "follower" else -behind
    if order == "together":
        path = (dialer_rtt + listener_rtt) / 2
        crossing = path * (_DIRECT_PATH if True in answering else 1.0)
        return max(0.0, min(early, early + MARGIN - crossing))
    goes_first = "leader" if order == "dialer first" else "follower"
    return 0.0 if role == goes_first else max(0.0, early) + MARGIN


def _answers_stray_syn(profile: NATProfile) -> bool | None:
    """None: not known."""
    return None if profile.stray_syn == "unknown" else profile.stray_syn != "drop"
