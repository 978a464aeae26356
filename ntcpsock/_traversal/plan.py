"""Which attempts, in which order: a pure function of what both sides know.

Direct techniques (`make_plan`) need nothing but the other side's candidates: each side makes its own plan, and
both come out alike. Joint ones (`make_joint_plan`) need both sides to do the same at the same time: the leader
plans them, and announces each in an offer of its own.

A label never forbids a punch (design, principle 5): what we believe of a NAT only moves an attempt back.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ntcpsock._address import Endpoint, is_private_address
from ntcpsock._traversal.candidate import has_public_host, name_of_pair
from ntcpsock._traversal.punch.message import Candidate, NATProfile

# Another side's private address is most likely a stranger's in our own network when both sides are seen
# from different public addresses. It is tried all the same, after the punch had its time.
FOREIGN_LAN_DELAY_RTTS = 3.0
SHORTEST_FOREIGN_LAN_DELAY = 0.3

#: Techniques that both sides do together, in a round that the leader announces.
JOINT_TECHNIQUES = ("tcp-predict", "relay")

# connect() calls towards one candidate: the cure against NATs that answer with RST needs some.
MAX_TRIES = 64

# A peer may name any address. What nobody but the peer says gets one SYN, and no second one: the kernel would
# repeat it after a second.
UNPROVEN_TRIES = 1
UNPROVEN_BUDGET = 0.95

# Prediction costs both NATs entries: at once where one is known to change its mappings, late where nobody
# knows, and last where both are known not to. Ports move on meanwhile, so it is repeated. Seconds.
_PREDICT_DELAY = {True: 0.0, None: 1.5, False: 3.0}
PREDICT_INTERVAL = 1.6
PREDICT_BUDGET = 6.0


@dataclass(frozen=True, slots=True)
class PlannedAttempt:
    """One attempt: its technique and where to. It starts `delay` and ends at the latest `budget` seconds after
    the plan begins; `max_tries` bounds the SYNs to one endpoint. A joint technique learns the ports on the way:
    its `remote` is the peer's public address with port 0."""

    technique: str
    remote: Endpoint
    delay: float
    budget: float
    max_tries: int = MAX_TRIES


def make_plan(
    local: Sequence[Candidate],
    remote: Sequence[Candidate],
    *,
    techniques: Collection[str],
    rtt: float,
    budget: float,
    proven_host: str,
) -> tuple[PlannedAttempt, ...]:
    """The direct attempts of one side, earliest first.

    local, remote: the TCP candidates of both sides, already freed of what may not be dialled;
    techniques: the names that are allowed; rtt: estimated path round-trip time in seconds;
    proven_host: where the broker sees the peer. Other addresses are only the peer's word.
    """
    planned = []
    for candidate in remote:
        technique = name_of_pair(local, candidate)
        if technique not in techniques:
            continue
        delay = 0.0
        if technique == "lan" and not _may_share_network(local, remote):
            delay = max(SHORTEST_FOREIGN_LAN_DELAY, FOREIGN_LAN_DELAY_RTTS * rtt)
        if candidate.host == proven_host:
            planned.append(PlannedAttempt(technique, candidate.endpoint, delay, budget))
        else:
            until = min(budget, delay + UNPROVEN_BUDGET)
            planned.append(PlannedAttempt(technique, candidate.endpoint, delay, until, UNPROVEN_TRIES))
    return tuple(sorted(planned, key=lambda attempt: attempt.delay))


def make_joint_plan(
    local: NATProfile, remote: NATProfile, *, techniques: Collection[str], budget: float, proven_host: str
) -> tuple[PlannedAttempt, ...]:
    """The leader's joint attempts, earliest first: one round each.

    They aim at many ports of one address, so that address must be proven: without it there are none.
    """
    if not proven_host:
        return ()
    planned = []
    if "tcp-predict" in techniques:
        delay = _PREDICT_DELAY[_either_changes(local, remote)]
        while delay < min(budget, _PREDICT_DELAY[None] + PREDICT_BUDGET):
            planned.append(
                PlannedAttempt(
                    "tcp-predict", Endpoint(proven_host, 0), delay, min(budget, delay + PREDICT_BUDGET)
                )
            )
            delay += PREDICT_INTERVAL
    return tuple(sorted(planned, key=lambda attempt: attempt.delay))


def _either_changes(local: NATProfile, remote: NATProfile) -> bool | None:
    if local.changes or remote.changes:
        return True
    return None if None in (local.changes, remote.changes) else False


def _may_share_network(local: Sequence[Candidate], remote: Sequence[Candidate]) -> bool:
    """Unless each side has a public face of its own, and they differ, both may be in one network."""
    ours, theirs = _public_faces(local), _public_faces(remote)
    return not ours or not theirs or bool(ours & theirs)


def _public_faces(candidates: Sequence[Candidate]) -> set[str]:
    return {
        candidate.host
        for candidate in candidates
        if (candidate.type == "srflx" or has_public_host([candidate]))
        and not is_private_address(candidate.host)
    }
