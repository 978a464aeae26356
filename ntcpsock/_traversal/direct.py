"""The race of one dial for a direct path, over several rounds; its answer can end it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import trio

from ntcpsock._address import Endpoint
from ntcpsock._config import Encryption
from ntcpsock._errors import EncryptionMismatch, PeerOffline, PeerRefused
from ntcpsock._report import Report
from ntcpsock._session.plain import PlainCarrier, greet_over
from ntcpsock._session.tls import Carrier, client_handshake
from ntcpsock._traversal.candidate import name_of_connection
from ntcpsock._traversal.dial import Dial
from ntcpsock._traversal.gather import WarmPort
from ntcpsock._traversal.introductions import Introductions
from ntcpsock._traversal.pairs import Pairs
from ntcpsock._traversal.plan import PlannedAttempt, make_joint_plan, make_plan
from ntcpsock._traversal.punch.given import GivenSocket
from ntcpsock._traversal.punch.message import Candidate, Card
from ntcpsock._traversal.race import Race
from ntcpsock._traversal.signals import REPEAT_PAUSES, Talk
from ntcpsock._traversal.start import order_of_start, waiting_time
from ntcpsock._traversal.strategies.base import Connection
from ntcpsock._traversal.surroundings import Surroundings

# Seconds for all attempts of all rounds. The kernel repeats a lost SYN after 1, 2, 3, ... s meanwhile. Less
# than the default time-out of a connect, so that a failure can say more than "timed out".
RACE_BUDGET = 8.0

# An unanswered SYN gets company after this many seconds: another round from another port.
ROUND_INTERVAL = 1.0
MAX_ROUNDS = 3


class DialContext(Protocol):
    """What a dial needs of its node."""

    @property
    def techniques(self) -> Sequence[str]: ...
    @property
    def encryption(self) -> Encryption: ...
    @property
    def stun_servers(self) -> Sequence[Endpoint]: ...
    @property
    def broker_rtt(self) -> float: ...
    @property
    def surroundings(self) -> Surroundings: ...
    @property
    def pairs(self) -> Pairs: ...
    @property
    def introductions(self) -> Introductions: ...
    async def take_port(self) -> WarmPort: ...


class DirectRace:
    """The race of one dial over all rounds. `run` gives the winner, or raises.

    given: the application's own socket, bound to the warm port; what `run` does not return it withdraws.
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
        self._node = node
        self._dial = dial
        self._card = card
        self._ports = [warm]
        self._report = report
        self._given = given
        self._rtt = card.broker_rtt + node.broker_rtt
        # Whoever had to wait for the answer starts when it arrives, as the listener expects.
        self._is_ahead = dial.answer is None
        self._deadline = trio.current_time() + RACE_BUDGET
        self.errors: list[OSError] = []
        self.failed: set[str] = set()

    async def run(self) -> Connection | None:
        """The nominated connection, or None when all attempts failed. Raises PeerRefused, PeerOffline,
        EncryptionMismatch."""
        connection = None
        race: Race | None = None
        try:
            async with trio.open_nursery() as nursery:
                race = Race(
                    nursery,
                    self._authenticate,
                    self._report,
                    rtt=self._rtt,
                    servers=self._node.stun_servers,
                )
                self.errors, self.failed = race.errors, race.failed
                if self._given is not None:
                    race.prefer(self._given)
                with race.more_may_come():
                    self._enter(race, self._ports[0], self._card.candidates, 1)
                    await nursery.start(self._follow_answer, race)
                    await nursery.start(self._further_rounds, race)
                    await nursery.start(self._joint_rounds, race, nursery)
                connection = await race.winner()
                nursery.cancel_scope.cancel()
            if race.verdict is not None:
                raise race.verdict
            if connection is not None and self._dial.port not in self._card.ports:
                # The card does not say that anybody listens there.
                await self._dial.wait_accepted()
        except BaseException:
            if race is not None:
                race.abandon()
            raise
        finally:
            if self._given is not None and not _uses(connection, self._given):
                self._given.withdraw()
            for port in self._ports[1:]:
                port.close()
        return connection

    def _enter(
        self, race: Race, port: WarmPort, remote: Sequence[Candidate], round_number: int | None
    ) -> None:
        """Punch from `port`, and let in what reaches it. round_number: of the round that begins with it; None where
        candidates come later, and both sides are under way."""
        targets = self._node.surroundings.standpoint.targets(remote, "tcp", self._proven_host)
        plan = make_plan(
            port.candidates,
            targets,
            techniques=self._node.techniques,
            rtt=self._rtt,
            budget=self._remaining(),
            proven_host=self._proven_host,
            wait=0.0 if round_number is None else self._waiting_time(port, round_number),
            late=self._node.surroundings.late_techniques,
        )
        if round_number is not None:
            race.listen(port.listener, lambda seen: name_of_connection(port.candidates, targets, seen))
        race.start(plan, port.port)

    @property
    def _proven_host(self) -> str:
        return self._node.surroundings.standpoint.proven(self._dial.observed_host)

    def _waiting_time(self, port: WarmPort, round_number: int) -> float:
        if round_number == 1 and not self._is_ahead:
            return 0.0
        profiles = port.profile, self._card.profile
        return waiting_time(
            "leader",
            order_of_start(*profiles, self._dial.turn(round_number)),
            self._card.profile,
            own_rtt=self._node.broker_rtt,
            other_rtt=self._card.broker_rtt,
        )

    def _remaining(self) -> float:
        return max(0.0, self._deadline - trio.current_time())

    async def _authenticate(self, sock: trio.socket.SocketType | GivenSocket) -> Carrier | PlainCarrier:
        if self._dial.encryption == "off":
            return await greet_over(sock, self._dial.dial_id, self._dial.token)
        assert not isinstance(sock, GivenSocket), "TLS has its own socket"
        return await client_handshake(sock, self._card.fingerprint)

    async def _follow_answer(self, race: Race, *, task_status: trio.TaskStatus[None]) -> None:
        """The answer may refuse, or bring candidates that are newer than the card."""
        with race.more_may_come():
            task_status.started()
            try:
                answer = await self._dial.wait_accepted()
            except (PeerRefused, PeerOffline, EncryptionMismatch) as error:
                race.end(error)
                return
            known = {candidate.endpoint for candidate in self._card.candidates}
            news = [candidate for candidate in answer.candidates if candidate.endpoint not in known]
            if news:
                self._enter(race, self._ports[0], news, None)

    async def _further_rounds(self, race: Race, *, task_status: trio.TaskStatus[None]) -> None:
        with race.more_may_come():
            task_status.started()
            for number in range(2, MAX_ROUNDS + 1):
                await trio.sleep(ROUND_INTERVAL)
                try:
                    port = await self._node.take_port()
                    self._ports.append(port)
                    offer = self._dial.offer(number, port, self._node.broker_rtt)
                    await self._node.introductions.introduce(self._dial, offer)
                except OSError:
                    return  # the attempts under way go on
                answer = self._dial.answer
                self._enter(race, port, answer.candidates if answer else self._card.candidates, number)

    async def _joint_rounds(
        self, race: Race, nursery: trio.Nursery, *, task_status: trio.TaskStatus[None]
    ) -> None:
        """Each joint attempt, when it is this pair's turn for one."""
        with race.more_may_come():
            task_status.started()
            plan = make_joint_plan(
                self._ports[0].profile,
                self._card.profile,
                techniques=self._node.techniques,
                budget=self._remaining(),
                proven_host=self._proven_host,
                late=self._node.surroundings.late_techniques,
            )
            begin = trio.current_time()
            for number, planned in enumerate(plan, start=MAX_ROUNDS + 1):
                await trio.sleep_until(begin + planned.delay)
                async with self._node.pairs.lead(self._dial.key):
                    left = planned.budget - (trio.current_time() - begin)
                    if left > 0:
                        await self._joint_round(race, nursery, number, replace(planned, budget=left))

    async def _joint_round(
        self, race: Race, nursery: trio.Nursery, number: int, planned: PlannedAttempt
    ) -> None:
        """Announce a joint attempt in an offer of its own, and make it."""
        warm = self._ports[0]
        talk = Talk(self._dial.dial_id, number, self._dial.mailbox, nursery, self._tell)
        offer = self._dial.offer(number, warm, self._node.broker_rtt, planned.technique)
        async with trio.open_nursery() as together:

            async def announce() -> None:
                """The broker may have brought it to nobody: again, until the other side has joined."""
                for pause in (*REPEAT_PAUSES, math.inf):
                    try:
                        await self._node.introductions.introduce(self._dial, offer)
                    except OSError:
                        together.cancel_scope.cancel()
                    with trio.move_on_after(pause):
                        await self._dial.mailbox.wait_for_round(number)
                        return

            together.start_soon(announce)
            await race.run_joint(planned, warm.port, talk)
            together.cancel_scope.cancel()

    async def _tell(self, payload: bytes) -> None:
        await self._node.introductions.introduce(self._dial, payload)


def _uses(connection: Connection | None, given: GivenSocket) -> bool:
    return (
        connection is not None
        and isinstance(connection.carrier, PlainCarrier)
        and connection.carrier.lent is given
    )
