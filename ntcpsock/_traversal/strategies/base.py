"""What every strategy gets and gives: `attempt(context) -> Connection`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from ntcpsock._address import Endpoint
from ntcpsock._report import Attempt
from ntcpsock._session.plain import PlainCarrier
from ntcpsock._session.tls import Carrier
from ntcpsock._traversal.plan import PlannedAttempt
from ntcpsock._traversal.punch.driver import punch, punch_with
from ntcpsock._traversal.punch.given import GivenSocket
from ntcpsock._traversal.punch.machine import PunchMachine


@dataclass(frozen=True)
class Connection:
    """An authenticated carrier, and how it came to be."""

    carrier: Carrier | PlainCarrier
    technique: str
    entry: Attempt


#: Makes an authenticated carrier out of a connected socket; closes the socket when it raises (disconnects the
#: application's own).
Authenticate = Callable[[trio.socket.SocketType | GivenSocket], Awaitable[Carrier | PlainCarrier]]


@dataclass(frozen=True)
class AttemptContext:
    """One planned attempt, ready to run. `port` is the local port, `rtt` the path's in seconds; given: the
    application's own socket, bound to that port, where this attempt is the one to use it."""

    planned: PlannedAttempt
    port: int
    rtt: float
    authenticate: Authenticate
    entry: Attempt
    given: GivenSocket | None = None

    @property
    def remote(self) -> Endpoint:
        return self.planned.remote


async def punch_and_authenticate(context: AttemptContext, machine: PunchMachine) -> Connection:
    """The TCP attempt that all direct strategies are made of. Raises OSError."""
    sock: trio.socket.SocketType | GivenSocket
    try:
        if context.given is None:
            sock = await punch(context.port, context.remote, machine)
        else:
            sock = context.given
            await punch_with(sock, context.remote, machine)
    finally:
        context.entry.tries = machine.tries
    return Connection(await context.authenticate(sock), context.planned.technique, context.entry)
