"""`public`: one side has a public address of its own, and the other one connects to it.

Both sides try: where a firewall stands before the public address, the crossing SYNs open it.
"""

from __future__ import annotations

from ntcpsock._traversal.punch.machine import PunchMachine
from ntcpsock._traversal.strategies.base import AttemptContext, Connection, punch_and_authenticate


async def attempt(context: AttemptContext) -> Connection:
    return await punch_and_authenticate(context, PunchMachine(context.rtt))
