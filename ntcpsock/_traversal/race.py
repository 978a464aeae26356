"""The race: many attempts at once, one winner, losers closed.

As trio's `open_tcp_stream`, with attempts that may be added while it runs, and with connections that come in
on the punching port beside those that we make.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import trio

from ntcpsock._address import Endpoint
from ntcpsock._config import Prefer
from ntcpsock._report import Attempt, Report
from ntcpsock._traversal.aim import Aim
from ntcpsock._traversal.bursts import PeerBursts
from ntcpsock._traversal.datagram_plan import CheckTarget
from ntcpsock._traversal.nominate import Nomination
from ntcpsock._traversal.patience import Group, Patience, group_of
from ntcpsock._traversal.plan import PlannedAttempt
from ntcpsock._traversal.punch.driver import accept_connections, bound_to
from ntcpsock._traversal.punch.given import GivenSocket
from ntcpsock._traversal.signals import Talk
from ntcpsock._traversal.strategies import STRATEGIES
from ntcpsock._traversal.strategies.base import (
    AttemptContext,
    Authenticate,
    Connection,
    MappedPorts,
    NoteMapped,
)
from ntcpsock._traversal.strategies.datagrams import DatagramAccess
from ntcpsock._traversal.strategies.relay import RelayAccess
from ntcpsock._traversal.strategies.turn import TurnAccess

# Strangers who reach the punching port cost a TLS handshake each: so many at once, for so many seconds.
MAX_UNAUTHENTICATED = 16
AUTHENTICATION_DEADLINE = 5.0

# An attempt with the application's own socket is worth waiting for, one round trip or so: what others carry has to
# be pumped as long as it lasts. In seconds.
SHORTEST_PREFERENCE = 0.02
LONGEST_PREFERENCE = 0.2

#: Names the technique of a connection that came in from an endpoint.
NameIncoming = Callable[[Endpoint], str]


class Race:
    """The leader's race. Use it inside a nursery that is cancelled once `winner()` has returned."""

    def __init__(
        self,
        nursery: trio.Nursery,
        authenticate: Authenticate,
        report: Report,
        *,
        rtt: float,
        servers: Sequence[Endpoint] = (),
        prefer: Prefer = "tcp",
        taken: MappedPorts | None = None,
        note_mapped: NoteMapped | None = None,
        bursts: PeerBursts | None = None,
    ) -> None:
        self._nursery = nursery
        self._servers = servers
        self._taken = taken
        self._note_mapped = note_mapped
        self._bursts = bursts or PeerBursts()
        self._aim = Aim()
        self._authenticate = authenticate
        self._report = report
        self._rtt = rtt
        self._nomination: Nomination[Connection] = Nomination()
        self._settled = trio.Event()
        self._datagram_aim = Aim()
        self._patience = Patience(prefer, rtt)
        self._expecting = 0
        self._started: set[tuple[int, Endpoint, str]] = set()
        self.errors: list[OSError] = []
        #: Techniques that failed where the broker sees the peer.
        self.failed: set[str] = set()
        #: What ended the race from outside, if anything did.
        self.verdict: OSError | None = None
        # The application's own socket, until an attempt takes it, and whether that is still under way.
        self._given: GivenSocket | None = None
        self._given_ended: trio.Event | None = None
        self._relay_access: RelayAccess | None = None

    def prefer(self, given: GivenSocket) -> None:
        """Let the first attempt over IPv4 that is started next use the application's own socket, and rather have it
        win."""
        self._given = given

    def start(self, plan: Iterable[PlannedAttempt], port: int) -> None:
        """Add attempts from a local port; those already under way from it are not started twice."""
        for planned in plan:
            way = (port, planned.remote, planned.source)
            if way not in self._started and self._aim.allows(planned):
                self._started.add(way)
                given = self._take_given(planned, port)
                self._start(planned, port, given=given)

    def _start(
        self,
        planned: PlannedAttempt,
        port: int,
        *,
        talk: Talk | None = None,
        given: GivenSocket | None = None,
        datagram: DatagramAccess | None = None,
        turn: TurnAccess | None = None,
    ) -> None:
        self._patience.begin(group_of(planned.technique))
        self._nursery.start_soon(self._attempt, planned, port, talk, given, datagram, turn)

    def start_datagrams(self, access: DatagramAccess, port: int) -> None:
        """Add the checks over UDP of a plan, those targets that may be aimed at."""
        assert access.plan is not None
        targets = self.allowed(access.plan.targets)
        if targets:
            plan = replace(access.plan, targets=targets)
            self._start(plan.attempt, port, datagram=replace(access, plan=plan))

    def allowed(self, targets: Iterable[CheckTarget]) -> tuple[CheckTarget, ...]:
        """Those that may be aimed at; they count as checked then."""
        return tuple(target for target in targets if self._datagram_aim.allows(target))

    def beside(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task that ends with the race, and for which nobody waits."""
        self._nursery.start_soon(task)

    def _take_given(self, planned: PlannedAttempt, port: int) -> GivenSocket | None:
        """The application's own socket, bound, where this attempt is the one to use it."""
        if self._given is None or planned.remote.is_ipv6 or planned.source:
            return None
        given, self._given = self._given, None
        if not given.bind(port):
            given.withdraw()
            return None
        self._given_ended = trio.Event()
        return given

    def impossible(self, technique: str, remote: Endpoint, obstacle: str) -> None:
        """Report a technique that was asked for and cannot be tried."""
        now = trio.current_time()
        self._report.end(self._report.attempt(technique, None, remote, now), now, obstacle)
        self.errors.append(PermissionError(errno.EPERM, obstacle))

    async def run_joint(
        self, planned: PlannedAttempt, port: int, talk: Talk, datagram: DatagramAccess | None = None
    ) -> OSError | None:
        """Make a joint attempt, which starts at once, until it has ended: its round is being announced. What it
        failed with, or None."""
        self._patience.begin(group_of(planned.technique))
        return await self._attempt(replace(planned, delay=0.0), port, talk, None, datagram)

    def start_relay(
        self, planned: PlannedAttempt, port: int, talk: Talk, access: RelayAccess, use: float
    ) -> None:
        """Add the attempt by way of a relay. It wins when no other attempt is under way, or from the time `use` on."""
        self._relay_access, self._patience.use_relay = access, use
        self._start(planned, port, talk=talk)

    def start_turn(
        self,
        planned: PlannedAttempt,
        port: int,
        talk: Talk,
        datagram: DatagramAccess,
        turn: TurnAccess,
        use: float,
    ) -> None:
        """As `start_relay`, for the attempt by way of a TURN server."""
        self._patience.use_relay = use
        self._start(planned, port, talk=talk, datagram=datagram, turn=turn)

    def may_check(self, target: CheckTarget) -> bool:
        """Whether an address that only the other side names may be checked; it counts as checked then."""
        return self._datagram_aim.allows(target)

    def listen(self, listeners: Iterable[trio.socket.SocketType], name_incoming: NameIncoming) -> None:
        """Let connections that come in on `listeners` take part. The caller closes them."""
        for listener in listeners:
            self._nursery.start_soon(self._accept, listener, name_incoming)

    @contextmanager
    def more_may_come(self) -> Iterator[None]:
        """In this block the race does not end in failure although no attempt runs."""
        self._expecting += 1
        try:
            yield
        finally:
            self._expecting -= 1
            self._check_failure()

    def end(self, verdict: OSError) -> None:
        """End the race without a winner, unless it has one."""
        if not self._settled.is_set():
            self.verdict = verdict
            self._settled.set()

    async def winner(self) -> Connection | None:
        """The first authenticated connection, or None: every attempt failed (see `errors`), or a verdict came."""
        await self._settled.wait()
        return self._nomination.nominated

    def abandon(self) -> None:
        """Close the winner, if there is one: nobody will take it."""
        if self._nomination.nominated is not None:
            self._nomination.nominated.carrier.close(abort=True)

    async def _attempt(
        self,
        planned: PlannedAttempt,
        port: int,
        talk: Talk | None,
        given: GivenSocket | None,
        datagram: DatagramAccess | None,
        turn: TurnAccess | None = None,
    ) -> OSError | None:
        group = group_of(planned.technique)
        deadline = trio.current_time() + planned.budget
        await trio.sleep(planned.delay)
        now = trio.current_time()
        entry = self._report.attempt(
            planned.technique, bound_to(port, planned.remote, planned.source), planned.remote, now
        )
        entry.budget = planned.cost(self._rtt)
        context = AttemptContext(
            planned,
            port,
            self._rtt,
            self._authenticate,
            entry,
            "leader",
            self._servers,
            talk,
            given,
            self._relay_access,
            datagram,
            turn,
            bursts=self._bursts,
        )
        if self._taken is not None:
            context = replace(context, taken=self._taken)
        if self._note_mapped is not None:
            context = replace(context, note_mapped=self._note_mapped)
        try:
            with trio.fail_at(deadline):
                connection = await STRATEGIES[planned.technique](context)
            await self._prefer_others(connection, group, is_given=given is not None)
            self._propose(connection)
        except trio.TooSlowError:
            self._report.end(entry, trio.current_time(), "no answer")
            failure: OSError = TimeoutError(f"{planned.technique} {planned.remote}: no answer")
            self._fail(planned, entry, failure)
            return failure
        except OSError as error:
            self._fail(planned, entry, error)
            return error
        else:
            return None
        finally:
            self._report.end(entry, trio.current_time(), "cancelled")
            if given is not None and self._given_ended is not None:
                self._given_ended.set()
            self._patience.end(group)
            self._check_failure()

    async def _accept(self, listener: trio.socket.SocketType, name_incoming: NameIncoming) -> None:
        limit = trio.CapacityLimiter(MAX_UNAUTHENTICATED)

        def handle(sock: trio.socket.SocketType, remote: Endpoint) -> None:
            try:
                limit.acquire_on_behalf_of_nowait(sock)
            except trio.WouldBlock:
                sock.close()
            else:
                self._nursery.start_soon(self._incoming, sock, remote, name_incoming, limit)

        await accept_connections(listener, handle)

    async def _incoming(
        self,
        sock: trio.socket.SocketType,
        remote: Endpoint,
        name_incoming: NameIncoming,
        limit: trio.CapacityLimiter,
    ) -> None:
        self._patience.begin("incoming")
        try:
            technique = name_incoming(remote)
            entry = self._report.attempt(
                technique, Endpoint(*sock.getsockname()[:2]), remote, trio.current_time()
            )
            try:
                with trio.fail_after(AUTHENTICATION_DEADLINE):
                    carrier = await self._authenticate(sock)
                connection = Connection(carrier, technique, entry)
                await self._prefer_others(connection, "incoming")
                self._propose(connection)
            except (OSError, trio.TooSlowError) as error:
                self._report.end(entry, trio.current_time(), f"incoming, not the peer: {error}")
            finally:
                self._report.end(entry, trio.current_time(), "cancelled")
        finally:
            self._patience.end("incoming")
            limit.release_on_behalf_of(sock)

    async def _prefer_others(self, connection: Connection, group: Group, *, is_given: bool = False) -> None:
        """Before a connection is proposed: a better one that is under way has its time."""
        try:
            await self._patience.wait_for_better(group)
            # The application's own socket may be just behind a connection on another one.
            given_ended = self._given_ended
            if group != "relay" and not is_given and given_ended is not None and not given_ended.is_set():
                with trio.move_on_after(min(max(self._rtt, SHORTEST_PREFERENCE), LONGEST_PREFERENCE)):
                    await given_ended.wait()
        except BaseException:
            connection.carrier.close(abort=True)
            raise

    def _propose(self, connection: Connection) -> None:
        if self._nomination.propose(connection):
            self._report.end(connection.entry, trio.current_time(), "ok")
            self._settled.set()
        else:
            self._report.end(connection.entry, trio.current_time(), "authenticated, another one was first")
            connection.carrier.close(abort=True)

    def _fail(self, planned: PlannedAttempt, entry: Attempt, error: OSError) -> None:
        if not planned.is_check:
            self.failed.add(planned.technique)
        self._report.end(entry, trio.current_time(), error.strerror or str(error) or type(error).__name__)
        self.errors.append(error)

    def _check_failure(self) -> None:
        if self._patience.is_idle and not self._expecting:
            self._settled.set()
