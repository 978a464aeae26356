"""What every strategy gets and gives: `attempt(context) -> Connection`, at both ends."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from ntcpsock._address import Endpoint
from ntcpsock._report import Attempt
from ntcpsock._session.carrier import Carrier
from ntcpsock._session.datagram_road import BareRoad
from ntcpsock._session.plain import PlainCarrier
from ntcpsock._traversal.bursts import PeerBursts
from ntcpsock._traversal.nominate import Role
from ntcpsock._traversal.plan import PlannedAttempt
from ntcpsock._traversal.punch.driver import accept_connections, open_punch_listener, punch, punch_with
from ntcpsock._traversal.punch.given import GivenSocket
from ntcpsock._traversal.punch.machine import PunchMachine
from ntcpsock._traversal.punch.message import Transport
from ntcpsock._traversal.signals import Talk

if TYPE_CHECKING:
    from ntcpsock._traversal.strategies.datagrams import DatagramAccess
    from ntcpsock._traversal.strategies.relay import RelayAccess
    from ntcpsock._traversal.strategies.turn import TurnAccess

# Seconds in which one of many connections must be authenticated: it may have met a stranger's.
AUTHENTICATION_DEADLINE = 5.0

# Connections that one attempt takes from outside, each for a TLS handshake: where a NAT lets in more than was aimed
# at, they may be anybody's.
MAX_TAKEN = 16


@dataclass(frozen=True)
class Connection:
    """An authenticated carrier, and how it came to be."""

    carrier: Carrier | PlainCarrier | BareRoad
    technique: str
    entry: Attempt


#: Makes an authenticated carrier out of a connected socket, and closes the socket when it raises OSError
#: (disconnects the application's own). The leader has proven the follower's key then; the follower has seen the
#: dial's token, so the leader has chosen.
Authenticate = Callable[[trio.socket.SocketType | GivenSocket], Awaitable[Carrier | PlainCarrier]]


#: The ports of a transport that a side's NAT holds for it; and further ones that it was seen to hold.
MappedPorts = Callable[[Transport], Collection[int]]
NoteMapped = Callable[[Transport, Collection[int]], None]


def _none_known(_: Transport) -> Collection[int]:
    return ()


def _unnoted(_: Transport, __: Collection[int]) -> None:
    pass


@dataclass(frozen=True)
class AttemptContext:
    """One planned attempt, ready to run.

    port: the local warm port; rtt: the path's in seconds; servers: the STUN servers; talk: the words with the
    other side, which joint techniques have and direct ones do not; given: the application's own socket, bound
    to that port, where this attempt is the one to use it; relay: for the technique of that name; datagram: for those
    over UDP; turn: for the technique of that name; taken, note_mapped: as `SideContext.mapped_ports` and `note_mapped`;
    bursts: those towards the other side.
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
    datagram: DatagramAccess | None = None
    turn: TurnAccess | None = None
    taken: MappedPorts = _none_known
    note_mapped: NoteMapped = _unnoted
    bursts: PeerBursts = field(default_factory=PeerBursts)

    @property
    def remote(self) -> Endpoint:
        return self.planned.remote


async def punch_and_authenticate(context: AttemptContext, machine: PunchMachine) -> Connection:
    """The TCP attempt that all direct strategies are made of. Raises OSError."""
    machine.max_tries = min(machine.max_tries, context.planned.max_tries)
    sock: trio.socket.SocketType | GivenSocket
    try:
        with trio.fail_after(context.planned.patience):
            if context.given is None:
                sock = await punch(context.port, context.remote, machine, context.planned.source)
            else:
                sock = context.given
                await punch_with(sock, context.remote, machine)
    finally:
        context.entry.tries = machine.tries
    return Connection(await context.authenticate(sock), context.planned.technique, context.entry)


async def first_connection(
    context: AttemptContext,
    sessions: Sequence[tuple[int, Endpoint]],
    *,
    tries: int,
    pace: float,
    patience: float,
    listen: Sequence[int] = (),
) -> Connection:
    """Punch from many local ports at once; the first connection that is authenticated wins, the rest is closed.

    sessions: local port and remote endpoint of each, none twice; tries: SYN attempts of each session; pace: seconds
    between two starts; listen: local ports at which connections are taken too; patience: seconds until all that has not
    met is closed. What has met is authenticated all the same: the other side may have chosen it already. Raises the
    last session's OSError when all have failed.
    """
    found: list[Connection] = []
    failures: list[OSError] = []
    begin = trio.current_time()
    taken = 0

    async def authenticate(sock: trio.socket.SocketType) -> None:
        try:
            with trio.fail_after(AUTHENTICATION_DEADLINE):
                carrier = await context.authenticate(sock)
        except trio.TooSlowError:
            failures.append(TimeoutError(errno.ETIMEDOUT, "met one that did not prove itself"))
            return
        except OSError as error:
            failures.append(error)
            return
        if found:
            carrier.close(abort=True)
        else:
            found.append(Connection(carrier, context.planned.technique, context.entry))
            accepting.cancel_scope.cancel()

    async def run(port: int, remote: Endpoint, start: float) -> None:
        await trio.sleep_until(start)
        machine = PunchMachine(context.rtt, max_tries=tries)
        try:
            with trio.fail_at(begin + patience):
                sock = await punch(port, remote, machine)
            await authenticate(sock)
        except trio.TooSlowError:
            failures.append(TimeoutError(errno.ETIMEDOUT, "met none of the other side's"))
        except OSError as error:
            failures.append(error)
        finally:
            context.entry.tries += machine.tries

    def take(sock: trio.socket.SocketType, _: Endpoint) -> None:
        nonlocal taken
        taken += 1
        if taken > MAX_TAKEN:
            sock.close()
        else:
            punching.start_soon(authenticate, sock)

    listeners: list[trio.socket.SocketType] = []
    try:
        async with trio.open_nursery() as accepting, trio.open_nursery() as punching:
            for number, (port, remote) in enumerate(sessions):
                punching.start_soon(run, port, remote, begin + number * pace)
            for port in listen:
                listeners.append(open_punch_listener(port))
                accepting.start_soon(accept_connections, listeners[-1], take)
            punching.start_soon(_close_when, begin + patience, listeners)
    except BaseException:
        # Cancelled while the nurseries ended: nobody gets it any more. The follower's is in other hands since the
        # leader's choice, which ends all attempts.
        if context.role == "leader":
            for connection in found:
                connection.carrier.close(abort=True)
        raise
    finally:
        for listener in listeners:
            listener.close()
    if found:
        return found[0]
    raise failures[-1] if failures else ConnectionError("there was nothing to try")


async def _close_when(moment: float, listeners: Sequence[trio.socket.SocketType]) -> None:
    """End the accept loops of `listeners`; what has come in goes on."""
    if listeners:
        await trio.sleep_until(moment)
    for listener in listeners:
        listener.close()
