"""Who brings carriers, with the real `Resuming` and `Resumable`: the dialer asks, the listener grants or refuses."""

from __future__ import annotations

import errno
from collections.abc import Callable

from ntcpsock._errors import BadMessage
from ntcpsock._session.frames import (
    HEADER_LENGTH,
    RESUME_LENGTH,
    Reset,
    decode_resume,
    decode_resumed,
    encode_frame,
    encode_resumed,
)
from ntcpsock._session.machine import Session
from ntcpsock._session.resumption import Resumable, Resuming
from session_simulation.checker import Violation, require
from session_simulation.ends import End
from session_simulation.network import Carrier, Side, World

#: Seconds that the other end may take for its word about a new carrier.
DEADLINE = 5.0
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0
ASK_PAUSES = (0.05, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0)  # the last one repeats


class Dialer(End):
    """new_carrier: a carrier after a dial that took a while, or None where the dial failed."""

    name = "the dialer"

    def __init__(
        self,
        world: World,
        session: Session,
        outgoing: bytes,
        frame_size: int,
        resuming: Resuming,
        new_carrier: Callable[[Callable[[Carrier | None], None]], None],
    ) -> None:
        super().__init__(world, session, outgoing, frame_size)
        self.resuming = resuming
        self._new_carrier = new_carrier
        self._pause = FIRST_PAUSE
        self._attempt = 0
        self._exchange: Side | None = None
        self._was_lost = False
        self._waits = False
        self.resumes: list[tuple[bytes, bytes]] = []  # dial id and word of each attempt

    def keep(self) -> None:
        self._pause = FIRST_PAUSE
        self._dial()

    def asked_to_move(self, epoch: int) -> None:
        """The listener has lost the path; a word from before the last move is out of date."""
        if not self.resuming.is_late(epoch) and not self.suspended and self.error is None:
            self.fail(TimeoutError(errno.ETIMEDOUT, "the peer has lost the path"))

    def climb(self) -> None:
        """Try for a better carrier, while there is one."""
        if not self.suspended and self.can_move and self.error is None:
            self._dial()

    def _dial(self) -> None:
        self._attempt += 1
        attempt = self._attempt
        self._waits = False
        self._new_carrier(lambda carrier: self._dialled(attempt, carrier))

    def _dialled(self, attempt: int, carrier: Carrier | None) -> None:
        if carrier is None or attempt != self._attempt or self.error is not None:
            if carrier is not None:
                carrier.sides[0].close(abort=True)
            elif attempt == self._attempt:
                self._failed()
            return
        # One exchange at a time, and nothing is read meanwhile: what is said of this end stays true.
        self._was_lost = self.suspended
        self.suspended = True
        side = carrier.sides[0]
        self._exchange = side
        side.on_ready = self._answered
        word = self.resuming.resume(self.session.position, carrier.dial_id)
        self.resumes.append((carrier.dial_id, word))
        try:
            side.send(word)
        except OSError:
            self._abandon()
            return
        self.world.after(DEADLINE, self._too_late, side)

    def _too_late(self, side: Side) -> None:
        if side is self._exchange:
            self._abandon()

    def _answered(self, side: Side) -> None:
        if side is not self._exchange or self.error is not None:
            return
        if len(side.into.buffer) < HEADER_LENGTH:
            if side.error is not None or side.has_ended:
                self._abandon()
            return
        answer = side.receive(HEADER_LENGTH)
        assert answer
        position = decode_resumed(answer)
        if position is None:
            require(self.other.error is not None, "the listener refuses a stream that it has")
            was_lost = self._was_lost
            self._abandon()
            if was_lost:
                self.end(ConnectionResetError(errno.ECONNRESET, "the peer has lost the connection"))
            return
        self._exchange = None
        self._attempt += 1
        self.resuming.has_moved()
        try:
            self.attach(side, position)
        except BadMessage as error:
            raise Violation(f"the dialer takes its honest peer for a liar: {error}") from error

    def _abandon(self) -> None:
        """This carrier is not to be: go on with the one before, where it was not lost."""
        side, self._exchange = self._exchange, None
        self._attempt += 1
        assert side is not None
        side.close(abort=True)
        if not self._was_lost and self.error is None:
            self.go_on()
        else:
            self._failed()

    def _failed(self) -> None:
        if self.is_lost and not self._waits:
            self._waits = True
            pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
            self.world.after(pause, self._try_again, self._attempt)

    def _try_again(self, attempt: int) -> None:
        if self._waits and self.is_lost and attempt == self._attempt:
            self._dial()


class Listener(End):
    """resumable: who may move its stream; refused: how often somebody was refused, by reason.

    tell_dialer: says something to the dialer by the broker.
    """

    name = "the listener"

    def __init__(
        self, world: World, session: Session, outgoing: bytes, frame_size: int, resumable: Resumable
    ) -> None:
        super().__init__(world, session, outgoing, frame_size)
        self.resumable = resumable
        self.refused: dict[str, int] = {}
        self.epochs: list[int] = []  # granted
        self.tell_dialer: Callable[[int], None] = _nobody

    def keep(self) -> None:
        self.world.after(ASK_PAUSES[0], self._ask, self.moves, 1)

    def _ask(self, moves: int, number: int) -> None:
        if self.is_lost and self.moves == moves:
            self.tell_dialer(self.resumable.epoch)
            pause = ASK_PAUSES[min(number, len(ASK_PAUSES) - 1)]
            self.world.after(pause, self._ask, moves, number + 1)

    def arrived(self, carrier: Carrier, peer: bytes) -> None:
        """A carrier whose dialer is the node `peer`, proven."""
        side = carrier.sides[1]
        side.on_ready = lambda side: self._heard(side, peer)
        self.world.after(DEADLINE, self._too_late, side)
        self._heard(side, peer)

    def _too_late(self, side: Side) -> None:
        if side is not self.side:
            side.close(abort=True)

    def _heard(self, side: Side, peer: bytes) -> None:
        length = HEADER_LENGTH + RESUME_LENGTH
        if len(side.into.buffer) < length:
            if side.error is not None or side.has_ended:
                side.close(abort=True)
            return
        word = side.receive(length)
        assert word
        side.on_ready = lambda side: None
        if self.error is not None:  # it has no such stream any more
            self._count("unknown")
            self._say(side, encode_frame(Reset(0)))
            side.close()
            return
        try:
            resume = decode_resume(word)
            self.resumable.take(resume, side.carrier.dial_id, peer)
            self.session.check_position(resume.received)
        except BadMessage as error:
            self.world.note(f"the listener refuses carrier {side.carrier.dial_id[0]}: {error}")
            self._count(str(error).partition(":")[2] if str(error).startswith("RESUME") else "overtaken")
            side.close(abort=True)
            return
        require(not side.carrier.is_strange, "a stranger moved the stream")
        require(not self.epochs or resume.epoch > self.epochs[-1], f"epoch {resume.epoch} was taken twice")
        self.epochs.append(resume.epoch)
        self.suspended = True
        if self._say(side, encode_resumed(self.session.position)):
            self.attach(side, resume.received)
        elif self._lost_at is None:
            self.go_on()

    def _say(self, side: Side, word: bytes) -> bool:
        try:
            return side.send(word) == len(word)
        except OSError:
            side.close(abort=True)
            return False

    def _count(self, reason: str) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1


def _nobody(epoch: int) -> None:
    pass
