"""`port-mapped`: connect to a port that the peer's router forwards, because the peer has asked it to.

By UPnP-IGD, NAT-PMP or PCP. Only one side has to send: nothing must be opened on the way.
"""

from __future__ import annotations

from ntcpsock._traversal.punch.machine import PunchMachine
from ntcpsock._traversal.strategies.base import AttemptContext, Connection, punch_and_authenticate


async def attempt(context: AttemptContext) -> Connection:
    return await punch_and_authenticate(context, PunchMachine(context.rtt))
