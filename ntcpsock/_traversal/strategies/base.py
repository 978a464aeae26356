"""What every strategy gets and gives: `attempt(context) -> Connection`, at both ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from ntcpsock._address import Endpoint
from ntcpsock._report import Attempt
from ntcpsock._session.plain import PlainCarrier
from ntcpsock._session.tls import Carrier
from ntcpsock._traversal.nominate import Role
from ntcpsock._traversal.plan import PlannedAttempt
from ntcpsock._traversal.punch.driver import punch, punch_with
from ntcpsock._traversal.punch.given import GivenSocket
from ntcpsock._traversal.punch.machine import PunchMachine
from ntcpsock._traversal.signals import Talk

if TYPE_CHECKING:
    from ntcpsock._traversal.strategies.relay import RelayAccess


@dataclass(frozen=True)
class Connection:
    """An authenticated carrier, and how it came to be."""

    carrier: Carrier | PlainCarrier
    technique: str
    entry: Attempt


#: Makes an authenticated carrier out of a connected socket, and closes the socket when it raises OSError
#: (disconnects the application's own). The leader has proven the follower's key then; the follower has seen the
#: dial's token, so the leader has chosen.
Authenticate = Callable[[trio.socket.SocketType | GivenSocket], Awaitable[Carrier | PlainCarrier]]


@dataclass(frozen=True)
class AttemptContext:
    """One planned attempt, ready to run.

    port: the local warm port; rtt: the path's in seconds; servers: the STUN servers; talk: the words with the
    other side, which joint techniques have and direct ones do not; given: the application's own socket, bound
    to that port, where this attempt is the one to use it; relay: for the technique of that name.
    """

    planned: PlannedAttempt
    port: int
    rtt: float
    authenticate: Authenticate
    entry: Attempt
    role: Role = "leader"
    servers: Sequence[Endpoint] = ()
    talk: Talk | None = None
    given: GivenSocket | None = None
    relay: RelayAccess | None = None

    @property
    def remote(self) -> Endpoint:
        return self.planned.remote


async def punch_and_authenticate(context: AttemptContext, machine: PunchMachine) -> Connection:
    """The TCP attempt that all direct strategies are made of. Raises OSError."""
    machine.max_tries = min(machine.max_tries, context.planned.max_tries)
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


async def first_connection(
    context: AttemptContext, sessions: Sequence[tuple[int, Endpoint]], *, tries: int, pace: float
) -> Connection:
    """Punch from many local ports at once; the first connection that is authenticated wins, the rest is closed.

    sessions: local port and remote endpoint of each, none twice; tries: SYN attempts of each session;
    pace: seconds between two starts. Raises the last session's OSError when all have failed.
    """
    found: list[Connection] = []
    failures: list[OSError] = []

    async def run(port: int, remote: Endpoint, start: float) -> None:
        await trio.sleep_until(start)
        machine = PunchMachine(context.rtt, max_tries=tries)
        try:
            sock = await punch(port, remote, machine)
            carrier = await context.authenticate(sock)
        except OSError as error:
            failures.append(error)
        else:
            if found:
                carrier.close(abort=True)
            else:
                found.append(Connection(carrier, context.planned.technique, context.entry))
                nursery.cancel_scope.cancel()
        finally:
            context.entry.tries += machine.tries

    begin = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number, (port, remote) in enumerate(sessions):
            nursery.start_soon(run, port, remote, begin + number * pace)
    if found:
        return found[0]
    raise failures[-1] if failures else ConnectionError("there was nothing to try")
