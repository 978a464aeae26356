"""Whether a carrier lives: a dead one is noticed while the stream is at work, and an idle one is left alone."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from functools import partial

import pytest

from ntcpsock._session.liveness import INTERVAL, PATIENCE, QUIET, SILENT, Liveness, Verdict
from ntcpsock._session.machine import PongReceived, Session

#: Virtual seconds from the last sign of life to the verdict, and two looks for the steps between.
NOTICED = QUIET + PATIENCE + 2 * INTERVAL


class End:
    """The real session and liveness; frames arrive whole, after the path's delay, unless it is cut."""

    def __init__(self, path: Path, number: int, first_look: float) -> None:
        self.path = path
        self.number = number
        self.session = Session(window=4000)
        self.liveness = Liveness(0.0, 2 * path.delay)
        self.heard = self.taken = self.answers = self.arrived = 0
        self.asked: list[float] = []
        self.dead_at: float | None = None
        path.at(first_look, self.look)

    def put(self, data: bytes) -> None:
        if data:
            self.taken += len(data)
            self.path.carry(self, data)

    def write(self, data: bytes) -> None:
        header = self.session.send_data(len(data))
        self.session.keep(data)
        self.put(header + data)

    def receive(self, data: bytes) -> None:
        self.heard += len(data)
        for event in self.session.receive_data(data):
            self.answers += isinstance(event, PongReceived)
        self.put(self.session.control_to_send())

    def look(self) -> None:
        self.path.at(self.path.now + INTERVAL, self.look)
        if self.dead_at is not None:
            return
        self.session.acknowledge()
        unacknowledged = self.taken - self.arrived if self.path.tells else None
        aside = self.session.aside_heard, self.session.aside_said
        verdict = self.liveness.look(
            self.path.now, self.heard, self.taken, unacknowledged, self.answers, aside
        )
        if verdict == "ask":
            self.asked.append(self.path.now)
            self.put(self.session.ping(self.answers))
        elif verdict == "dead":
            self.dead_at = self.path.now
        self.put(self.session.control_to_send())


class Path:
    def __init__(self, delay: float, *, phase: float = 0.1, tells: bool = True) -> None:
        self.delay = delay
        self.tells = tells
        self.now = 0.0
        self.cut_at = float("inf")
        self.carried = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.left, self.right = End(self, 0, 0.01), End(self, 1, 0.01 + phase)

    def at(self, time: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (time, self._count, action))

    def carry(self, sender: End, data: bytes) -> None:
        self.carried += len(data)

        def arrive() -> None:
            if self.now < self.cut_at:
                sender.arrived += len(data)
                (self.right if sender is self.left else self.left).receive(data)

        self.at(self.now + self.delay, arrive)

    def run(self, until: float) -> None:
        while self._queue[0][0] < until:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = until


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("phase", [0.0, 0.02, 0.1, 0.2])
@pytest.mark.parametrize("delay", [0.0005, 0.03, 0.15, 0.4, 1.2])
def test_idle_ends_are_left_alone(delay: float, phase: float, tells: bool) -> None:
    """Asked once or twice after the last byte, then silence: no radio is woken for nothing."""
    path = Path(delay, phase=phase, tells=tells)
    path.at(0.3, lambda: path.left.write(b"hello"))
    path.run(15.0)
    assert path.left.asked
    carried, asked = path.carried, (len(path.left.asked), len(path.right.asked))
    path.run(600.0)
    assert path.carried == carried
    assert max(asked) <= 3
    assert (path.left.dead_at, path.right.dead_at) == (None, None)


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("delay", [0.0005, 0.03, 0.4, 1.2])
def test_a_dead_path_is_noticed_by_whoever_is_at_work(delay: float, tells: bool) -> None:
    for cut_at in (2.0, 2.05, 2.1, 2.2):
        path = Path(delay, tells=tells)
        for number in range(200):
            path.at(0.1 * number, partial(path.left.write, b"hello"))
        path.cut_at = cut_at
        path.run(20.0)
        patience = max(0.0, 6 * delay - PATIENCE)
        for end in (path.left, path.right):  # the right one only reads
            assert end.dead_at is not None
            assert cut_at < end.dead_at <= cut_at + delay + NOTICED + patience


@pytest.mark.parametrize("delay", [0.0005, 0.03, 0.4])
def test_an_idle_one_notices_with_its_next_byte(delay: float) -> None:
    path = Path(delay)
    path.at(0.1, lambda: path.left.write(b"hello"))
    path.cut_at = 20.0
    path.run(50.0)
    assert (path.left.dead_at, path.right.dead_at) == (None, None)
    path.left.write(b"x")
    path.run(60.0)
    patience = max(0.0, 6 * delay - PATIENCE)
    assert path.left.dead_at is not None
    assert path.left.dead_at <= 50.0 + NOTICED + patience


@pytest.mark.parametrize("behind", [0.001, 0.1, 0.2, 0.24, 0.26, 0.4])
def test_what_goes_out_behind_the_question_is_not_confirmed_by_its_answer(behind: float) -> None:
    """The path dies right behind the PING: the answer comes, and the byte that followed it is lost."""
    path = Path(0.2)
    path.at(0.1, lambda: path.left.write(b"hello"))
    while not path.left.asked:
        path.run(path.now + 0.01)
    asked = path.left.asked[0]
    path.at(asked + behind, lambda: path.left.write(b"x"))
    # The answer is under way back when the byte behind the question gets lost.
    path.run(asked + min(behind, 0.15))
    left_to_right = path.left
    carry = path.carry

    def lossy(sender: End, data: bytes) -> None:
        if sender is not left_to_right:
            carry(sender, data)

    path.at(asked + min(behind, 0.15), lambda: setattr(path, "carry", lossy))
    path.run(asked + 12.0)
    assert path.left.answers == 1
    assert path.left.dead_at is not None


def test_an_acknowledgement_is_watched() -> None:
    """A reader that takes late says so on a path that has died: it must notice, the writer may wait for its word."""
    path = Path(0.03)
    path.at(0.1, lambda: path.left.write(b"hello"))
    path.run(0.2)
    path.right.session.hold(5)  # the reader has not taken it after all
    path.run(20.0)
    path.cut_at = 20.0
    path.right.session.release(5)
    path.right.session.confirm()
    path.run(30.0)
    assert path.right.dead_at is not None


def test_slow_is_not_dead() -> None:
    """A kernel that gets rid of a byte now and then lives, whatever its end says."""
    liveness = Liveness(0.0)
    verdicts: list[Verdict] = []
    for number in range(400):
        now = number * INTERVAL
        verdicts.append(liveness.look(now, 0, 100_000, 100_000 - number // 5, 0, (0, 0)))
    assert "dead" not in verdicts
    assert "ask" in verdicts


def test_a_carrier_is_silent_before_it_is_dead_and_no_more_once_it_is_heard() -> None:
    liveness = Liveness(0.0)

    def look(now: float, heard: int) -> tuple[Verdict, bool]:
        verdict = liveness.look(now, heard, 100, 100, 0, (0, 0))
        return verdict, liveness.silent

    assert look(0.1, 100) == ("watch", False)
    assert look(0.1 + QUIET, 100) == ("ask", False)
    assert look(0.1 + QUIET + PATIENCE * SILENT, 100) == ("watch", True)
    assert look(0.2 + QUIET + PATIENCE * SILENT, 200) == ("watch", False)
    assert look(0.2 + QUIET + PATIENCE * (1 + SILENT), 200) == ("dead", True)
