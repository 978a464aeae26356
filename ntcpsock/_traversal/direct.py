"""The race of one dial for a direct path, over several rounds; its answer can end it."""

from __future__ import annotations

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
from ntcpsock._traversal.candidate import name_of_connection, usable_candidates
from ntcpsock._traversal.dial import Dial
from ntcpsock._traversal.gather import WarmPort
from ntcpsock._traversal.introductions import Introductions
from ntcpsock._traversal.plan import make_joint_plan, make_plan
from ntcpsock._traversal.punch.given import GivenSocket
from ntcpsock._traversal.punch.message import Candidate, Card
from ntcpsock._traversal.race import Race
from ntcpsock._traversal.relayed import run_relay_round
from ntcpsock._traversal.signals import Talk
from ntcpsock._traversal.strategies.base import Connection

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
    def relays(self) -> Sequence[Endpoint]: ...
    @property
    def broker_rtt(self) -> float: ...
    @property
    def loopback_allowed(self) -> bool: ...
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
        self._deadline = trio.current_time() + RACE_BUDGET
        self.errors: list[OSError] = []

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
                self.errors = race.errors
                if self._given is not None:
                    race.prefer(self._given)
                with race.more_may_come():
                    self._enter(race, self._ports[0], self._card.candidates)
                    await nursery.start(self._follow_answer, race)
                    await nursery.start(self._further_rounds, race)
                    await nursery.start(self._joint_rounds, race, nursery)
                    await nursery.start(self._relay_round, race, nursery)
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

    def _enter(self, race: Race, port: WarmPort, remote: Sequence[Candidate]) -> None:
        """Punch from `port`, and let in what reaches it."""
        targets = usable_candidates(remote, "tcp", loopback_allowed=self._node.loopback_allowed)
        plan = make_plan(
            port.candidates,
            targets,
            techniques=self._node.techniques,
            rtt=self._rtt,
            budget=self._remaining(),
            proven_host=self._dial.observed_host,
        )
        race.listen(port.listener, lambda seen: name_of_connection(port.candidates, targets, seen))
        race.start(plan, port.port)

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
                self._enter(race, self._ports[0], news)

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
                self._enter(race, port, answer.candidates if answer else self._card.candidates)

    async def _joint_rounds(
        self, race: Race, nursery: trio.Nursery, *, task_status: trio.TaskStatus[None]
    ) -> None:
        """Announce each joint attempt in an offer of its own, and run it."""
        with race.more_may_come():
            task_status.started()
            warm = self._ports[0]
            plan = make_joint_plan(
                warm.profile,
                self._card.profile,
                techniques=self._node.techniques,
                budget=self._remaining(),
                proven_host=self._dial.observed_host,
            )
            begin = trio.current_time()
            for number, planned in enumerate(plan, start=MAX_ROUNDS + 1):
                await trio.sleep_until(begin + planned.delay)
                budget = planned.budget - (trio.current_time() - begin)
                talk = Talk(self._dial.dial_id, number, self._dial.mailbox, nursery, self._tell)
                offer = self._dial.offer(number, warm, self._node.broker_rtt, planned.technique)
                race.start_joint(replace(planned, budget=budget), warm.port, talk)
                try:
                    await self._node.introductions.introduce(self._dial, offer)
                except OSError:
                    return

    async def _relay_round(
        self, race: Race, nursery: trio.Nursery, *, task_status: trio.TaskStatus[None]
    ) -> None:
        await run_relay_round(
            self._node,
            self._dial,
            self._card,
            self._ports[0],
            race,
            nursery,
            self._tell,
            budget=self._remaining(),
            task_status=task_status,
        )

    async def _tell(self, payload: bytes) -> None:
        await self._node.introductions.introduce(self._dial, payload)


def _uses(connection: Connection | None, given: GivenSocket) -> bool:
    return (
        connection is not None
        and isinstance(connection.carrier, PlainCarrier)
        and connection.carrier.lent is given
    )
