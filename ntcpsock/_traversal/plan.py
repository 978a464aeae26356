"""Which attempts, in which order: a pure function of what both sides know.

Direct techniques (`make_plan`) need nothing but the other side's candidates: each side makes its own plan, and
both come out alike. Joint ones (`make_joint_plan`) need both sides to do the same at the same time: the leader
plans them, and announces each in an offer of its own.

A label never forbids a punch (design, principle 5): what we believe of a NAT only moves an attempt back.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from ntcpsock._address import Endpoint, is_private_address
from ntcpsock._report import Budget
from ntcpsock._traversal.candidate import has_public_host, may_share_network, name_of_pair
from ntcpsock._traversal.prediction import MAX_OBSERVATIONS, MAX_SESSIONS, PACE
from ntcpsock._traversal.punch.machine import SHORTEST_RETRY_SPAN
from ntcpsock._traversal.punch.message import Candidate, NATProfile

# Another side's private address is most likely a stranger's in our own network when both sides are seen
# from different public addresses. It is tried all the same, after the punch had its time.
FOREIGN_LAN_DELAY_RTTS = 3.0
SHORTEST_FOREIGN_LAN_DELAY = 0.3

# The machine's own choice of an uplink comes first: others may be slow or cost money.
UPLINK_DELAY_RTTS = 1.0

# Seconds until a dialer asks its own router for a port, so that the listener can connect to it: at once where one of
# the NATs is known to change its mappings, and else when the punch had its time. Where the listener can be reached
# anyhow there is more of it.
_MAPPING_DELAY = {True: 0.0, None: 0.5, False: 1.0}
_UNNEEDED_MAPPING_DELAY = 1.5

# A listener whose router forwards a port lets the dialer come first: its own SYN would leave its router from another
# port, and lead the answer to the dialer's SYN the same way.
MAPPED_COURTESY_RTTS = 1.5
SHORTEST_MAPPED_COURTESY = 0.1

#: Techniques that both sides do together, in a round that the leader announces. So is the relay, which has a plan of
#: its own (`relay_plan.py`).
JOINT_TECHNIQUES = (
    "tcp-predict",
    "tcp-stunt2",
    "tcp-natblaster",
    "tcp-stunt1",
    "udp-predict",
    "udp-birthday",
)

#: Those that hold hundreds of sockets and NAT entries: one at a time between two nodes.
COSTLY_TECHNIQUES = ("tcp-predict", "udp-birthday")

#: Those that need raw packets at both ends.
RAW_TECHNIQUES = ("tcp-natblaster", "tcp-stunt1")

# connect() calls towards one candidate: the cure against NATs that answer with RST needs some.
MAX_TRIES = 64

# A peer may name any address. What nobody but the peer says gets one SYN, and no second one: the kernel would
# repeat it after a second. Several such checks start one after the other (Ta of RFC 8445 section 14.2).
UNPROVEN_TRIES = 1
UNPROVEN_PATIENCE = 0.95
UNPROVEN_PACE = 0.05
UNPROVEN_BUDGET = 5.0

# What has never worked on this network starts so many seconds after what has.
LATE = 1.0

# Where IPv6 will do, no IPv4 NAT is filled with hundreds of entries: it has had its time by then.
IPV6_HEAD_START_RTTS = 3.0
LONGEST_IPV6_HEAD_START = 0.5

# Prediction costs both NATs entries: at once where one is known to change its mappings, late where nobody
# knows, and last where both are known not to. Ports move on meanwhile, so it is repeated. Seconds.
_PREDICT_DELAY = {True: 0.0, None: 1.5, False: 3.0}
PREDICT_INTERVAL = 1.6
PREDICT_BUDGET = 6.0

# For the NATs that refuse a simultaneous open, so they start when that has had its time; once each. Seconds.
_LATE_DELAY = {"tcp-stunt2": 2.5, "tcp-natblaster": 3.5, "tcp-stunt1": 4.5}
LATE_BUDGET = 5.0


@dataclass(frozen=True, slots=True)
class PlannedAttempt:
    """One attempt: its technique and where to. It starts `delay` and ends at the latest `budget` seconds after
    the plan begins; `max_tries` bounds the SYNs to one endpoint, `patience` the seconds that one may stay unanswered.
    A joint technique learns the ports on the way: its `remote` is the peer's public address with port 0. source: the
    own address to come from, where that is not the one that leads there by itself. uses: the most that it uses; None:
    as TCP's do."""

    technique: str
    remote: Endpoint
    delay: float
    budget: float
    max_tries: int = MAX_TRIES
    patience: float = math.inf
    source: str = ""
    uses: Budget | None = None

    @property
    def is_check(self) -> bool:
        """Whether only the peer says that it is there."""
        return self.max_tries <= UNPROVEN_TRIES

    def cost(self, rtt: float) -> Budget:
        """The most that it uses, on a path of `rtt` seconds."""
        if self.uses is not None:
            return self.uses
        if self.technique in _JOINT_COSTS:
            return _JOINT_COSTS[self.technique]
        # A refused SYN is repeated after a pause that is half the span in the mean.
        return Budget(1, 1.0 if self.is_check else 2 / max(rtt, SHORTEST_RETRY_SPAN), 1)


