"""`tcp-predict`: simultaneous open through NATs that give each connection another, but foreseeable, port.

Both sides observe what their NAT does at this moment, tell each other, and open many sessions at once, so that
one of ours comes from a port that the peer aims at while it aims at ours. Ports are held, not walked through:
sessions that were closed no longer count. (RFC 5128 section 3.4; many sockets at once: measured in 2026.)
"""

from __future__ import annotations

import dataclasses
import errno

import trio
from msgspec.structs import replace

from ntcpsock._address import Endpoint
from ntcpsock._traversal.bursts import Burst, plain, steps_to_aim
from ntcpsock._traversal.observe import HeldPorts, hold_ports
from ntcpsock._traversal.prediction import (
    MAX_SESSIONS,
    PACE,
    Prediction,
    Spray,
    expected_hits,
    plan_spray,
    predict,
    punching_port,
)
from ntcpsock._traversal.strategies.base import AttemptContext, Connection, first_connection
from ntcpsock._traversal.strategies.predictions import exchange_predictions, known_band

# SYNs of one session: more only where a NAT answers with RST.
MAX_TRIES = 4

# Expected hits of a round below which it is not worth the entries that it costs both NATs.
WORTHWHILE = 0.02

#: The errno that says so, and nothing else.
NO_PROSPECT = errno.EHOSTUNREACH

# Seconds that sessions are held for the other side's: some round trips, of what is taken for one at most, and
# long enough for the kernel's second SYN, after a second, to get there.
SHORTEST_ROUND = 1.5
LONGEST_RTT = 0.5

# Local ports at which connections are taken, too.
MAX_LISTENERS = 16


async def attempt(context: AttemptContext) -> Connection:
    """Raises OSError; ENODATA where nothing could be observed, EPROTO where the peer's word cannot be used, NO_PROSPECT
    where both NATs choose among too many ports, ENOBUFS where earlier bursts have left too few of them."""
    taken, known = context.taken("tcp"), known_band(context, "tcp")
    servers = context.servers if known is None else ()
    async with hold_ports(servers, taken, towards=context.remote.host) as held:
        foreseen = known
        if known is None and (foreseen := predict(held.observations, held.spare, taken)) is not None:
            foreseen = replace(foreseen, leaves=held.leaves(foreseen))
            context.bursts.own.looked("tcp", foreseen, trio.current_time())
        context.note_mapped("tcp", [item.mapped.port for item in held.observations])
        agreed = await exchange_predictions(context, foreseen, "tcp", MAX_SESSIONS)
        ours, theirs = agreed.ours, agreed.theirs
        if agreed.burst is not None:
            burst = _made_again(held, agreed.burst, ours)
        elif expected_hits(ours, theirs, sessions=held.budget) < WORTHWHILE:
            raise OSError(NO_PROSPECT, "both NATs choose among too many ports for any to be foreseen")
        else:
            spray = plan_spray(ours, theirs, sessions=held.budget)
            burst = Burst(
                plain(ours), plain(theirs), tuple(_sessions(held, ours, spray)), trio.current_time()
            )
        sessions = [(port, Endpoint(context.remote.host, target)) for port, target in burst.sessions]
        context.entry.notes["sessions"] = str(len(sessions))
        # What has not met by then never will: the NATs get their entries back. Both sides wait for the one that has
        # more to open; a busy machine opens them half as fast.
        theirs_too = plan_spray(burst.theirs, burst.ours, sessions=held.budget)
        count = max(len(sessions), theirs_too.local_ports * len(theirs_too.targets))
        patience = 2 * count * PACE + max(SHORTEST_ROUND, 4 * min(context.rtt, LONGEST_RTT))
        # Where a NAT lets in whoever has the right address, more arrive than was aimed at.
        ports = list(dict.fromkeys(port for port, _ in sessions))
        listen = ports if len(ports) <= MAX_LISTENERS else []
        context.bursts.begin("tcp", burst, trio.current_time())
        try:
            connection = await first_connection(
                context, sessions, tries=MAX_TRIES, pace=PACE, patience=patience, listen=listen
            )
        except OSError as error:
            met = f"none of {len(sessions)} sessions met one of the other side's"
            raise OSError(errno.ETIMEDOUT, met) from error
        context.bursts.met("tcp")
        return connection


def _sessions(held: HeldPorts, ours: Prediction, spray: Spray) -> list[tuple[int, int]]:
    """Local and remote port of each session; a known mapping belongs to one local port."""
    if ours.shape in ("exact", "single"):
        ports = [punching_port(held.observations, held.spare)]
    else:
        ports = held.fresh(spray.local_ports)
    return [(port, target) for port in ports for target in spray.targets]


def _made_again(held: HeldPorts, burst: Burst, present: Prediction) -> Burst:
    """The same sessions, and those that our NAT has yet to count."""
    further = [(port, burst.sessions[0][1]) for port in held.fresh(steps_to_aim(burst.ours, present))]
    return dataclasses.replace(burst, sessions=(*burst.sessions, *further)[-MAX_SESSIONS:])
