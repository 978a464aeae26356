"""`udp-predict`: through NATs that give each destination another, but foreseeable, port (RFC 5128 section 3.4).

The same observation, word and plan as `tcp-predict`, over UDP: where a NAT counts, or draws from a small block, the
other side aims at what will come next, and few sockets are enough.
"""

from __future__ import annotations

import errno

from ntcpsock._address import Endpoint
from ntcpsock._traversal.bursts import steps_to_aim
from ntcpsock._traversal.checks.pairs import Way
from ntcpsock._traversal.datagram_plan import MAX_WAYS
from ntcpsock._traversal.prediction import expected_hits, plan_spray
from ntcpsock._traversal.strategies.base import AttemptContext, Connection
from ntcpsock._traversal.strategies.udp_spray import Meeting, agree, check_all

# Expected hits below which it is not worth the entries. Where one port is known `udp-birthday` does the rest.
WORTHWHILE = {True: 3.0, False: 0.02}

# Seconds between two ways, and in which they are held: some round trips.
PACE = 0.001
SHORTEST_ROUND = 1.5


async def attempt(context: AttemptContext) -> Connection:
    """Raises OSError; EHOSTUNREACH where no port can be foreseen."""
    async with agree(context) as meeting:
        sessions = min(MAX_WAYS, meeting.held.budget)
        shapes = {meeting.ours.shape, meeting.theirs.shape}
        expected = expected_hits(meeting.ours, meeting.theirs, sessions=sessions)
        if meeting.burst is None and expected < WORTHWHILE[shapes == {"exact", "band"}]:
            raise OSError(errno.EHOSTUNREACH, "a NAT chooses among too many ports for any to be foreseen")
        ways = _ways(context, meeting, sessions) if meeting.burst is None else _made_again(context, meeting)
        patience = max(SHORTEST_ROUND, 6 * context.rtt) + MAX_WAYS * PACE
        return await check_all(context, meeting, ways, pace=PACE, patience=patience, tries=4)


def _ways(context: AttemptContext, meeting: Meeting, sessions: int) -> list[Way]:
    spray = plan_spray(meeting.ours, meeting.theirs, sessions=sessions)
    if meeting.ours.shape in ("exact", "single"):
        bases = [meeting.known_base]
    else:
        # Opened in the order in which they send: a NAT that counts gives them one port after the other.
        bases = list(meeting.held.fresh(spray.local_ports))
    return [(base, Endpoint(context.remote.host, port)) for base in bases for port in spray.targets]


def _made_again(context: AttemptContext, meeting: Meeting) -> list[Way]:
    """The same ways, and those that our NAT has yet to count. Raises OSError where another dial has all of them."""
    burst = meeting.burst
    assert burst is not None, "one that was made"
    bases = meeting.held.again([port for port, _ in burst.sessions])
    host = context.remote.host
    again = [(bases[port], Endpoint(host, target)) for port, target in burst.sessions if port in bases]
    aim = Endpoint(host, burst.sessions[0][1])
    further = [(base, aim) for base in meeting.held.fresh(steps_to_aim(burst.ours, meeting.ours))]
    if not again and not further:
        raise OSError(errno.EADDRINUSE, "another attempt checks the same ways")
    return [*again, *further][-MAX_WAYS:]
