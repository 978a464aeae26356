"""What every strategy gets and gives: `attempt(context) -> Connection`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from ntcpsock._address import Endpoint
from ntcpsock._report import Attempt
from ntcpsock._session.tls import Carrier
from ntcpsock._traversal.plan import PlannedAttempt
from ntcpsock._traversal.punch.driver import punch
from ntcpsock._traversal.punch.machine import PunchMachine


@dataclass(frozen=True)
class Connection:
    """An authenticated carrier, and how it came to be."""

    carrier: Carrier
    technique: str
    entry: Attempt


#: Makes an authenticated carrier out of a connected socket; closes the socket when it raises.
Authenticate = Callable[[trio.socket.SocketType], Awaitable[Carrier]]


@dataclass(frozen=True)
class AttemptContext:
    """One planned attempt, ready to run. `port` is the local port, `rtt` the path's in seconds."""

    planned: PlannedAttempt
    port: int
    rtt: float
    authenticate: Authenticate
    entry: Attempt

    @property
    def remote(self) -> Endpoint:
        return self.planned.remote


async def punch_and_authenticate(context: AttemptContext, machine: PunchMachine) -> Connection:
    """The TCP attempt that all direct strategies are made of. Raises OSError."""
    try:
        sock = await punch(context.port, context.remote, machine)
    finally:
        context.entry.tries = machine.tries
    return Connection(await context.authenticate(sock), context.planned.technique, context.entry)
