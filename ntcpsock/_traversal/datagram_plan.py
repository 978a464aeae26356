"""Which of a peer's UDP candidates are checked, when, and how often (pure).

One attempt checks them all, as ICE does (RFC 8445 section 6.1.2): the pairs of a host, an address behind a NAT and an
IPv6 address are one list, and what answers first is used.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from ntcpsock._address import Endpoint, is_private_address
from ntcpsock._traversal.candidate import may_share_network
from ntcpsock._traversal.checks.machine import CONSENT_INTERVAL, MAX_TRIES, TA
from ntcpsock._traversal.plan import (
    FOREIGN_LAN_DELAY_RTTS,
    LATE,
    SHORTEST_FOREIGN_LAN_DELAY,
    UNPROVEN_PACE,
    UNPROVEN_TRIES,
    PlannedAttempt,
)
from ntcpsock._traversal.punch.message import Candidate, NATProfile

TECHNIQUE = "udp-punch"

# The order in which candidates of one preference are hoped for.
_HOPE = {"host": 0, "mapped": 1, "srflx": 2, "prflx": 3, "relay": 4}

# Seconds; a repeated first packet is a large one.
SHORTEST_HANDSHAKE_RTT = 0.1

# Ways of the first packet: each costs it once more.
MAX_GUESSES = 2


@dataclass(frozen=True, slots=True)
class CheckTarget:
    """One candidate to check. delay: seconds after the attempt's begin; low_for: seconds in which checks are not to
    reach the other side's NAT, and only open ours."""

    remote: Endpoint
    kind: str
    tries: int = MAX_TRIES
    delay: float = 0.0
    low_for: float = 0.0

    @property
    def is_check(self) -> bool:
        """Whether only the peer says that it is there."""
        return self.tries <= UNPROVEN_TRIES


@dataclass(frozen=True, slots=True)
class DatagramPlan:
    """attempt: for report and race; guesses: where the first packet goes beside the first checks, best first."""

    attempt: PlannedAttempt
    targets: tuple[CheckTarget, ...]
    guesses: tuple[Endpoint, ...]


def make_datagram_plan(
    local: Sequence[Candidate],
    remote: Sequence[Candidate],
    *,
    techniques: Collection[str],
    rtt: float,
    budget: float,
    proven_host: str,
    also_proven: Collection[str] = (),
    wait: float = 0.0,
    late: Collection[str] = (),
) -> DatagramPlan | None:
    """The checks of one side; None where there is nothing to check, or it is not wanted.

    local, remote: the UDP candidates of both sides, the remote ones already freed of what may not be sent to. The
    rest as in `make_plan`. wait: what this side is too early by. It does not wait: until then its checks have a low
    TTL, which opens its own NAT and does not come to the other one before that has been opened from inside.
    """
    if TECHNIQUE not in techniques or not remote:
        return None
    targets = []
    for candidate in sorted(remote, key=lambda candidate: _HOPE[candidate.type]):
        proven = candidate.host == proven_host or candidate.host in also_proven
        delay = 0.0
        if is_private_address(candidate.host) and not proven and not may_share_network(local, remote):
            delay = max(SHORTEST_FOREIGN_LAN_DELAY, FOREIGN_LAN_DELAY_RTTS * rtt)
        low_for = wait if candidate.type != "host" else 0.0
        targets.append(
            CheckTarget(candidate.endpoint, candidate.type, MAX_TRIES, delay, low_for)
            if proven
            else CheckTarget(candidate.endpoint, candidate.type, UNPROVEN_TRIES, delay)
        )
    next_check = 0.0
    for number, target in enumerate(targets):
        if target.is_check:
            targets[number] = replace(target, delay=max(target.delay, next_check))
            next_check = targets[number].delay + UNPROVEN_PACE
    sure = [target.remote for target in targets if not target.is_check]
    guesses = {endpoint.is_ipv6: endpoint for endpoint in reversed(sure)}
    first = sure[0] if sure else targets[0].remote
    delay = LATE if TECHNIQUE in late else 0.0
    return DatagramPlan(
        PlannedAttempt(TECHNIQUE, first, delay, budget),
        tuple(targets),
        tuple(sorted(guesses.values(), key=sure.index))[:MAX_GUESSES],
    )


def udp_profile(profile: NATProfile, of_udp: NATProfile | None) -> NATProfile:
    """What is known of a NAT for UDP, where the peer has said something of its own or not."""
    return profile if of_udp is None else of_udp


def handshake_rtt(rtt: float) -> float:
    """What a handshake may take for the path's round trip, before it has measured: what is estimated, and some."""
    return max(SHORTEST_HANDSHAKE_RTT, 1.5 * rtt)


#: Packets a second of an attempt's checks: the first of each pair, and repetitions.
CHECKS_PER_SECOND = 1 / TA

#: Packets a second of an idle path, both sides' together.
CONSENT_PER_SECOND = 2 / CONSENT_INTERVAL
