"""Which joint rounds over UDP a dial makes, by what the rounds before have found."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from ntcpsock._traversal.course import Course
from ntcpsock._traversal.datagram_plan import PREDICT_ROUNDS
from ntcpsock._traversal.joint import HOPELESS_ROUNDS, JointRounds
from ntcpsock._traversal.pairs import Pairs
from ntcpsock._traversal.plan import PlannedAttempt
from ntcpsock._traversal.prediction import Prediction, Shape
from ntcpsock._traversal.punch.message import NATProfile
from ntcpsock._traversal.race import Race
from ntcpsock._traversal.strategies.datagrams import DatagramAccess

HOST = "192.0.2.1"
CHANGING = NATProfile(mapping="address-and-port-dependent")

#: Seconds until a round knows both shapes, and until it has failed.
AGREED, MISSED = 0.35, 2.2


class Rounds:
    """A race whose rounds find these shapes, and fail with a code."""

    def __init__(self, shapes: Sequence[Shape], code: int) -> None:
        self.made: list[tuple[str, float]] = []
        self.techniques: tuple[str, ...] = ("udp-predict", "udp-birthday")
        self._predictions = [Prediction(shape, HOST, 5000, 5255) for shape in shapes]
        self._code = code

    def more_may_come(self) -> Any:
        return trio.CancelScope()

    async def run_joint(
        self, planned: PlannedAttempt, port: int, talk: object, datagram: DatagramAccess
    ) -> OSError:
        self.made.append((planned.technique, trio.current_time()))
        if self._predictions:
            await trio.sleep(AGREED)
            datagram.agreed(*self._predictions)
        await trio.sleep(MISSED - AGREED)
        return OSError(self._code, "")

    async def run(self) -> list[str]:
        """The techniques of the rounds, in their order; no two predictions at once."""
        node = SimpleNamespace(
            surroundings=SimpleNamespace(late_techniques=()),
            birthday_sockets=256,
            birthday_rate=250.0,
            missing_for_raw=None,
            broker_spoofs=False,
            pairs=Pairs(bytes(32)),
        )
        access = DatagramAccess(None, cast(Any, None), lambda: None, cast(Any, None), cast(Any, None))

        async def tell(offer: bytes) -> None:
            pass

        async def wait_for_round(number: int) -> None:
            pass

        course = SimpleNamespace(
            node=node,
            warm=SimpleNamespace(profile=CHANGING, udp_profile=None, port=20000),
            card=SimpleNamespace(profile=CHANGING, udp_profile=None, raw=False),
            dial=SimpleNamespace(
                prefer="tcp",
                key=b"peer",
                dial_id=bytes(16),
                observed_host=HOST,
                mailbox=SimpleNamespace(wait_for_round=wait_for_round),
            ),
            techniques=self.techniques,
            remaining=8.0,
            proven_host=HOST,
            also_proven=(),
            datagram_access=lambda plan, number, take_port: dataclasses.replace(access),
            offer=lambda number, warm, technique: b"",
            tell=tell,
            spoof=None,
        )

        async with trio.open_nursery() as nursery:
            with trio.move_on_after(course.remaining):
                rounds = JointRounds(cast(Course, course), cast(Race, self), nursery, 4)
                await nursery.start(rounds.run, 0.0)
                await trio.sleep_forever()
            nursery.cancel_scope.cancel()
        predicted = [when for technique, when in self.made if technique == "udp-predict"]
        assert all(after - before >= MISSED for before, after in pairwise(predicted))
        return [technique for technique, _ in self.made]


@pytest.mark.parametrize("shapes", [("single", "band"), ("sequential", "exact"), ("single", "single")])
async def test_prediction_goes_on_where_there_is_nothing_to_guess(
    autojump_clock: trio.testing.MockClock, shapes: tuple[Shape, Shape]
) -> None:
    """A path may become possible after the first round; guesses would cost both NATs two more looks, for nothing."""
    assert await Rounds(shapes, errno.ETIMEDOUT).run() == ["udp-predict"] * PREDICT_ROUNDS


async def test_where_no_port_can_be_foreseen_one_is_guessed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    made = await Rounds(("exact", "band"), errno.EHOSTUNREACH).run()
    assert made == ["udp-predict", "udp-birthday", "udp-birthday", *["udp-predict"] * (HOPELESS_ROUNDS - 1)]


async def test_where_nothing_was_seen_nothing_is_guessed(autojump_clock: trio.testing.MockClock) -> None:
    """Guesses take the pair's turn, which prediction over TCP needs where no UDP comes through."""
    assert await Rounds((), errno.ENODATA).run() == ["udp-predict"] * PREDICT_ROUNDS


async def test_guesses_go_without_predictions(autojump_clock: trio.testing.MockClock) -> None:
    rounds = Rounds((), errno.ENODATA)
    rounds.techniques = ("udp-birthday",)
    assert await rounds.run() == ["udp-birthday"] * 2