_JOINT_COSTS = {
    "tcp-predict": Budget(MAX_SESSIONS + MAX_OBSERVATIONS, 1 / PACE, MAX_SESSIONS + MAX_OBSERVATIONS)
}


def make_plan(
    local: Sequence[Candidate],
    remote: Sequence[Candidate],
    *,
    techniques: Collection[str],
    rtt: float,
    budget: float,
    proven_host: str,
    also_proven: Collection[str] = (),
    uplinks: Sequence[str] = (),
    wait: float = 0.0,
    late: Collection[str] = (),
) -> tuple[PlannedAttempt, ...]:
    """The direct attempts of one side, earliest first.

    local, remote: the TCP candidates of both sides, already freed of what may not be dialled;
    techniques: the names that are allowed; rtt: estimated path round-trip time in seconds;
    proven_host: where the broker sees the peer; also_proven: further addresses that the peer has proved to it.
    Others are only the peer's word. uplinks: own addresses that lead out another way (a multi-homed machine).
    wait: this side's waiting time (`start.py`); late: techniques that have never worked on this network.
    """
    planned = []
    for candidate in remote:
        technique = name_of_pair(local, candidate)
        if technique not in techniques or not _has_family_of(candidate, local):
            continue
        delay = 0.0 if technique in ("lan", "port-mapped") else wait
        if is_private_address(candidate.host) and not may_share_network(local, remote):
            delay = max(SHORTEST_FOREIGN_LAN_DELAY, FOREIGN_LAN_DELAY_RTTS * rtt)
        if technique == "tcp-open" and any(ours.type == "mapped" for ours in local):
            delay = max(delay, SHORTEST_MAPPED_COURTESY, MAPPED_COURTESY_RTTS * rtt)
        planned.append(PlannedAttempt(technique, candidate.endpoint, delay, budget))
    planned = [
        replace(attempt, delay=attempt.delay + LATE) if attempt.technique in late else attempt
        for attempt in planned
    ]
    planned += [
        replace(attempt, delay=attempt.delay + UPLINK_DELAY_RTTS * rtt, source=uplink)
        for attempt in planned
        for uplink in uplinks
        if attempt.technique != "lan" and attempt.remote.is_ipv6 == (":" in uplink)
    ]
    # Where two begin at the same time to the same endpoint, the first one counts.
    planned.sort(key=lambda attempt: (attempt.delay, attempt.technique != "port-mapped"))
    next_check = 0.0
    for number, attempt in enumerate(planned):
        if attempt.remote.host != proven_host and attempt.remote.host not in also_proven:
            delay = max(attempt.delay, next_check)
            next_check = delay + UNPROVEN_PACE
            planned[number] = replace(
                attempt,
                delay=delay,
                budget=min(budget, delay + UNPROVEN_BUDGET),
                max_tries=UNPROVEN_TRIES,
                patience=UNPROVEN_PATIENCE,
            )
    return tuple(sorted(planned, key=lambda attempt: attempt.delay))


