"""One dial: its offer, its answer, and the race that both feed."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import trio

from ntcpsock._address import full_name
from ntcpsock._errors import PeerOffline, PeerRefused
from ntcpsock._report import Report
from ntcpsock._session.tls import Carrier, client_handshake
from ntcpsock._traversal.broker.driver import Introduction
from ntcpsock._traversal.candidate import name_of_connection, usable_candidates
from ntcpsock._traversal.gather import WarmPort
from ntcpsock._traversal.plan import make_plan
from ntcpsock._traversal.punch.message import (
    DIAL_ID_LENGTH,
    TOKEN_LENGTH,
    Answer,
    Candidate,
    Card,
    Offer,
    encode_sealed_payload,
)
from ntcpsock._traversal.race import Race
from ntcpsock._traversal.strategies.base import Connection

# Seconds for all attempts of all rounds. The kernel repeats a lost SYN after 1, 2, 3, ... s meanwhile. Less
# than the default time-out of a connect, so that a failure can say more than "timed out".
RACE_BUDGET = 8.0

# An unanswered SYN gets company after this many seconds: another round from another port.
ROUND_INTERVAL = 1.0
MAX_ROUNDS = 3

# A listener that is registered but has not answered for so many seconds has gone away.
ANSWER_DEADLINE = 5.0


@dataclass
class Dial:
    """One call of connect(). `dial_id` names it at both ends, `token` proves the dialer."""

    key: bytes
    label: str
    port: int
    dial_id: bytes = field(default_factory=lambda: secrets.token_bytes(DIAL_ID_LENGTH))
    token: bytes = field(default_factory=lambda: secrets.token_bytes(TOKEN_LENGTH))
    answer: Answer | None = None
    answered: trio.Event = field(default_factory=trio.Event)

    def offer(self, round_number: int, warm: WarmPort, broker_rtt: float) -> bytes:
        """The offer of one round, ready to be sealed."""
        return encode_sealed_payload(
            Offer(
                self.dial_id, self.token, self.port, round_number, warm.candidates, warm.profile, broker_rtt
            )
        )

    def take_answer(self, answer: Answer) -> None:
        """The first answer counts; later ones repeat it."""
        if self.answer is None:
            self.answer = answer
            self.answered.set()

    async def wait_accepted(self) -> Answer:
        """The listener's word. Raises PeerRefused, or PeerOffline when none comes."""
        with trio.move_on_after(ANSWER_DEADLINE):
            await self.answered.wait()
        name = full_name(self.label)
        if self.answer is None:
            raise PeerOffline(
                f"{name} is registered at the broker but has not answered for {ANSWER_DEADLINE:.0f} s: "
                "its process, its machine or its network went away"
            )
        if self.answer.outcome == "refused":
            raise PeerRefused(f"nothing listens on port {self.port} of {name}")
        if self.answer.outcome == "busy":
            raise PeerRefused(f"{name} has too many connections under way; try again later")
        return self.answer


class DialContext(Protocol):
    """What a dial needs of its node."""

    @property
    def techniques(self) -> Sequence[str]: ...
    @property
    def broker_rtt(self) -> float: ...
    @property
    def loopback_allowed(self) -> bool: ...
    async def resolve(self, label: str) -> bytes: ...
    async def take_port(self) -> WarmPort: ...
    async def introduce(self, dial: Dial, payload: bytes) -> Introduction: ...
    def awaiting_answer(self, dial: Dial) -> AbstractContextManager[None]: ...
    def insist(self, dial: Dial, payload: bytes) -> None: ...


class DirectRace:
    """The race of one dial over all rounds. `run` gives the winner, or raises."""

    def __init__(self, node: DialContext, dial: Dial, card: Card, warm: WarmPort, report: Report) -> None:
        self._node = node
        self._dial = dial
        self._card = card
        self._ports = [warm]
        self._report = report
        self._rtt = card.broker_rtt + node.broker_rtt
        self._deadline = trio.current_time() + RACE_BUDGET
        self.errors: list[OSError] = []

    async def run(self) -> Connection | None:
        """The nominated connection, or None when all attempts failed. Raises PeerRefused, PeerOffline."""
        connection = None
        race: Race | None = None
        try:
            async with trio.open_nursery() as nursery:
                race = Race(nursery, self._authenticate, self._report, rtt=self._rtt)
                self.errors = race.errors
                with race.more_may_come():
                    self._enter(race, self._ports[0], self._card.candidates)
                    await nursery.start(self._follow_answer, race)
                    await nursery.start(self._further_rounds, race)
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
            budget=max(0.0, self._deadline - trio.current_time()),
        )
        race.listen(port.listener, lambda seen: name_of_connection(port.candidates, targets, seen))
        race.start(plan, port.port)

    async def _authenticate(self, sock: trio.socket.SocketType) -> Carrier:
        return await client_handshake(sock, self._card.fingerprint)

    async def _follow_answer(self, race: Race, *, task_status: trio.TaskStatus[None]) -> None:
        """The answer may refuse, or bring candidates that are newer than the card."""
        with race.more_may_come():
            task_status.started()
            try:
                answer = await self._dial.wait_accepted()
            except (PeerRefused, PeerOffline) as error:
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
                    await self._node.introduce(
                        self._dial, self._dial.offer(number, port, self._node.broker_rtt)
                    )
                except OSError:
                    return  # the attempts under way go on
                answer = self._dial.answer
                self._enter(race, port, answer.candidates if answer else self._card.candidates)
