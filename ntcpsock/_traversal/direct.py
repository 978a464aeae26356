"""The race of one dial for a direct path, over several rounds; its answer can end it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Protocol

import trio

from ntcpsock._address import Endpoint, is_private_address
from ntcpsock._config import TECHNIQUES, Encryption
from ntcpsock._errors import BadMessage, EncryptionMismatch, PeerOffline, PeerRefused
from ntcpsock._raw.packet import Syn
from ntcpsock._report import Report
from ntcpsock._session.plain import PlainCarrier, greet_over
from ntcpsock._session.tls import Carrier, client_handshake
from ntcpsock._traversal.broker.driver import Introduction
from ntcpsock._traversal.candidate import ipv4_host, name_of_connection
from ntcpsock._traversal.dial import Dial
from ntcpsock._traversal.gather import WarmPort
from ntcpsock._traversal.introductions import Introductions
from ntcpsock._traversal.mapping import DialMapping, NoMapping
from ntcpsock._traversal.pairs import Pairs
from ntcpsock._traversal.plan import (
    COSTLY_TECHNIQUES,
    PlannedAttempt,
    ipv6_head_start,
    make_joint_plan,
    make_plan,
    mapping_delay,
    raw_obstacles,
)
from ntcpsock._traversal.punch.given import GivenSocket
from ntcpsock._traversal.punch.message import Candidate, Card, decode_card_untrusted
from ntcpsock._traversal.race import Race
from ntcpsock._traversal.relayed import run_relay_round
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

# The round that brings the port which our router maps: the last that an offer can name. It is said so often, because
# datagrams get lost, with so many seconds between.
MAPPED_ROUND = 16
_MAPPED_OFFERS = 3
_MAPPED_OFFER_INTERVAL = 0.75


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
    def surroundings(self) -> Surroundings: ...
    @property
    def pairs(self) -> Pairs: ...
    @property
    def missing_for_raw(self) -> str | None: ...
    @property
    def broker_spoofs(self) -> bool: ...
    @property
    def introductions(self) -> Introductions: ...
    async def take_port(self) -> WarmPort: ...
    @property
    def port_mapping_refusal(self) -> str | None: ...
    def map_port(self, port: int) -> DialMapping: ...


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
        self._node = node
        self._dial = dial
        self._card = card
        self._ports = [warm]
        self._report = report
        self._given = given
        self._mapping: DialMapping | None = None
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
                    plan = self._enter(race, self._ports[0], self._card.candidates, 1)
                    await nursery.start(self._follow_answer, race)
                    await nursery.start(self._further_rounds, race)
                    earliest = ipv6_head_start(plan, self._rtt)
                    await nursery.start(self._joint_rounds, race, nursery, earliest)
                    await nursery.start(self._mapped_round, race)
                    relay = partial(run_relay_round, budget=self._remaining())
                    await nursery.start(
                        relay, self._node, self._dial, self._card, self._ports[0], race, nursery, self._tell
                    )
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
            if self._mapping is not None:
                used = connection is not None and connection.carrier.local.port == self._mapping.port
                self._mapping.release(connection.carrier.socket if connection and used else None)
        return connection

    def _enter(
        self, race: Race, port: WarmPort, remote: Sequence[Candidate], round_number: int | None
    ) -> tuple[PlannedAttempt, ...]:
        """Punch from `port`, and let in what reaches it; the plan that is followed.

        round_number: of the round that begins with it; None where candidates come later, and both sides are under
        way."""
        standpoint = self._node.surroundings.standpoint
        targets = standpoint.targets(remote, "tcp", self._proven_host, self._also_proven)
        plan = make_plan(
            port.candidates,
            targets,
            techniques=self._node.techniques,
            rtt=self._rtt,
            budget=self._remaining(),
            proven_host=self._proven_host,
            also_proven=self._also_proven,
            uplinks=port.uplinks,
            wait=0.0 if round_number is None else self._waiting_time(port, round_number),
            late=self._node.surroundings.late_techniques,
        )
        if round_number is not None:
            race.listen(port.listeners, lambda seen: name_of_connection(port.candidates, targets, seen))
        race.start(plan, port.port)
        return plan

    @property
    def _proven_host(self) -> str:
        return self._node.surroundings.standpoint.proven(self._dial.observed_host)

    @property
    def _also_proven(self) -> tuple[str, ...]:
        return self._node.surroundings.standpoint.also_proven(self._dial.also_observed)

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
                    introduction = await self._node.introductions.introduce(self._dial, offer)
                except OSError:
                    return  # the attempts under way go on
                self._enter(race, port, self._newest_candidates(introduction), number)

    def _newest_candidates(self, introduction: Introduction) -> Sequence[Candidate]:
        """What the listener said last: a router may have mapped its port meanwhile. Its card comes along with each
        introduction, and a listener that keeps it to itself repeats its answer."""
        if introduction.card is not None:
            with suppress(BadMessage):
                return decode_card_untrusted(introduction.card, self._dial.key).candidates
        return (self._dial.answer or self._card).candidates

    async def _mapped_round(self, race: Race, *, task_status: trio.TaskStatus[None]) -> None:
        """Have our router map a port of its own for this, and let the listener connect to that.

        No SYN of ours leaves from it: many routers would give that one another port, and the answers to the
        listener's would go the same way.
        """
        with race.more_may_come():
            task_status.started()
            warm = self._ports[0]
            if not warm.needs_mapping:
                return
            delay = mapping_delay(
                warm.profile, self._card.profile, self._card.candidates, techniques=self._node.techniques
            )
            await trio.sleep(delay)
            self._report.port_mapping = self._node.port_mapping_refusal
            if self._report.port_mapping is not None:
                return
            try:
                port = await self._node.take_port()
            except OSError:
                return
            self._ports.append(port)
            self._mapping = self._node.map_port(port.port)
            try:
                mapping = await self._mapping.wait()
            except NoMapping as error:
                self._report.port_mapping = error.strerror
                return
            self._report.port_mapping = f"{mapping.protocol} maps {mapping.external}"
            if is_private_address(mapping.external.host):
                self._report.port_mapping += ", which another NAT hides"
            if not port.set_mapped(mapping.external):
                self._report.port_mapping += ", which is not where the Internet sees this side"
                return
            # Nothing is punched from it, so the listener needs no other address of it.
            port.candidates = tuple(ours for ours in port.candidates if ours.type == "mapped")
            theirs = self._card.candidates
            targets = self._node.surroundings.standpoint.targets(
                theirs, "tcp", self._proven_host, self._also_proven
            )
            race.listen(port.listeners, lambda seen: name_of_connection(port.candidates, targets, seen))
            offer = self._dial.offer(MAPPED_ROUND, port, self._node.broker_rtt)
            for _ in range(_MAPPED_OFFERS):
                try:
                    await self._node.introductions.introduce(self._dial, offer)
                except OSError:
                    return
                await trio.sleep(_MAPPED_OFFER_INTERVAL)

    async def _joint_rounds(
        self, race: Race, nursery: trio.Nursery, earliest: float, *, task_status: trio.TaskStatus[None]
    ) -> None:
        """Each joint attempt, when it is this pair's turn for one."""
        with race.more_may_come():
            task_status.started()
            plan = make_joint_plan(
                self._ports[0].profile,
                self._card.profile,
                techniques=self._possible_techniques(race),
                budget=self._remaining(),
                proven_host=ipv4_host(self._proven_host, *self._also_proven),
                earliest=earliest,
                late=self._node.surroundings.late_techniques,
            )
            begin = trio.current_time()
            async with trio.open_nursery() as rounds:
                for number, planned in enumerate(plan, start=MAX_ROUNDS + 1):
                    rounds.start_soon(self._joint_round, race, nursery, number, planned, begin)

    async def _joint_round(
        self, race: Race, nursery: trio.Nursery, number: int, planned: PlannedAttempt, begin: float
    ) -> None:
        """One joint attempt, when its time has come and, where it is costly, this pair's turn. begin: of the plan."""
        await trio.sleep_until(begin + planned.delay)
        turn = (
            self._node.pairs.lead(self._dial.key) if planned.technique in COSTLY_TECHNIQUES else nullcontext()
        )
        async with turn:
            left = planned.budget - (trio.current_time() - begin)
            if left > 0:
                await self._make_together(race, nursery, number, replace(planned, budget=left))

    async def _make_together(
        self, race: Race, nursery: trio.Nursery, number: int, planned: PlannedAttempt
    ) -> None:
        """Announce a joint attempt in an offer of its own, and make it."""
        warm = self._ports[0]
        talk = Talk(self._dial.dial_id, number, self._dial.mailbox, nursery, self._tell, self._spoof)
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

    def _possible_techniques(self, race: Race) -> list[str]:
        """Without those whose raw packets are impossible. Who chose techniques finds in the report what is missing."""
        chosen = self._node.techniques
        obstacles = raw_obstacles(
            chosen,
            here=self._node.missing_for_raw,
            there=self._card.raw,
            broker_spoofs=self._node.broker_spoofs,
        )
        if {*chosen, "relay"} != set(TECHNIQUES):
            for technique, obstacle in obstacles.items():
                race.impossible(technique, Endpoint(self._dial.observed_host, 0), obstacle)
        return [technique for technique in chosen if technique not in obstacles]

    async def _tell(self, payload: bytes) -> None:
        await self._node.introductions.introduce(self._dial, payload)

    async def _spoof(self, local: Endpoint, remote: Endpoint, syn: Syn) -> None:
        await self._node.introductions.spoof(self._dial.dial_id, self._dial.key, local, remote, syn)


def _uses(connection: Connection | None, given: GivenSocket) -> bool:
    return (
        connection is not None
        and isinstance(connection.carrier, PlainCarrier)
        and connection.carrier.lent is given
    )