def make_joint_plan(
    local: NATProfile,
    remote: NATProfile,
    *,
    techniques: Collection[str],
    budget: float,
    proven_host: str,
    earliest: float = 0.0,
    late: Collection[str] = (),
) -> tuple[PlannedAttempt, ...]:
    """The leader's joint attempts, earliest first: one round each, none before `earliest` seconds.

    They aim at many ports of one address, an IPv4 one, which must be proven: without it there are none.
    """
    if not proven_host:
        return ()
    planned = []
    if "tcp-predict" in techniques:
        usual = _PREDICT_DELAY[either_changes(local, remote)] + (LATE if "tcp-predict" in late else 0.0)
        delay = max(earliest, usual)
        while delay < min(budget, _PREDICT_DELAY[None] + PREDICT_BUDGET):
            planned.append(
                PlannedAttempt(
                    "tcp-predict", Endpoint(proven_host, 0), delay, min(budget, delay + PREDICT_BUDGET)
                )
            )
            delay += PREDICT_INTERVAL
    last = [technique for technique in _LATE_DELAY if technique in techniques]
    # Without anything before them there is nothing to wait for.
    begin = (
        0.0
        if set(techniques) - {*last, "relay", "turn"}
        else min((_LATE_DELAY[name] for name in last), default=0.0)
    )
    for technique in last:
        delay = max(earliest, _LATE_DELAY[technique] - begin) + (LATE if technique in late else 0.0)
        if delay < budget:
            planned.append(
                PlannedAttempt(technique, Endpoint(proven_host, 0), delay, min(budget, delay + LATE_BUDGET))
            )
    return tuple(sorted(planned, key=lambda attempt: attempt.delay))


def ipv6_head_start(plan: Sequence[PlannedAttempt], rtt: float) -> float:
    """Seconds by which direct attempts over IPv6 are ahead of joint ones; 0 where there are none."""
    if not any(planned.technique == "ipv6" for planned in plan):
        return 0.0
    return min(LONGEST_IPV6_HEAD_START, IPV6_HEAD_START_RTTS * rtt)


def raw_obstacles(
    techniques: Collection[str], *, here: str | None, there: bool, broker_spoofs: bool
) -> dict[str, str]:
    """Which of the techniques with raw packets are impossible between these two nodes, and what they lack.

    here: what this side lacks for raw packets, None for nothing; there: whether the other side can; broker_spoofs:
    whether the broker's operator allows it to send the SYN-ACKs of `tcp-stunt1`.
    """
    obstacles = {}
    for technique in RAW_TECHNIQUES:
        if technique not in techniques:
            continue
        if here is not None:
            obstacles[technique] = f"{technique} lacks {here}"
        elif not there:
            obstacles[technique] = (
                f"{technique}: the other side cannot, or does not want to, send raw packets: it needs root or "
                "CAP_NET_RAW, the extra ntcpsock[raw], and this technique in its settings"
            )
        elif technique == "tcp-stunt1" and not broker_spoofs:
            obstacles[technique] = (
                f"{technique}: the broker sends no SYN-ACKs: its operator has not switched --allow-spoofing on"
            )
    return obstacles


def mapping_delay(
    local: NATProfile, remote: NATProfile, candidates: Sequence[Candidate], *, techniques: Collection[str]
) -> float:
    """Seconds after its start when a dialer asks its own router for a port. candidates: the listener's."""
    if "tcp-open" not in techniques:
        return 0.0
    delay = _MAPPING_DELAY[either_changes(local, remote)]
    if has_public_host(candidates) or any(candidate.type == "mapped" for candidate in candidates):
        return max(delay, _UNNEEDED_MAPPING_DELAY)
    return delay


def either_changes(local: NATProfile, remote: NATProfile) -> bool | None:
    if local.changes or remote.changes:
        return True
    return None if None in (local.changes, remote.changes) else False


def _has_family_of(remote: Candidate, local: Sequence[Candidate]) -> bool:
    """Whether we have an address of the candidate's family; with none at all we do not know."""
    families = {candidate.endpoint.is_ipv6 for candidate in local}
    return not families or remote.endpoint.is_ipv6 in families
