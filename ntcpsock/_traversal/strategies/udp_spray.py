"""What `udp-predict` and `udp-birthday` share: both sides observe their NATs, tell each other, and check many ways.

A way is a socket of ours and a port of the other side. The first check that comes through has found a mapping of one
side that the other one aims at; all other sockets are closed then.
"""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from msgspec.structs import replace

from ntcpsock._traversal.bursts import Burst, plain
from ntcpsock._traversal.checks.driver import PunchedPath
from ntcpsock._traversal.checks.pairs import Way
from ntcpsock._traversal.datagram_plan import MAX_WAYS
from ntcpsock._traversal.observe_udp import HeldDatagramPorts, hold_datagram_ports
from ntcpsock._traversal.prediction import Prediction, predict
from ntcpsock._traversal.strategies.base import AttemptContext, Connection
from ntcpsock._traversal.strategies.predictions import exchange_predictions, known_band
from ntcpsock._traversal.strategies.settle import settle

# Seconds for the choice of a way that has been met late: some round trips.
MET_PATIENCE = 1.0


@dataclass(frozen=True)
class Meeting:
    """What both sides have told each other. ours, theirs: where each one's next packets will come from; burst: what is
    made again."""

    held: HeldDatagramPorts
    ours: Prediction
    theirs: Prediction
    burst: Burst | None = None

    @property
    def known_base(self) -> int:
        """The socket whose mapping an exact prediction of ours foretells."""
        observed = self.held.observations
        last = [item.mapped for item in observed if item.local_port == observed[-1].local_port]
        if len(last) > 1 and len(set(last)) == 1:
            return self.held.base_of(observed[-1].local_port)
        return self.held.base_of(self.held.spare)


@asynccontextmanager
async def agree(context: AttemptContext) -> AsyncIterator[Meeting]:
    """Observe, tell, hear. Raises OSError as `exchange_predictions`."""
    assert context.datagram is not None, "one over UDP"
    taken, known = context.taken("udp"), known_band(context, "udp")
    servers = context.servers if known is None else ()
    nursery = context.datagram.nursery
    async with hold_datagram_ports(servers, nursery, taken, towards=context.remote.host) as held:
        foreseen = known
        if known is None and (foreseen := predict(held.observations, held.spare, taken)) is not None:
            foreseen = replace(foreseen, leaves=held.leaves(foreseen))
            context.bursts.own.looked("udp", foreseen, trio.current_time())
        context.note_mapped("udp", [item.mapped.port for item in held.observations])
        agreed = await exchange_predictions(context, foreseen, "udp", MAX_WAYS)
        context.datagram.agreed(agreed.ours, agreed.theirs)
        yield Meeting(held, agreed.ours, agreed.theirs, agreed.burst)


async def wait_nominated(path: PunchedPath, patience: float) -> None:
    """Until a way is chosen, or none has been met after `patience` seconds: what has been met needs a moment more, and
    another round would find no port left of a block."""
    with trio.move_on_after(patience):
        await path.wait_nominated()
    if path.machine.selected is None and path.remote.port:
        with trio.move_on_after(MET_PATIENCE):
            await path.wait_nominated()


async def check_all(
    context: AttemptContext,
    meeting: Meeting,
    ways: Sequence[Way],
    *,
    pace: float,
    patience: float,
    tries: int,
) -> Connection:
    """Check these ways, one after the other, until one comes through; then authenticate the peer over it. They are made
    again another time, where none does.

    pace: seconds between two; patience: seconds until none has; tries: checks of each. Raises OSError.
    """
    access = context.datagram
    assert access is not None, "one over UDP"
    port, now = meeting.held.port, trio.current_time()
    sessions = tuple((port.number_of(base), remote.port) for base, remote in ways)
    context.bursts.begin("udp", _begun(meeting, sessions, now), now)
    machine = access.new_machine(context.role, context.rtt, pace=pace / 2)
    for number, (base, remote) in enumerate(ways):
        machine.add_pair(base, remote, now=now, kind="prflx", tries=tries, delay=number * pace)
    path = PunchedPath(port, machine, access.credentials.local_fragment, rtt=context.rtt)
    context.entry.notes["ways"] = str(len(ways))
    access.run(port, path)

    async def until_usable() -> None:
        await wait_nominated(path, patience)
        if machine.selected is None:
            raise OSError(errno.ETIMEDOUT, f"none of {len(ways)} ways met the other side")
        port.keep_only(machine.selected[0])

    connection = await settle(context, path, until_usable)
    context.bursts.met("udp")
    return connection


def _begun(meeting: Meeting, sessions: tuple[tuple[int, int], ...], now: float) -> Burst:
    if meeting.burst is None:
        return Burst(plain(meeting.ours), plain(meeting.theirs), sessions, now)
    # Those whose ports another dial has at this moment stay with it.
    return dataclasses.replace(
        meeting.burst, sessions=tuple(dict.fromkeys((*meeting.burst.sessions, *sessions)))[-MAX_WAYS:]
    )
