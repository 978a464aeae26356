"""Which attempts, in which order: a pure function of what both sides know.

A label never forbids a punch (design, principle 5): what we believe of a NAT only moves an attempt back.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ntcpsock._address import Endpoint, is_private_address
from ntcpsock._traversal.candidate import DirectTechnique, has_public_host, name_of_pair
from ntcpsock._traversal.punch.message import Candidate

# Another side's private address is most likely a stranger's in our own network when both sides are seen
# from different public addresses. It is tried all the same, after the punch had its time.
FOREIGN_LAN_DELAY_RTTS = 3.0
SHORTEST_FOREIGN_LAN_DELAY = 0.3


@dataclass(frozen=True, slots=True)
class PlannedAttempt:
    """One attempt: its technique and where to. It starts `delay` and ends at the latest `budget` seconds after
    the plan begins."""

    technique: DirectTechnique
    remote: Endpoint
    delay: float
    budget: float


def make_plan(
    local: Sequence[Candidate],
    remote: Sequence[Candidate],
    *,
    techniques: Collection[str],
    rtt: float,
    budget: float,
) -> tuple[PlannedAttempt, ...]:
    """The attempts of one side, earliest first.

    local, remote: the TCP candidates of both sides, already freed of what may not be dialled;
    techniques: the names that are allowed; rtt: estimated path round-trip time in seconds.
    """
    planned = []
    for candidate in remote:
        technique = name_of_pair(local, candidate)
        if technique not in techniques:
            continue
        delay = 0.0
        if technique == "lan" and not _may_share_network(local, remote):
            delay = max(SHORTEST_FOREIGN_LAN_DELAY, FOREIGN_LAN_DELAY_RTTS * rtt)
        planned.append(PlannedAttempt(technique, candidate.endpoint, delay, budget))
    return tuple(sorted(planned, key=lambda attempt: attempt.delay))


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
