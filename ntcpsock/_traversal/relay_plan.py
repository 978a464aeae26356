"""When a dial asks for a relay, and when it uses it: a pure function of what both sides know.

A relay costs its operator traffic and both sides round trips, so a direct path that comes soon is worth waiting for;
but nobody shall wait for one that will not come. The relay is made ready meanwhile, late enough that a dial that
succeeds directly asks no relay for anything.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ntcpsock._address import Endpoint
from ntcpsock._traversal.candidate import has_public_host
from ntcpsock._traversal.punch.message import Candidate

# How long the direct path may take: its attempts are over in 2.5 round trips, and a lost SYN is repeated after 1 s.
GRACE_RTTS = 6.0
SHORTEST_GRACE = 1.0
LONGEST_GRACE = 4.0

# Where one side can be met by neighbours only: they meet in a moment, or are none.
NEIGHBOUR_GRACE = 0.25

# What it takes both sides to meet at the relay and to authenticate each other there.
PREPARATION_RTTS = 4.0

# And at a TURN server: a connection to it and two exchanges, permissions, a word to the other side, checks.
TURN_PREPARATION_RTTS = 6.0


@dataclass(frozen=True, slots=True)
class RelayPlan:
    """Seconds after the race's begin: ask for the relay after `prepare`; use it, where it is ready and direct
    attempts are still under way, after `use`."""

    prepare: float
    use: float


def make_relay_plan(
    local: Sequence[Candidate],
    remote: Sequence[Candidate],
    *,
    techniques: Collection[str],
    relays: Sequence[Endpoint],
    rtt: float,
) -> RelayPlan | None:
    """The dialer's plan; None where no relay may be used, or there is none. rtt: the path's, estimated, in seconds."""
    if "relay" not in techniques or not relays:
        return None
    if not local or not remote:
        return RelayPlan(0.0, 0.0)
    if _has_public_face(local) == _has_public_face(remote):
        # Two without one are in a network of their own, with its broker, more likely than not.
        grace = min(LONGEST_GRACE, max(SHORTEST_GRACE, GRACE_RTTS * rtt))
    else:
        grace = NEIGHBOUR_GRACE
    return RelayPlan(max(0.0, grace - PREPARATION_RTTS * rtt), grace)


def make_turn_plan(local: Sequence[Candidate], remote: Sequence[Candidate], *, rtt: float) -> RelayPlan:
    """The same for a TURN server of either side's, whether or not one of them answers."""
    anywhere = (Endpoint("", 0),)
    plan = make_relay_plan(local, remote, techniques=("relay",), relays=anywhere, rtt=rtt)
    assert plan is not None, "a relay is allowed, and there is one"
    return RelayPlan(max(0.0, plan.use - TURN_PREPARATION_RTTS * rtt), plan.use)


def _has_public_face(candidates: Sequence[Candidate]) -> bool:
    """Whether anything of the node can be aimed at from another network."""
    return has_public_host(candidates) or any(
        candidate.type in ("srflx", "mapped") for candidate in candidates
    )
