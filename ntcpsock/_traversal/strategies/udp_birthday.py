"""`udp-birthday`: a side whose port is known meets one whose NAT draws another port for every destination.

The changing side opens many sockets, each to the known port of the other: so many ports of its NAT are open to that
one. The other side tries ports at random. With 256 open ones of 64,512 every 252nd try hits in the mean, and of 1,500
tries all miss in 0.3 % of the cases. As with birthdays: many on both sides, and two are alike. It costs both NATs
entries, so it is paced and bounded (`birthday_sockets`, `birthday_rate`), and can be switched off.
"""

from __future__ import annotations

import errno
import random

from ntcpsock._address import Endpoint
from ntcpsock._traversal.checks.pairs import Way
from ntcpsock._traversal.datagram_plan import MAX_PROBES, OPENINGS_PER_SECOND
from ntcpsock._traversal.strategies.base import AttemptContext, Connection
from ntcpsock._traversal.strategies.udp_spray import Meeting, agree, check_all

# Ports that NATs give to clients (RFC 4787 section 4.2.2): the system's own are rarely among them.
_LOWEST_PORT, _HIGHEST_PORT = 1024, 65535

# Seconds that the changing side holds its sockets longer than the other one tries.
_MARGIN = 2.0

# Of a narrow band so much is used.
SHARE_OF_BAND = 4

_rng = random.SystemRandom()


async def attempt(context: AttemptContext) -> Connection:
    """Raises OSError; EHOSTUNREACH where it is the wrong means: both ports are known, or neither."""
    assert context.datagram is not None, "one over UDP"
    sockets, rate = context.datagram.birthday_sockets, context.datagram.birthday_rate
    async with agree(context) as meeting:
        known, changing = meeting.ours.shape == "exact", meeting.theirs.shape == "band"
        if known and changing:
            ways = _guesses(meeting, context.planned.budget * rate)
            pace = 1 / rate
        elif meeting.ours.shape == "band" and meeting.theirs.shape == "exact":
            # A customer of a carrier may have a few hundred ports: the rest of the household needs some.
            share = max(SHARE_OF_BAND, meeting.ours.width // SHARE_OF_BAND)
            most = share if meeting.ours.most is None else meeting.ours.most
            count = min(sockets, meeting.held.budget, share, most)
            remote = Endpoint(context.remote.host, meeting.theirs.low)
            ways = [(base, remote) for base in meeting.held.fresh(count)]
            pace = 1 / OPENINGS_PER_SECOND
        else:
            which = "neither side has" if meeting.ours.shape != "exact" else "both sides have"
            raise OSError(errno.EHOSTUNREACH, f"{which} a known port: nothing to guess")
        patience = context.planned.budget + _MARGIN
        return await check_all(context, meeting, ways, pace=pace, patience=patience, tries=1)


def _guesses(meeting: Meeting, affordable: float) -> list[Way]:
    """Our known socket to ports of the other side at random, those near what was observed of a narrow band first."""
    theirs = meeting.theirs
    candidates = list(range(max(_LOWEST_PORT, theirs.low), min(_HIGHEST_PORT, theirs.high) + 1))
    count = int(min(MAX_PROBES, affordable))
    chosen = _rng.sample(candidates, min(count, len(candidates)))
    if len(chosen) < count:
        others = [
            port for port in range(_LOWEST_PORT, _HIGHEST_PORT + 1) if not theirs.low <= port <= theirs.high
        ]
        chosen += _rng.sample(others, count - len(chosen))
    base = meeting.known_base
    return [(base, Endpoint(theirs.host, port)) for port in chosen]
