"""When each side sends its first SYN, so that it meets what it needs (pure).

A SYN that comes to a NAT before that NAT's own host has sent one is stray. Some NATs answer it with RST, which ends
the other side's attempt; most drop it, which costs its sender a round trip. So the first SYNs should cross on the
way: each leaves before the other one arrives. The dialer hears of the listener one round trip to the broker after it
asked, the listener hears of the dialer half of both round trips after that; whoever is early can wait.
"""

from __future__ import annotations

from typing import Literal

from ntcpsock._traversal.nominate import Role
from ntcpsock._traversal.punch.message import NATProfile

#: Who sends first. Where only one NAT answers stray SYNs, its own host going first is enough, at any skew.
Order = Literal["together", "dialer first", "listener first"]

# Seconds by which clocks of tasks, queues and round trips to the broker are off.
MARGIN = 0.02

# Nobody waits for longer, whatever the other side says of its round trips.
LONGEST_WAIT = 1.0

# The direct path's round trip is 0.7 of the one by way of a third node in the median (Trautwein et al. 2025).
_DIRECT_PATH = 0.7


def order_of_start(dialer: NATProfile, listener: NATProfile, turn: int) -> Order:
    """Both sides' answer out of the same profiles. turn: how many attempts there were before. Crossing comes first,
    for it is the fastest and right for every pair; then roles change, for times may be other than they look."""
    orders: list[Order] = ["together", "dialer first", "listener first"]
    if _answers_stray_syn(listener) and not _answers_stray_syn(dialer):
        orders = ["together", "listener first", "dialer first"]
    return orders[turn % len(orders)]


def waiting_time(role: Role, order: Order, other: NATProfile, *, own_rtt: float, other_rtt: float) -> float:
    """Seconds that this side waits before its first SYN, from when it knows the other side's candidates.

    other: the other side's NAT; own_rtt, other_rtt: each side's round trip to the broker. At most one side waits:
    "together" no longer than what crossing needs on a path of the expected length.
    """
    # The dialer knows of the listener after own_rtt, the listener of the dialer after half of both.
    early = (other_rtt - own_rtt) / 2
    if order == "together":
        path = (own_rtt + other_rtt) / 2
        crossing = path * (_DIRECT_PATH if _answers_stray_syn(other) else 1.0)
        wait = min(early, early + MARGIN - crossing)
    elif role == ("leader" if order == "dialer first" else "follower"):
        wait = 0.0
    else:
        wait = max(0.0, early) + MARGIN
    return min(max(0.0, wait), LONGEST_WAIT)


def _answers_stray_syn(profile: NATProfile) -> bool:
    return profile.stray_syn in ("reset", "icmp")
