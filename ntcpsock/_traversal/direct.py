"""The race of one dial for a direct path, over several rounds; its answer can end it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import trio

from ntcpsock._errors import BadMessage, EncryptionMismatch, PeerOffline, PeerRefused
from ntcpsock._report import Report
from ntcpsock._session.carrier import Carrier
from ntcpsock._session.plain import PlainCarrier, greet_over
from ntcpsock._session.tls import Carrier as TLSCarrier
from ntcpsock._session.tls import client_handshake
from ntcpsock._traversal.bursts import PeerBursts
from ntcpsock._traversal.checks.driver import PunchedPath
from ntcpsock._traversal.checks.port import UdpPort
from ntcpsock._traversal.course import Course, DialContext, listen_at
from ntcpsock._traversal.datagram_plan import DatagramPlan, head_start_of_tcp, make_datagram_plan
from ntcpsock._traversal.dial import Dial
from ntcpsock._traversal.gather import WarmPort
from ntcpsock._traversal.joint import JointRounds
from ntcpsock._traversal.mapped import run_mapped_round
from ntcpsock._traversal.plan import PlannedAttempt, ipv6_head_start, make_plan
from ntcpsock._traversal.punch.given import GivenSocket
from ntcpsock._traversal.punch.message import Candidate, Card, NATProfile, decode_candidates_untrusted
from ntcpsock._traversal.race import Race
from ntcpsock._traversal.relayed import run_relay_round
from ntcpsock._traversal.round_port import ROUND_PORT
from ntcpsock._traversal.start import order_of_start, waiting_time
from ntcpsock._traversal.strategies.base import Connection
from ntcpsock._traversal.turned import run_turn_round

# Seconds for all attempts of all rounds. The kernel repeats a lost SYN after 1, 2, 3, ... s meanwhile. Less
# than the default time-out of a connect, so that a failure can say more than "timed out".
RACE_BUDGET = 8.0

# An unanswered SYN gets company after this many seconds: another round from another port.
ROUND_INTERVAL = 1.0
MAX_ROUNDS = 3


class DirectRace:
    """The race of one dial over all rounds. `run` gives the winner, or raises.

    given: the application's own socket, not bound yet; what `run` does not return it withdraws.
    """

    def __init__(
        self,
        node: DialContext,
        dial: Dial,
        card: Card,
        warm: WarmPort,
        report: Report,
        given: GivenSocket | None = None,
    ) -> None:
        self._course = Course(node, dial, card, [warm], report, trio.current_time() + RACE_BUDGET)
        self._given = given
        # Whoever had to wait for the answer starts when it arrives, as the listener expects.
        self._is_ahead = dial.answer is None
        self.errors: list[OSError] = []
        self.failed: set[str] = set()

    async def run(self) -> Connection | None:
        """The nominated connection, or None when all attempts failed. Raises PeerRefused, PeerOffline,
        EncryptionMismatch."""
        course, dial = self._course, self._course.dial
        connection = None
        race: Race | None = None
        try:
            async with trio.open_nursery() as nursery:
                race = Race(
                    nursery,
                    self._authenticate,
                    course.report,
                    rtt=course.rtt,
                    servers=course.node.stun_servers,
                    prefer=course.dial.prefer,
                    taken=course.mapped_ports,
                    note_mapped=course.node.note_mapped,
                    bursts=PeerBursts(course.node.bursts, course.dial.key),
                )
                self.errors, self.failed = race.errors, race.failed
                if self._given is not None:
                    race.prefer(self._given)
                with race.more_may_come():
                    plan = self._enter(race, course.warm, course.card.candidates, 1)
                    if not dial.standing:
                        await self._start_more(race, nursery, ipv6_head_start(plan, course.rtt))
                connection = await race.winner()
                nursery.cancel_scope.cancel()
            if race.verdict is not None:
                raise race.verdict
            is_open = dial.port in course.card.ports and dial.kind == "stream" and dial.resume is None
            if connection is not None and not is_open:
                # The card does not say that anybody listens there, or has the stream that is to move.
                await dial.wait_accepted()
        except BaseException:
            if race is not None:
                race.abandon()
            raise
        finally:
            if self._given is not None and not _uses(connection, self._given):
                self._given.withdraw()
            for port in course.ports[1:]:
                port.close()
            if course.mapping is not None:
                used = connection is not None and connection.carrier.local.port == course.mapping.port
                carrier = connection.carrier if connection is not None and used else None
                course.mapping.release(
                    carrier.socket if isinstance(carrier, TLSCarrier | PlainCarrier) else None
                )
        return connection

    async def _start_more(self, race: Race, nursery: trio.Nursery, earliest: float) -> None:
        """What takes words between the two sides. earliest: seconds until the joint techniques."""
        course = self._course
        await nursery.start(self._follow_answer, race)
        await nursery.start(self._further_rounds, race)
        await nursery.start(JointRounds(course, race, nursery, MAX_ROUNDS + 1).run, earliest)
        await nursery.start(run_mapped_round, course, race)
        relay = partial(run_relay_round, budget=course.remaining)
        await nursery.start(
            relay, course.node, course.dial, course.card, course.warm, race, nursery, course.tell
        )
        await nursery.start(run_turn_round, course, race, nursery)

    def _enter(
        self, race: Race, port: WarmPort, remote: Sequence[Candidate], round_number: int | None
    ) -> tuple[PlannedAttempt, ...]:
        """Punch from `port`, and let in what reaches it; the plan for TCP that is followed.

        round_number: of the round that begins with it; None where candidates come later, and both sides are under
        way."""
        course = self._course
        targets = course.targets(remote, "tcp")
        plan = make_plan(
            port.candidates,
            targets,
            techniques=course.techniques,
            rtt=course.rtt,
            budget=course.remaining,
            proven_host=course.proven_host,
            also_proven=course.also_proven,
            uplinks=port.uplinks,
            wait=0.0
            if round_number is None
            else self._waiting_time(port.profile, course.card.profile, round_number),
            late=course.node.surroundings.late_techniques,
        )
        if round_number is not None:
            listen_at(race, port, targets)
            self._check(race, port, remote, round_number)
        race.start(plan, port.port)
        return plan

    def _check(self, race: Race, port: WarmPort, remote: Sequence[Candidate], round_number: int) -> None:
        """Check the listener's UDP candidates from the UDP port beside `port`."""
        if port.datagram is None:
            return
        local = port.datagram.candidates
        wait = self._waiting_time(NATProfile(), NATProfile(), round_number)
        plan = self._datagram_plan(local, remote, round_number, wait)
        if plan is None:
            return

        def take_port() -> UdpPort | None:
            taken = port.take_datagram_port()
            return None if taken is None else taken.port

        def opened(path: PunchedPath, taken: UdpPort) -> None:
            race.beside(partial(self._check_round_port, race, local, round_number, path, taken))

        access = self._course.datagram_access(plan, round_number, take_port)
        if round_number > 1:
            access = replace(access, opened=opened)
        race.start_datagrams(access, port.datagram.port.number)

    def _datagram_plan(
        self, local: Sequence[Candidate], remote: Sequence[Candidate], round_number: int, wait: float = 0.0
    ) -> DatagramPlan | None:
        course = self._course
        return make_datagram_plan(
            local,
            course.targets(remote, "udp"),
            techniques=course.techniques,
            rtt=course.rtt,
            budget=course.remaining,
            proven_host=course.proven_host,
            also_proven=course.also_proven,
            wait=wait,
            late=course.node.surroundings.late_techniques,
            head_start=head_start_of_tcp(course.dial.prefer, round_number, course.rtt),
        )

    async def _check_round_port(
        self, race: Race, local: Sequence[Candidate], round_number: int, path: PunchedPath, port: UdpPort
    ) -> None:
        """Check the port that the listener has for this round alone, once it has told of it."""
        word = await self._course.dial.mailbox.hear(round_number, ROUND_PORT)
        begin = trio.current_time()
        try:
            plan = self._datagram_plan(local, decode_candidates_untrusted(word), round_number)
        except BadMessage:
            return
        targets = race.allowed(plan.targets) if plan is not None else ()
        for target in sorted(targets, key=lambda target: target.delay):
            await trio.sleep_until(begin + target.delay)
            base = port.base_for(target.remote)
            if base is not None:
                path.check(base, target.remote, target.kind, target.tries)
                if plan is not None and target.remote in plan.guesses:
                    path.guess([(base, target.remote)])

    def _waiting_time(self, ours: NATProfile, theirs: NATProfile, round_number: int) -> float:
        course = self._course
        if round_number == 1 and not self._is_ahead:
            return 0.0
        return waiting_time(
            "leader",
            order_of_start(ours, theirs, course.dial.turn(round_number)),
            theirs,
            own_rtt=course.node.broker_rtt,
            other_rtt=course.card.broker_rtt,
        )

    async def _authenticate(self, sock: trio.socket.SocketType | GivenSocket) -> Carrier | PlainCarrier:
        dial = self._course.dial
        if dial.encryption == "off":
            return await greet_over(sock, dial.dial_id, dial.token)
        assert not isinstance(sock, GivenSocket), "TLS has its own socket"
        return await client_handshake(sock, self._course.card.fingerprint)

    async def _follow_answer(self, race: Race, *, task_status: trio.TaskStatus[None]) -> None:
        """The answer may refuse, or bring candidates that are newer than the card."""
        course = self._course
        with race.more_may_come():
            task_status.started()
            try:
                answer = await course.dial.wait_accepted()
            except (PeerRefused, PeerOffline, EncryptionMismatch) as error:
                race.end(error)
                return
            known = {candidate.endpoint for candidate in course.card.candidates}
            news = [candidate for candidate in answer.candidates if candidate.endpoint not in known]
            if news:
                self._enter(race, course.warm, news, None)

    async def _further_rounds(self, race: Race, *, task_status: trio.TaskStatus[None]) -> None:
        course = self._course
        with race.more_may_come():
            task_status.started()
            for number in range(2, MAX_ROUNDS + 1):
                await trio.sleep(ROUND_INTERVAL)
                if course.node.bursts.is_held(course.dial.key, trio.current_time()):
                    return  # another port of ours takes ports of a NAT that has few left
                try:
                    port = await course.node.take_port()
                    course.ports.append(port)
                    introduction = await course.node.introductions.introduce(
                        course.dial, course.offer(number, port)
                    )
                except OSError:
                    return  # the attempts under way go on
                self._enter(race, port, course.newest_candidates(introduction), number)


def _uses(connection: Connection | None, given: GivenSocket) -> bool:
    return (
        connection is not None
        and isinstance(connection.carrier, PlainCarrier)
        and connection.carrier.lent is given
    )
