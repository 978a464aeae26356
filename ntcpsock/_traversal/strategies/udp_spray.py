"""What `udp-predict` and `udp-birthday` share: both sides observe their NATs, tell each other, and check many ways.

A way is a socket of ours and a port of the other side. The first check that comes through has found a mapping of one
side that the other one aims at; all other sockets are closed then.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from ntcpsock._traversal.checks.driver import PunchedPath
from ntcpsock._traversal.checks.pairs import Way
from ntcpsock._traversal.observe_udp import HeldDatagramPorts, hold_datagram_ports
from ntcpsock._traversal.prediction import (
    Prediction,
    predict,
)
from ntcpsock._traversal.strategies.base import AttemptContext, Connection
from ntcpsock._traversal.strategies.predictions import exchange_predictions
from ntcpsock._traversal.strategies.settle import settle

# Seconds for the choice of a way that has been met late: some round trips.
MET_PATIENCE = 1.0


@dataclass(frozen=True)
class Meeting:
    """What both sides have told each other. ours, theirs: where each one's next packets will come from."""

    held: HeldDatagramPorts
    ours: Prediction
    theirs: Prediction

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
    """Observe, tell, hear. Raises OSError: ENODATA where nothing was observed, EPROTO where the other side's word
    cannot be used, ETIMEDOUT where it does not come."""
    assert context.datagram is not None, "one over UDP"
    taken = context.taken("udp")
    async with hold_datagram_ports(context.servers, context.datagram.nursery, taken) as held:
        foreseen = predict(held.observations, held.spare, taken)
        context.note_mapped("udp", [item.mapped.port for item in held.observations])
        ours, theirs = await exchange_predictions(context, foreseen, " over UDP")
        context.datagram.agreed(ours, theirs)
        yield Meeting(held, ours, theirs)


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
    """Check these ways, one after the other, until one comes through; then authenticate the peer over it.

    pace: seconds between two; patience: seconds until none has; tries: checks of each. Raises OSError.
    """
    access = context.datagram
    assert access is not None, "one over UDP"
    port, now = meeting.held.port, trio.current_time()
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

    return await settle(context, path, until_usable)
