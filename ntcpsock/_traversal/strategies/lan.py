"""`lan`: host candidates of one network, or of one machine.

A private address may belong to somebody else here. The wrong host fails the authentication; a few tries are
enough, since nothing has to be opened on the way.
"""

from __future__ import annotations

from ntcpsock._traversal.punch.machine import PunchMachine
from ntcpsock._traversal.strategies.base import AttemptContext, Connection, punch_and_authenticate

LAN_RTT = 0.05
MAX_TRIES = 16


async def attempt(context: AttemptContext) -> Connection:
    return await punch_and_authenticate(context, PunchMachine(min(context.rtt, LAN_RTT), max_tries=MAX_TRIES))
