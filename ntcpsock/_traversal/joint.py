"""The rounds of a dial in which both sides do the same at the same time, announced by the leader."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from typing import Final

import trio

from ntcpsock._address import Endpoint
from ntcpsock._config import TECHNIQUES, UDP_TECHNIQUES
from ntcpsock._traversal.candidate import ipv4_host
from ntcpsock._traversal.course import Course
from ntcpsock._traversal.datagram_plan import birthday_cost, make_joint_datagram_plan, udp_profile
from ntcpsock._traversal.plan import COSTLY_TECHNIQUES, PlannedAttempt, make_joint_plan, raw_obstacles
from ntcpsock._traversal.prediction import Prediction
from ntcpsock._traversal.race import Race
from ntcpsock._traversal.signals import REPEAT_PAUSES, Talk
from ntcpsock._traversal.strategies.tcp_predict import NO_PROSPECT

#: Behind those that have a number of their own.
FIRST_UDP_ROUND = 17

#: What one side can guess, and the other hold sockets for.
GUESSABLE: Final[set[str]] = {"exact", "band"}

#: Rounds of prediction over UDP that may have seen no prospect: a look may be wrong, and two alike are not.
HOPELESS_ROUNDS = 2

# Guessing ports takes its time: where the caller has more patience than the other attempts need, it goes on for so many
# seconds, as long as a listener holds a dial. The rest of the caller's is for saying why it failed.
LONGEST_UDP_BUDGET = 11.5
_LAST_SECOND = 1.0


class JointRounds:
    """Of one dial. first_number: of the first of them; those before belong to the direct techniques."""

    def __init__(self, course: Course, race: Race, nursery: trio.Nursery, first_number: int) -> None:
        self._course = course
        self._race = race
        self._nursery = nursery
        self._first_number = first_number
        # Set when a round of it has seen that both NATs choose among too many ports: what is observed again a moment
        # later costs entries in both, and is the same.
        self._prediction_is_hopeless = trio.Event()
        # Over UDP: one round after the other; how many there are still, and how many saw no prospect; what was seen.
        self._predicting = trio.Lock()
        self._predictions_left = 0
        self._hopeless_rounds = 0
        self._shapes: set[str] = set()
        self._has_looked = trio.Event()

    async def run(self, earliest: float, *, task_status: trio.TaskStatus[None]) -> None:
        """Each joint attempt, when it is this pair's turn for one."""
        with self._race.more_may_come():
            task_status.started()
            plan = make_joint_plan(
                self._course.warm.profile,
                self._course.card.profile,
                techniques=self._possible_techniques(),
                budget=self._course.remaining,
                proven_host=ipv4_host(self._course.proven_host, *self._course.also_proven),
                earliest=earliest,
                late=self._course.node.surroundings.late_techniques,
            )
            begin = trio.current_time()
            async with trio.open_nursery() as rounds:
                for number, planned in enumerate(plan, start=self._first_number):
                    rounds.start_soon(self._joint_round, number, planned, begin)
                over_udp = self._datagram_plan(earliest)
                self._predictions_left = sum(planned.technique == "udp-predict" for planned in over_udp)
                if not self._predictions_left:
                    self._shapes = GUESSABLE
                    self._has_looked.set()
                for number, planned in enumerate(over_udp, start=FIRST_UDP_ROUND):
                    behind = planned.delay - over_udp[0].delay
                    rounds.start_soon(self._udp_round, number, planned, begin, behind)

    @property
    def _patience(self) -> float:
        """Seconds for which whoever called connect() is going to wait."""
        return trio.current_effective_deadline() - trio.current_time() - _LAST_SECOND

    def _datagram_plan(self, earliest: float) -> tuple[PlannedAttempt, ...]:
        course = self._course
        return make_joint_datagram_plan(
            udp_profile(course.warm.profile, course.warm.udp_profile),
            udp_profile(course.card.profile, course.card.udp_profile),
            techniques=course.techniques,
            budget=max(course.remaining, min(LONGEST_UDP_BUDGET, self._patience)),
            proven_host=ipv4_host(course.proven_host, *course.also_proven),
            earliest=earliest,
            late=course.node.surroundings.late_techniques,
            birthday=birthday_cost(course.node.birthday_sockets, course.node.birthday_rate),
            behind_tcp=course.dial.prefer == "tcp" and "tcp-predict" in course.techniques,
        )

    async def _udp_round(self, number: int, planned: PlannedAttempt, begin: float, behind: float) -> None:
        """As `_joint_round`, at once where `tcp-predict`, whose turn it is, has no prospect. behind: seconds after the
        first attempt over UDP."""
        with trio.move_on_at(begin + planned.delay):
            await self._prediction_is_hopeless.wait()
            begin = trio.current_time()
            planned = replace(planned, delay=behind, budget=planned.budget - planned.delay + behind)
        if planned.technique == "udp-predict":
            await trio.sleep_until(begin + planned.delay)
            async with self._predicting:
                if self._hopeless_rounds < HOPELESS_ROUNDS:
                    await self._joint_round(number, planned, begin)
            self._predictions_left -= 1
            if not self._predictions_left:
                self._has_looked.set()
            return
        # Prediction sees whether one side's port alone has to be guessed. To look for oneself costs entries in both
        # NATs and, where no UDP comes through, this pair's turn for seconds.
        await trio.sleep_until(begin + planned.delay)
        await self._has_looked.wait()
        if self._shapes == GUESSABLE:
            await self._joint_round(number, planned, begin)

    def _agreed(self, ours: Prediction, theirs: Prediction) -> None:
        self._shapes = {ours.shape, theirs.shape}
        self._has_looked.set()

    async def _joint_round(self, number: int, planned: PlannedAttempt, begin: float) -> None:
        """One joint attempt, when its time has come and, where it is costly, this pair's turn. begin: of the plan."""
        await trio.sleep_until(begin + planned.delay)
        is_costly = planned.technique in COSTLY_TECHNIQUES
        turn = self._course.node.pairs.lead(self._course.dial.key) if is_costly else nullcontext()
        async with turn:
            left = planned.budget - (trio.current_time() - begin)
            if left > 0 and not (
                planned.technique == "tcp-predict" and self._prediction_is_hopeless.is_set()
            ):
                await self._make_together(number, replace(planned, budget=left))

    async def _make_together(self, number: int, planned: PlannedAttempt) -> None:
        """Announce a joint attempt in an offer of its own, and make it."""
        course, warm = self._course, self._course.warm
        mailbox = course.dial.mailbox
        talk = Talk(course.dial.dial_id, number, mailbox, self._nursery, course.tell, course.spoof)
        offer = self._course.offer(number, warm, planned.technique)
        async with trio.open_nursery() as together:

            async def announce() -> None:
                """The broker may have brought it to nobody: again, until the other side has joined."""
                for pause in (*REPEAT_PAUSES, math.inf):
                    try:
                        await course.tell(offer)
                    except OSError:
                        together.cancel_scope.cancel()
                    with trio.move_on_after(pause):
                        await mailbox.wait_for_round(number)
                        return

            together.start_soon(announce)
            is_udp = planned.technique in UDP_TECHNIQUES
            datagram = None
            if is_udp:
                datagram = replace(course.datagram_access(None, number, lambda: None), agreed=self._agreed)
            error = await self._race.run_joint(planned, warm.port, talk, datagram)
            if planned.technique == "tcp-predict" and error is not None and error.errno == NO_PROSPECT:
                self._prediction_is_hopeless.set()
            if planned.technique == "udp-predict" and error is not None and error.errno == NO_PROSPECT:
                self._hopeless_rounds += 1
            together.cancel_scope.cancel()

    def _possible_techniques(self) -> list[str]:
        """Without those whose raw packets are impossible. Who chose techniques finds in the report what is missing."""
        chosen = self._course.techniques
        obstacles = raw_obstacles(
            chosen,
            here=self._course.node.missing_for_raw,
            there=self._course.card.raw,
            broker_spoofs=self._course.node.broker_spoofs,
        )
        if {*chosen, "relay", "turn"} != set(TECHNIQUES):
            for technique, obstacle in obstacles.items():
                self._race.impossible(technique, Endpoint(self._course.dial.observed_host, 0), obstacle)
        return [technique for technique in chosen if technique not in obstacles]
