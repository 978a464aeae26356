"""One end: the real `Session` and `Liveness`, and in few lines what `SessionDriver` does with them."""

from __future__ import annotations

import contextlib
import errno
from abc import ABC, abstractmethod
from collections import deque

from ntcpsock._errors import BadMessage
from ntcpsock._session.liveness import INTERVAL, Liveness
from ntcpsock._session.machine import (
    DataReceived,
    EndReceived,
    PongReceived,
    ResetReceived,
    Session,
    SignalReceived,
)
from session_simulation.checker import Violation, check_end, check_now, check_read, require
from session_simulation.network import Side, World

#: Virtual seconds for which both ends wait for another carrier.
LINGER = 60.0


class End(ABC):
    """outgoing: what its writer may write; want: how much of that it would have written by now; written: how much it
    has; got: bytes that its reader has taken; error: what ended the stream here.

    suspended: without a carrier, or between two. reading: whether the reader takes what comes.
    """

    name = "an end"

    def __init__(self, world: World, session: Session, outgoing: bytes, frame_size: int) -> None:
        self.world = world
        self.session = session
        self.outgoing = outgoing
        self.frame_size = frame_size
        self.largest_frame = 1
        self.other: End
        self.side: Side | None = None
        self.suspended = True
        self.error: OSError | None = None
        self.crashed = False
        self.want = self.written = self.got = 0
        self.wants_end = self.wrote_end = self.got_end = False
        self.reading = True
        self.moves = 0
        self.asked = 0
        self.signals_said: list[bytes] = []
        self.signals_heard = 0
        self._ahead: deque[bytes] = deque()
        self._tail = b""
        self._bytes_heard = self._bytes_taken = self._answers = 0
        self._liveness: Liveness | None = None
        self._runs = self._again = False
        self._lost_at: float | None = None
        world.after(world.chance.random() * INTERVAL, self._look)

    # -- the application

    def write(self, count: int) -> None:
        """The writer has `count` more bytes."""
        if not self.wants_end:
            self.want = min(self.want + count, len(self.outgoing))
            self.run()

    def finish(self, *, at_once: bool) -> None:
        """The writer ends: behind all that it wanted to write, or at once, as a pump does, whatever waits."""
        if self.wants_end or self.error is not None or self.session.is_reset:
            return
        self.wants_end = True
        if at_once:
            self.want = self.written
            self.wrote_end = True
            # Behind what waits; another carrier begins without the tail, and gets FIN from the machine.
            self._tail += self.session.send_eof()
        self.run()

    def take(self, limit: int) -> None:
        """The reader takes up to `limit` bytes of what was read ahead, also of a stream that has broken since."""
        if self.crashed:
            return
        while self._ahead and limit > 0:
            piece = self._ahead[0][:limit]
            rest = self._ahead[0][len(piece) :]
            if rest:
                self._ahead[0] = rest
            else:
                self._ahead.popleft()
            limit -= len(piece)
            self._read(piece)
            self.session.release(len(piece))
        if self.session.eof_received and not self._ahead and not self.got_end:
            check_end(self)
            self.got_end = True

    def read(self, reading: bool) -> None:
        self.reading = reading
        if reading:
            self.take(len(self.other.outgoing))
        self.run()

    def say(self, body: bytes) -> None:
        """A signal."""
        if not self.suspended and self.error is None:
            self.signals_said.append(body)
            self.session.signal(body)
            self.run()

    def reset(self, code: int) -> None:
        """The application gives the stream up."""
        if self.error is not None or self.session.is_reset:
            return
        frame = self.session.reset(code)
        if self.suspended:
            return  # the next carrier gets it, if there is one
        if self.side is not None:
            if not self._tail:
                with contextlib.suppress(OSError):
                    self.side.send(frame)
            self.side.close(abort=self.world.chance.random() < 0.5)
        self.end(ConnectionAbortedError(errno.ECONNABORTED, "reset here"))

    def crash(self, *, told: bool) -> None:
        """The process or the machine dies; in the first case its kernel tells."""
        if self.crashed:
            return
        self.world.note(f"{self.name} crashes")
        self.crashed = True
        if self.side is not None:
            if not told:
                self.side.carrier.cut(())
            self.side.close(abort=True)
        self.end(OSError(errno.ESHUTDOWN, "crashed"))

    # -- frames

    def run(self) -> None:
        """Move what moves."""
        if self._runs:
            self._again = True
            return
        self._runs = self._again = True
        try:
            while self._goes_on and self._again:
                self._again = False
                if not self.session.is_reset:
                    self._receive()
                if self._goes_on:
                    self._send()
        except OSError as error:
            self.fail(error)
        except BadMessage as error:
            raise Violation(f"{self.name} takes its honest peer for a liar: {error}") from error
        finally:
            self._runs = False
        check_now(self)

    @property
    def _goes_on(self) -> bool:
        return not self.suspended and self.error is None

    def _receive(self) -> None:
        """As `SessionDriver.receive_into` where the reader reads, else `read_ahead`; sometimes by `receive_data`."""
        session, chance = self.session, self.world.chance
        if self.reading:
            self.take(len(self.other.outgoing))
        while self.error is None and not self.suspended:
            assert self.side is not None
            remaining = session.payload_remaining
            if not remaining and self.reading and not self._ahead and chance.random() < 0.3:
                data = self._from_side(chance.randrange(1, 400))
                if data is None:
                    return
                for event in session.receive_data(data):
                    if isinstance(event, DataReceived):
                        self._read(event.data)
                    else:
                        self._handle(event)
            elif remaining:
                if not self.reading and session.held >= session.window:
                    return
                data = self._from_side(remaining)
                if data is None:
                    return
                if self.reading and not self._ahead:
                    session.skip_payload(len(data))
                    self._read(data)
                else:
                    session.hold(len(data))
                    session.skip_payload(len(data))
                    self._ahead.append(data)
            else:
                data = self._from_side(session.header_missing)
                if data is None:
                    return
                if len(data) == 13 and session.receive_data_header(memoryview(data)):
                    continue
                event_or_none = session.receive_header_part(data)
                if event_or_none is not None:
                    self._handle(event_or_none)

    def _from_side(self, limit: int) -> bytes | None:
        assert self.side is not None
        data = self.side.receive(limit)
        if data == b"":
            if self.session.eof_received:
                self.end(ConnectionResetError(errno.ECONNRESET, "the peer closed the connection"))
                return None
            raise ConnectionResetError(errno.ECONNRESET, "ended without the peer's FIN")
        if data is not None:
            self._bytes_heard += len(data)
        return data

    def _read(self, data: bytes) -> None:
        check_read(self, data)
        self.got += len(data)

    def _handle(self, event: object) -> None:
        if isinstance(event, EndReceived):
            if not self._ahead:
                check_end(self)
                self.got_end = True
        elif isinstance(event, PongReceived):
            self._answers += 1
        elif isinstance(event, SignalReceived):
            said = self.other.signals_said
            try:
                self.signals_heard = said.index(event.body, self.signals_heard) + 1
            except ValueError:
                raise Violation(f"{self.name} heard a signal that nobody gave, or one again") from None
        elif isinstance(event, ResetReceived):
            require(self.other.session.reset_sent, f"{self.name} heard a RESET that nobody sent")
            self.end(ConnectionResetError(errno.ECONNRESET, "the peer reset the stream"))

    def _send(self) -> None:
        """As `finish_nowait` and `send_nowait`."""
        session = self.session
        assert self.side is not None
        while self.error is None:
            if self._tail:
                count = self.side.send(self._tail)
                self._bytes_taken += count
                self._tail = self._tail[count:]
                if self._tail:
                    return
            elif session.is_behind:
                self._tail = session.next_again()
            elif session.has_control:
                self._tail = session.control_to_send()
            elif self.want > self.written and session.room > 0 and not session.is_reset:
                count = min(self.frame_size, session.room, self.want - self.written)
                payload = self.outgoing[self.written : self.written + count]
                header = session.send_data(count)
                session.keep(payload)
                self.written += count
                self.largest_frame = max(self.largest_frame, count)
                self._tail = header + payload
            elif self.wants_end and not (self.wrote_end or session.is_reset) and self.want == self.written:
                self.wrote_end = True
                self._tail = session.send_eof()
            elif session.reset_sent:
                self.side.close()
                self.end(ConnectionAbortedError(errno.ECONNABORTED, "reset here"))
            else:
                return

    # -- the carrier's life

    @property
    def can_move(self) -> bool:
        session = self.session
        is_over = session.is_reset or (session.eof_acknowledged and session.eof_received)
        return self.error is None and not is_over

    @property
    def is_settled(self) -> bool:
        """Whether nothing more will happen here."""
        session = self.session
        if session.eof_received and not session.is_reset and not self.crashed:
            if session.eof_acknowledged or self.error is not None:
                return self.got_end
            # Whoever has got all does not care any more whether the last acknowledgement arrives.
            is_cut = self.side is not None and self.side.carrier.is_broken
            return self.got_end and self.other.got_end and is_cut and not self.other.can_move
        return self.error is not None

    @property
    def is_lost(self) -> bool:
        return self._lost_at is not None and self.suspended and self.error is None

    def fail(self, error: OSError) -> None:
        """The carrier is of no use any more."""
        if self.error is not None or self.suspended:
            return
        if not self.can_move:
            self.end(error)
            return
        assert self.side is not None
        self.world.note(f"{self.name} lost carrier {self.side.carrier.dial_id[0]}: {error}")
        self.suspended = True
        # In order it would look like a peer that has said all and leaves.
        self.side.close(abort=True)
        self._lost_at = self.world.now
        self.world.at(self.world.now + LINGER, self._give_up, self.moves, error)
        self.keep()

    def _give_up(self, moves: int, error: OSError) -> None:
        if self.is_lost and self.moves == moves:
            self.end(error)

    @abstractmethod
    def keep(self) -> None:
        """See to it that there will be another carrier."""

    def end(self, error: OSError) -> None:
        if self.error is None:
            self.world.note(f"{self.name} ends: {error}")
            self.error = error
            self.suspended = False
            if self.side is not None:
                self.side.close()

    def attach(self, side: Side, position: int) -> None:
        """After being suspended. Raises BadMessage."""
        self.session.reattach(position)
        self.use(side)

    def use(self, side: Side) -> None:
        self.world.note(f"{self.name} goes on over carrier {side.carrier.dial_id[0]}")
        before, self.side = self.side, side
        if before is not None:
            # In order it would look like a peer that has said all and leaves.
            before.close(abort=True)
        self._tail = b""
        self._bytes_heard = self._bytes_taken = self._answers = 0
        self._liveness = None
        self._lost_at = None
        self.suspended = False
        self.moves += 1
        side.on_ready = self._carrier_ready
        self.world.after(0, self.run)

    def go_on(self) -> None:
        self.suspended = False
        self.run()

    def _carrier_ready(self, side: Side) -> None:
        if side is self.side:
            self.run()

    def _look(self) -> None:
        if self.error is not None:
            return
        self.world.after(INTERVAL, self._look)
        if self.suspended or self.side is None:
            return
        if self._liveness is None:
            self._liveness = Liveness(self.world.now, 2 * self.side.out.delay)
        session = self.session
        session.acknowledge()
        verdict = self._liveness.look(
            self.world.now,
            self._bytes_heard,
            self._bytes_taken,
            self.side.unacknowledged(),
            self._answers,
            (session.aside_heard, session.aside_said),
        )
        if verdict == "ask" and not self._tail and not session.is_reset and self.side.error is None:
            self.asked += 1
            self._tail = session.ping(self._answers)
        self.run()
        if verdict == "dead" and self.can_move:
            self.fail(TimeoutError(errno.ETIMEDOUT, "the path went silent"))
