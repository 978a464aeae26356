"""`tcp-open`: TCP simultaneous open between two server-reflexive candidates (P2PNAT, Ford et al. 2005)."""

from __future__ import annotations

from ntcpsock._traversal.punch.machine import PunchMachine
from ntcpsock._traversal.strategies.base import AttemptContext, Connection, punch_and_authenticate


async def attempt(context: AttemptContext) -> Connection:
    return await punch_and_authenticate(context, PunchMachine(context.rtt))
