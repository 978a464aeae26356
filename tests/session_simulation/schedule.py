"""One seeded schedule from beginning to end: what the applications do, what happens to the network, who attacks."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from unittest import mock

from ntcpsock._session import send_buffer
from ntcpsock._session.frames import SESSION_ID_LENGTH, Resume, encode_frame
from ntcpsock._session.machine import Session
from ntcpsock._session.resumption import Resumable, Resuming
from session_simulation.checker import Violation, check_whole, require
from session_simulation.ends import LINGER, End
from session_simulation.moving import DEADLINE, Dialer, Listener
from session_simulation.network import KERNEL_KEEP_ALIVE, Carrier, World

DIALER_KEY = b"d" * 32
STRANGER_KEY = b"s" * 32
TOKEN = b"t" * 32
CLEAN = {errno.ECONNRESET, errno.ETIMEDOUT, errno.ECONNABORTED}


@dataclass
class Outcome:
    """What one schedule came to. kind: "whole", "crash" or "reset"."""

    kind: str
    moves: int
    events: int
    seconds: float
    refused: dict[str, int] = field(default_factory=dict)


class Schedule:
    def __init__(
        self,
        seed: int,
        *,
        session: Callable[[int], Session] = Session,
        resumable: Callable[[bytes, bytes, bytes], Resumable] = Resumable,
    ) -> None:
        self.world = world = World(seed)
        chance = world.chance
        self.period = chance.choice((0.5, 3.0, 8.0))
        self.trouble_until = self.period + 4.0 * chance.random()
        self.piece = chance.choice((16, 150, send_buffer.SMALL))
        self.window = chance.choice((64, 200, 1000, 4000))
        self.delay = chance.choice((0.001, 0.03, 0.3))
        self._dial_ids = 0
        self.current: Carrier | None = None
        session_id = self._dial_id()
        frame_size = chance.choice((1, 17, 90, 600, 4000))
        first_bytes, second_bytes = self._bytes(), self._bytes()
        self.dialer = Dialer(
            world,
            session(self.window),
            first_bytes,
            max(frame_size, len(first_bytes) // 30),
            Resuming(session_id, TOKEN),
            self._dial,
        )
        self.listener = Listener(
            world,
            session(self.window),
            second_bytes,
            max(frame_size, len(second_bytes) // 30),
            resumable(session_id, TOKEN, DIALER_KEY),
        )
        self.ends: tuple[End, End] = self.dialer, self.listener
        self.dialer.other, self.listener.other = self.listener, self.dialer
        self.listener.tell_dialer = self._tell_dialer
        self.current = first = Carrier(world, session_id, self.delay, self._capacity())
        self.dialer.use(first.sides[0])
        self.listener.use(first.sides[1])
        self._crash_at = 0
        self._resets = False
        self._plan()

    # -- what the world is made of

    def _bytes(self) -> bytes:
        chance = self.world.chance
        return chance.randbytes(chance.choice((0, 1, 100, 1000, 1000, 4000)))

    def _capacity(self) -> int:
        return self.world.chance.choice((120, 400, 3000, 100_000))

    def _dial_id(self) -> bytes:
        self._dial_ids += 1
        return bytes((self._dial_ids % 256,)) * SESSION_ID_LENGTH

    def _dial(self, tell: Callable[[Carrier | None], None]) -> None:
        """A dial of the dialer's: it takes a while, may fail, and may give a carrier that is cut at any byte."""
        world, chance = self.world, self.world.chance
        trouble = world.now < self.trouble_until
        takes = self.delay * 4 + chance.random() * 0.2
        if trouble and chance.random() < 0.2:
            world.after(takes, tell, None)
            return
        late = trouble and chance.random() < 0.15
        carrier = Carrier(
            world, self._dial_id(), 8 * chance.random() if late else self.delay, self._capacity()
        )
        if trouble and chance.random() < 0.5:
            one_way = chance.random() < 0.3
            carrier.doom(
                chance.randrange(2), chance.choice((0, 5, 13, 68, 69, 82, 100, 300)), self._told(), one_way
            )
        world.after(takes, self._connected, carrier, tell)

    def _connected(self, carrier: Carrier, tell: Callable[[Carrier | None], None]) -> None:
        self.current = carrier
        self.listener.arrived(carrier, DIALER_KEY)
        tell(carrier)
        chance = self.world.chance
        if chance.random() < 0.2:  # while the missing bytes are under way
            self.world.after(
                self.delay * (1 + 5 * chance.random()), self._finish_at_once, chance.choice(self.ends)
            )

    def _told(self) -> tuple[int, ...]:
        return self.world.chance.choice(((), (), (0,), (1,), (0, 1)))

    def _tell_dialer(self, epoch: int) -> None:
        chance = self.world.chance
        if self.world.now >= self.trouble_until or chance.random() < 0.7:
            self.world.after(0.02 + chance.random() * 0.3, self.dialer.asked_to_move, epoch)

    # -- what happens

    def _plan(self) -> None:
        world, chance = self.world, self.world.chance
        for end in self.ends:
            for _ in range(chance.randrange(4)):
                world.at(chance.random() * self.period, end.write, chance.choice((1, 20, 500, 4000)))
            if chance.random() < 0.2:
                world.at(chance.random() * self.period, self._finish_at_once, end)
            world.at(self.period, end.write, 10_000)
            world.at(self.period + chance.random(), self._finish, end)
            for _ in range(chance.choice((0, 0, 1, 2))):
                begin = chance.random() * self.period
                world.at(begin, end.read, False)
                for _ in range(chance.randrange(3)):
                    world.at(begin + chance.random() * 3.0, end.take, chance.choice((1, 30, 700)))
                world.at(begin + chance.random() * 6.0, end.read, True)
            for number in range(chance.choice((0, 0, 2))):
                world.at(chance.random() * self.period, end.say, b"%d" % number * chance.choice((1, 300)))
            world.at(self.period + 6.0, end.read, True)
        for _ in range(chance.choice((1, 1, 2, 3, 5, 8))):
            world.at(chance.random() * self.trouble_until, chance.choice(self._TROUBLES), self)
        kind = chance.random()
        if kind < 0.1:
            self._crash_at = chance.choice((1, 10, 30, 100))
            self._crash_at = chance.randrange(self._crash_at, 3 * self._crash_at + 1)
        elif kind < 0.2:
            world.at(chance.random() * (self.period + 1.0), self._reset, chance.choice(self.ends))

    def _finish_at_once(self, end: End) -> None:
        end.finish(at_once=True)

    def _finish(self, end: End) -> None:
        end.finish(at_once=False)

    def _reset(self, end: End) -> None:
        if end.error is None:
            self._resets = True
            end.reset(self.world.chance.randrange(1000))

    def _cut(self) -> None:
        if self.current is not None:
            self.current.cut(self._told(), self.world.chance.choice((None, None, 0, 1)))

    def _climb(self) -> None:
        self.dialer.climb()

    def _attack(self) -> None:
        """Somebody else brings carriers: with a word overheard, one that he made up, or the dialer's own again."""
        chance, dialer, listener = self.world.chance, self.dialer, self.listener
        session_id = listener.resumable.session_id
        dial_id, key = self._dial_id(), chance.choice((STRANGER_KEY, DIALER_KEY))
        kind = chance.randrange(3)
        if kind == 0 or not dialer.resumes:
            epoch = listener.resumable.epoch + chance.choice((0, 1, 1000))
            word = encode_frame(Resume(chance.randrange(4000), session_id, epoch, chance.randbytes(32)))
        else:
            said_for, word = chance.choice(dialer.resumes)
            epoch = int.from_bytes(word[13 + SESSION_ID_LENGTH :][:8], "big")
            if kind == 2:
                # Only the dialer itself has that dial, and once its word has arrived nobody says it again.
                dial_id = said_for
                if epoch > listener.resumable.epoch:
                    key = STRANGER_KEY
        carrier = Carrier(self.world, dial_id, 0.0, self._capacity())
        carrier.is_strange = True
        carrier.sides[0].send(word)
        listener.arrived(carrier, key)

    _TROUBLES: tuple[Callable[[Schedule], None], ...] = (_cut, _cut, _cut, _climb, _climb, _attack)

    # -- from beginning to end

    def run(self) -> Outcome:
        """Raises Violation."""
        # In small pieces, so that what is sent again is many frames.
        with mock.patch.object(send_buffer, "SMALL", self.piece):
            return self._run()

    def _run(self) -> Outcome:
        world = self.world
        patience = self.trouble_until + 2 * (LINGER + DEADLINE)
        got, since = 0, 0.0
        while not all(end.is_settled for end in self.ends):
            world.step()
            if world.events == self._crash_at:
                world.chance.choice(self.ends).crash(told=world.chance.random() < 0.5)
            if self.dialer.got + self.listener.got != got:
                got, since = self.dialer.got + self.listener.got, world.now
            # An idle end learns by its kernel only that the other one is gone; while both live nobody needs that.
            kernel = KERNEL_KEEP_ALIVE if self._resets or any(end.crashed for end in self.ends) else 0.0
            require(world.now < since + patience + kernel, "it hangs")
        crashed = any(end.crashed for end in self.ends)
        for end in self.ends:
            if not crashed and not self._resets:
                check_whole(end)
            elif end.error is not None and not end.crashed:
                require(end.error.errno in CLEAN, f"{end.name} ends with {end.error!r}")
        kind = "crash" if crashed else "reset" if self._resets else "whole"
        return Outcome(
            kind, sum(end.moves - 1 for end in self.ends), world.events, world.now, self.listener.refused
        )


def run(
    seed: int,
    *,
    session: Callable[[int], Session] = Session,
    resumable: Callable[[bytes, bytes, bytes], Resumable] = Resumable,
) -> Outcome:
    """Run the schedule of `seed`. A Violation says how to see it again."""
    try:
        return Schedule(seed, session=session, resumable=resumable).run()
    except Exception as error:
        again = f"cd tests && ../.venv/bin/python -m session_simulation {seed}"
        raise Violation(f"seed {seed}: {error!r}; to see it again: {again}") from error
