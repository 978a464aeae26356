"""Which of a peer's UDP candidates are checked, when, and how often (pure).

One attempt checks them all, as ICE does (RFC 8445 section 6.1.2): the pairs of a host, an address behind a NAT and an
IPv6 address are one list, and what answers first is used.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from ntcpsock._address import Endpoint, is_private_address
from ntcpsock._config import Prefer
from ntcpsock._report import Budget
from ntcpsock._traversal.candidate import DIRECT_TECHNIQUES, may_share_network
from ntcpsock._traversal.checks.machine import MAX_TRIES, TA
from ntcpsock._traversal.plan import (
    FOREIGN_LAN_DELAY_RTTS,
    LATE,
    SHORTEST_FOREIGN_LAN_DELAY,
    UNPROVEN_PACE,
    UNPROVEN_TRIES,
    PlannedAttempt,
    either_changes,
)
from ntcpsock._traversal.prediction import MAX_OBSERVATIONS
from ntcpsock._traversal.punch.message import Candidate, DialKind, NATProfile

TECHNIQUE = "udp-punch"

# The order in which candidates of one preference are hoped for.
_HOPE = {"host": 0, "mapped": 1, "srflx": 2, "prflx": 3, "relay": 4}

# Seconds; a repeated first packet is a large one.
SHORTEST_HANDSHAKE_RTT = 0.1

#: `udp-birthday`: ports that one side tries at most, each an entry in its own NAT for half a minute or longer, and
#: sockets a second that the other side opens.
MAX_PROBES = 2048
OPENINGS_PER_SECOND = 1000.0

#: `udp-predict`: sockets and ways of one side.
MAX_WAYS = 256
PREDICT_COST = Budget(MAX_WAYS + MAX_OBSERVATIONS, 1000.0, MAX_WAYS + MAX_OBSERVATIONS)

# Where TCP is preferred it goes first: most dials are through before a check is sent, and QUIC's handshake, which
# costs both sides as much as all the rest of a dial, is not begun. Where TCP cannot connect this is the price.
TCP_HEAD_START_RTTS = 3.0
SHORTEST_TCP_HEAD_START = 0.25  # seconds

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
    head_start: float = 0.0,
) -> DatagramPlan | None:
    """The checks of one side; None where there is nothing to check, or it is not wanted.

    local, remote: the UDP candidates of both sides, the remote ones already freed of what may not be sent to. The
    rest as in `make_plan`. wait: what this side is too early by. It does not wait: until then its checks have a low
    TTL, which opens its own NAT and does not come to the other one before that has been opened from inside.
    head_start: seconds that TCP has before the first check, the same at both sides.
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
    delay = head_start + (LATE if TECHNIQUE in late else 0.0)
    return DatagramPlan(
        PlannedAttempt(TECHNIQUE, first, delay, budget, uses=Budget(1, 1 / TA, len(targets))),
        tuple(targets),
        tuple(sorted(guesses.values(), key=sure.index))[:MAX_GUESSES],
    )


# Seconds in which the checks of a port that only its word makes known are to end on the way: the word needs half a
# round trip, and the dialer's first check the other half.
OPENING_RTTS = 2.0
SHORTEST_OPENING = 0.5


def opening_plan(plan: DatagramPlan, rtt: float) -> DatagramPlan:
    """The same checks, of a port of which the other side hears only when they are under way: none comes to its NAT
    before its own host has sent there. One that is heard first is answered at once."""
    low_for = max(SHORTEST_OPENING, OPENING_RTTS * rtt)
    targets = tuple(
        target if target.is_check or target.kind == "host" else replace(target, low_for=low_for)
        for target in plan.targets
    )
    return replace(plan, targets=targets)


# Seconds until a joint technique starts: at once where one side's mappings are known to change, late where nobody
# knows, and last where neither's do. Prediction needs few entries and a moment, so it comes first.
_JOINT_DELAY = {True: 0.0, None: 1.0, False: 2.5}
_BIRTHDAY_LATER = 0.3
# Where TCP is preferred and predicts as well it comes first: two at a time cost the NATs twice as much. Where it has
# missed, because a block keeps a reserve, UDP is to be through before the relay is taken (`relay_plan`).
BEHIND_TCP = 0.7
PREDICT_BUDGET = 6.0
BIRTHDAY_BUDGET = 12.0
# Ports move on, and a path may become possible meanwhile, so prediction is repeated. A round takes somewhat less, and
# the last one lasts until a dial that finds nothing is followed by the next.
PREDICT_ROUNDS = 3
PREDICT_INTERVAL = 2.8


def make_joint_datagram_plan(
    local: NATProfile,
    remote: NATProfile,
    *,
    techniques: Collection[str],
    budget: float,
    proven_host: str,
    earliest: float = 0.0,
    late: Collection[str] = (),
    birthday: Budget | None = None,
    behind_tcp: bool = False,
) -> tuple[PlannedAttempt, ...]:
    """The leader's joint attempts over UDP, earliest first, as `make_joint_plan`. local, remote: of UDP; birthday: what
    that technique may use (`birthday_cost`); behind_tcp: whether `tcp-predict` is to have its turn before."""
    if not proven_host:
        return ()
    changes = either_changes(local, remote)
    planned = []
    for technique, later, most, cost in (
        *(
            ("udp-predict", number * PREDICT_INTERVAL, PREDICT_BUDGET, PREDICT_COST)
            for number in range(PREDICT_ROUNDS)
        ),
        ("udp-birthday", _BIRTHDAY_LATER, BIRTHDAY_BUDGET, birthday),
        # One at a time: the second one begins where the first has ended early, because a word or an answer was lost.
        ("udp-birthday", 2 * _BIRTHDAY_LATER, BIRTHDAY_BUDGET, birthday),
    ):
        delay = max(earliest, _JOINT_DELAY[changes] + later + (BEHIND_TCP if behind_tcp else 0.0))
        delay += LATE if technique in late else 0.0
        if technique in techniques and delay < budget:
            planned.append(
                PlannedAttempt(
                    technique, Endpoint(proven_host, 0), delay, min(budget, delay + most), uses=cost
                )
            )
    return tuple(sorted(planned, key=lambda attempt: attempt.delay))


def birthday_cost(sockets: int, rate: float) -> Budget:
    """The most that `udp-birthday` uses at one side: it opens sockets where that side's NAT changes, and tries ports
    where the other one's does."""
    return Budget(sockets + MAX_OBSERVATIONS, max(rate, OPENINGS_PER_SECOND), max(sockets, MAX_PROBES))


def head_start_of_tcp(prefer: Prefer, round_number: int, rtt: float) -> float:
    """Seconds from the begin of a round until its checks. Later rounds are for what TCP did not bring."""
    if prefer != "tcp" or round_number > 1:
        return 0.0
    return max(SHORTEST_TCP_HEAD_START, TCP_HEAD_START_RTTS * rtt)


def preference(prefer: Prefer, techniques: Collection[str], kind: DialKind) -> Prefer:
    """What a dial prefers: nothing is gained by a head start of what is not tried. Datagrams want no stream."""
    return "udp" if kind == "datagram" or not set(techniques) & set(DIRECT_TECHNIQUES) else prefer


def udp_profile(profile: NATProfile, of_udp: NATProfile | None) -> NATProfile:
    """What is known of a NAT for UDP, where the peer has said something of its own or not."""
    return profile if of_udp is None else of_udp


def handshake_rtt(rtt: float) -> float:
    """What a handshake may take for the path's round trip, before it has measured: what is estimated, and some."""
    return max(SHORTEST_HANDSHAKE_RTT, 1.5 * rtt)
