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
from ntcpsock._traversal.plan import either_changes
from ntcpsock._traversal.punch.message import Candidate, NATProfile

# How long the direct path may take: its attempts are over in 2.5 round trips, and a lost SYN is repeated after 1 s.
GRACE_RTTS = 6.0
SHORTEST_GRACE = 1.0
LONGEST_GRACE = 4.0

# Where ports are foreseen, or tried by the hundred: 95 % of such paths in the lab are up after 9.5 round trips.
PREDICTION_GRACE_RTTS = 12.0
SHORTEST_PREDICTION_GRACE = 1.5

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
    predicts: bool = False,
) -> RelayPlan | None:
    """The dialer's plan; None where no relay may be used, or there is none.

    rtt: the path's, estimated, in seconds; predicts: as `has_to_predict` says.
    """
    if "relay" not in techniques or not relays:
        return None
    if not local or not remote:
        return RelayPlan(0.0, 0.0)
    if _has_public_face(local) == _has_public_face(remote):
        # Two without one are in a network of their own, with its broker, more likely than not.
        shortest, rtts = _PREDICTED if predicts else _USUAL
        grace = min(LONGEST_GRACE, max(shortest, rtts * rtt))
    else:
        grace = NEIGHBOUR_GRACE
    return RelayPlan(max(0.0, grace - PREPARATION_RTTS * rtt), grace)


_USUAL = (SHORTEST_GRACE, GRACE_RTTS)
_PREDICTED = (SHORTEST_PREDICTION_GRACE, PREDICTION_GRACE_RTTS)


def has_to_predict(
    tcp: tuple[NATProfile, NATProfile], udp: tuple[NATProfile, NATProfile], *, techniques: Collection[str]
) -> bool:
    """Whether a NAT of either side is known to change its mappings, and what copes with that is allowed.

    tcp, udp: what is known of our NAT and of the peer's.
    """
    return bool(
        ("tcp-predict" in techniques and either_changes(*tcp))
        or ({"udp-predict", "udp-birthday"} & set(techniques) and either_changes(*udp))
    )


def make_turn_plan(
    local: Sequence[Candidate], remote: Sequence[Candidate], *, rtt: float, predicts: bool = False
) -> RelayPlan:
    """The same for a TURN server of either side's, whether or not one of them answers."""
    anywhere = (Endpoint("", 0),)
    plan = make_relay_plan(local, remote, techniques=("relay",), relays=anywhere, rtt=rtt, predicts=predicts)
    assert plan is not None, "a relay is allowed, and there is one"
    return RelayPlan(max(0.0, plan.use - TURN_PREPARATION_RTTS * rtt), plan.use)


def _has_public_face(candidates: Sequence[Candidate]) -> bool:
    """Whether anything of the node can be aimed at from another network."""
    return has_public_host(candidates) or any(
        candidate.type in ("srflx", "mapped") for candidate in candidates
    )
