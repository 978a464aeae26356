"""One connection in the pump's own thread: both directions, without a task and without waiting.

A link is told what its two descriptors are ready for, moves what can be moved, and says what it waits for
next. Its buffers belong to the loop while nothing is stuck in them, so an idle connection has none.

The same things happen as in `ntcpsock._pump.Pump`, frame by frame instead of through the stream's tasks.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

import trio

from ntcpsock._errors import BadMessage
from ntcpsock._pump import LAST_BYTES, LAST_BYTES_PAUSE, probe
from ntcpsock._session.driver import FULL_PAYLOAD, SessionDriver
from ntcpsock._session.frames import HEADER_LENGTH
from ntcpsock._session.tls import Carrier

# A frame that fills a buffer is sixteen full TLS records.
BUFFER: Final = HEADER_LENGTH + FULL_PAYLOAD
# A buffer that is so full is kept as it is until the peer has its bytes; what is in others is copied, so that what is
# kept takes no more than a third more room than it has bytes.
NEARLY_FULL: Final = BUFFER * 3 // 4

IN: Final = getattr(select, "EPOLLIN", 1)
OUT: Final = getattr(select, "EPOLLOUT", 4)
FAILED: Final = getattr(select, "EPOLLERR", 8) | getattr(select, "EPOLLHUP", 16)


class Host(Protocol):
    """What a link needs of the loop that it runs in."""

    def watch(self, descriptor: int, before: int | None, wanted: int | None) -> None:
        """Change what is waited for; None is nothing at all, 0 only failures."""
        ...

    def again(self, link: Link) -> None:
        """Call `link.go_on` soon: there is more to do, of which the kernel does not know."""
        ...

    def stir(self, link: Link) -> None:
        """Call `link.look` every now and then, until it says that there is no need any more."""
        ...

    def take(self) -> memoryview: ...
    def give_back(self, buffer: memoryview) -> None: ...
    def recycle(self, buffer: bytearray) -> None:
        """`give_back` for what is in the buffer, in any thread."""
        ...


class Link:
    """All methods are called in the loop's thread. `on_end` is called once, with no descriptor watched any more.

    left: it has let go of a stream that goes on: its carrier was lost, or is to be exchanged.
    """

    def __init__(
        self,
        hop: socket.socket,
        driver: SessionDriver,
        carrier: Carrier,
        on_end: Callable[[], None],
        rtt: float = 0.0,
    ) -> None:
        self.hop = hop
        self.rtt = rtt
        self.driver = driver
        self.hop_descriptor = hop.fileno()
        self.carrier_descriptor = carrier.socket.fileno()
        self.ended = False
        self.left = False
        self.clean = False
        self.finishing = False
        self.finish_at = 0.0
        # Bytes that are taken at once; small ones bound what is under way (see `ntcpsock._forwarding`).
        self.outward_step = FULL_PAYLOAD
        self.inward_step = BUFFER
        self._carrier = carrier
        self._host: Host | None = None
        self._on_end = on_end
        self._hop_watched: int | None = None
        self._carrier_watched: int | None = None
        self._reading = not driver.machine.eof_sent  # the application has not ended its direction
        self._receiving = True  # the peer has not ended its direction
        self._blocked = driver.has_unfinished  # the carrier takes no more
        self._stirred = False  # the loop looks at it
        self._shut = False  # our FIN is out on the hop
        self._lost = False  # the carrier ended after the peer's FIN
        self._keep_hop = False
        self._last_bytes = LAST_BYTES
        self._stuck_out: memoryview | None = None  # the buffer in which the driver's unsent frame lies
        self._stuck_in: memoryview | None = None
        self._pending: memoryview | None = None  # what the application has not taken, within `_stuck_in`

    # -- what the loop calls

    def attach(self, host: Host) -> None:
        if not self.ended:
            self._host = host
            self.go_on()

    def on_hop(self, mask: int) -> None:
        """The application's side is ready for `mask`."""
        if mask & FAILED and not (self._reading and not self._blocked and self._has_room):
            # A reset while nobody reads. After our own FIN it is no news: both may have ended in order.
            if not self._shut:
                self.end(clean=False)
            self._settle()
            return
        if mask & (IN | FAILED):
            self._outward()
        if mask & OUT and not self.ended:
            self._inward()
        self._settle()

    def on_carrier(self, mask: int) -> None:
        """The peer's side is ready for `mask`."""
        if mask & FAILED:
            self._carrier.note_error()
        if mask & (IN | FAILED):
            self._inward()
        if mask & (OUT | FAILED) and self._blocked and not self.ended:
            self._outward()
        self._settle()

    def go_on(self) -> None:
        """Try both directions."""
        if not self.ended and self._host is not None:
            self._inward()
            if not self.ended:
                self._outward()
            self._settle()

    def finish(self, keep_hop: bool, now: float) -> None:
        """As `Pump.finish`. The loop calls `tick` from now on."""
        if self.ended:
            return
        self.finishing = True
        self.finish_at = now + LAST_BYTES_PAUSE
        self._keep_hop = keep_hop
        self._drop_pending()
        if self._receiving:
            self._end_inward()
        self._settle()

    def speak(self) -> None:
        """Send what the node has to tell the peer's."""
        self.driver.flush_nowait()
        self._blocked = self.driver.has_unfinished
        if not self._leave_if_lost():
            self._settle()

    def leave(self) -> None:
        """Let go of both descriptors, and of nothing else: what the application has not taken goes back."""
        if self.ended:
            return
        self.left = True
        if self._pending is not None:
            self.driver.unread(bytes(self._pending))
        self.end(clean=False)

    def look(self, now: float) -> bool:
        """Whether the carrier still lives; and whether to look again."""
        if self.ended:
            return False
        if self._pending is not None and self.driver.machine.window:
            self.driver.read_ahead()  # the peer may have answered behind what the application does not take
        verdict = self.driver.look(now, self.rtt)
        self._blocked = self.driver.has_unfinished
        if not self._leave_if_lost():
            self._settle()
        self._stirred = verdict != "idle" and not self.ended
        return self._stirred

    def _leave_if_lost(self) -> bool:
        if self.driver.suspended and not self.ended:
            self.leave()
        return self.ended

    def _stir(self) -> None:
        if not self._stirred and self._host is not None:
            self._stirred = True
            self._host.stir(self)

    def tick(self, now: float) -> None:
        """While finishing: the program has written nothing more for a moment, or too much."""
        if self._blocked:
            self.finish_at = now + LAST_BYTES_PAUSE
        elif self._reading and not self.ended and (now >= self.finish_at or self._last_bytes <= 0):
            self._end_outward()
            self._settle()

    def end(self, *, clean: bool) -> None:
        """Let go of both descriptors. Not clean: one side was reset, and the other is to be."""
        if self.ended:
            return
        self.ended = True
        self.clean = clean
        host = self._host
        if host is not None:
            host.watch(self.hop_descriptor, self._hop_watched, None)
            host.watch(self.carrier_descriptor, self._carrier_watched, None)
            self._hop_watched = self._carrier_watched = None
            self._drop_pending()
            self._stuck_out = None  # still the driver's, where something is stuck in it
        self._on_end()

    # -- application -> peer

    def _outward(self) -> None:
        try:
            if self._carrier_takes() and self._reading:
                self._read_hop()
        except (OSError, trio.ClosedResourceError):
            self.end(clean=False)
        self._leave_if_lost()

    def _carrier_takes(self) -> bool:
        """Send what is stuck; whether all of it has gone."""
        driver = self.driver
        if self._blocked:
            self._blocked = not driver.finish_nowait()
            if not self._blocked and self._stuck_out is not None:
                self._give_back(self._stuck_out)
                self._stuck_out = None
        return not self._blocked

    def _read_hop(self) -> None:
        machine = self.driver.machine
        room = machine.room
        if room <= 0:
            return
        assert self._host is not None
        buffer = self._take()
        is_ours = True
        try:
            try:
                count = self.hop.recv_into(buffer[HEADER_LENGTH:], min(self.outward_step, room))
            except (BlockingIOError, InterruptedError):
                return
            if not count:
                self._end_outward()
                return
            if self.finishing:
                self._last_bytes -= count
                self.finish_at += LAST_BYTES_PAUSE
            frame, recycle = buffer[: HEADER_LENGTH + count], None
            if count >= NEARLY_FULL and machine.window:
                is_ours, recycle = False, self._host.recycle
            self._blocked = not self.driver.send_nowait(frame, recycle)
            if not self._stirred:
                self._stir()
            if self._blocked and is_ours:
                self._stuck_out, is_ours = buffer, False
        finally:
            if is_ours:
                self._give_back(buffer)

    def _end_outward(self) -> None:
        self._reading = False
        try:
            self._blocked = not self.driver.send_eof_nowait()
        except (OSError, trio.ClosedResourceError):
            self.end(clean=False)
            return
        if not self.finishing:
            probe(self.hop)

    # -- peer -> application

    def _inward(self) -> None:
        had_room = self._has_room
        try:
            if self._receiving:
                if self._application_takes():
                    self._receive()
                elif not had_room:
                    self.driver.read_ahead()
            elif not self._lost and not self.finishing:
                self._listen_on()
        except (OSError, BadMessage, trio.ClosedResourceError):
            self.end(clean=False)
        if not had_room and self._has_room and not self.ended:
            self._once_more()
        self._leave_if_lost()

    @property
    def _has_room(self) -> bool:
        return self.driver.machine.room > 0

    def _application_takes(self) -> bool:
        """Write what is pending; whether all of it has gone."""
        if self._pending is None:
            return True
        try:
            sent = self.hop.send(self._pending)
        except (BlockingIOError, InterruptedError):
            return False
        if sent < len(self._pending):
            self._pending = self._pending[sent:]
            return False
        self._drop_pending()
        return True

    def _receive(self) -> None:
        driver, buffer = self.driver, self._take()
        room = buffer if self.inward_step == BUFFER else buffer[: self.inward_step]
        count = driver.receive_into(room)
        if count:
            if not self._stirred:
                self._stir()
            self._stuck_in, self._pending = buffer, buffer[:count]
            taken = self._application_takes()
        else:
            self._give_back(buffer)
            taken = True
        if driver.machine.has_control:
            driver.flush_nowait()
            self._blocked = driver.has_unfinished
        if not taken:
            return
        if driver.at_end:
            self._end_inward()
        elif driver.error is not None and not driver.has_ahead:
            raise driver.error
        elif count == len(room) or self._carrier.pending():
            self._once_more()

    def _end_inward(self) -> None:
        self._receiving = False
        if self._keep_hop:
            return
        self._shut = True
        with suppress(OSError):  # ENOTCONN: the application has gone already
            self.hop.shutdown(socket.SHUT_WR)

    def _listen_on(self) -> None:
        """After the peer's FIN: its acknowledgements, and its reset.

        That its carrier ends is its right; the application learns of it when it writes.
        """
        driver = self.driver
        driver.absorb()
        driver.flush_nowait()
        self._blocked = driver.has_unfinished
        if driver.error is not None:
            self._lost = True
            if driver.machine.reset_code is not None:
                raise driver.error

    # -- what is waited for

    def _settle(self) -> None:
        """Say what this link waits for now, or that it is done."""
        host = self._host
        if self.ended or host is None:
            return
        if not (self._reading or self._receiving or self._blocked):
            self.end(clean=True)
            return
        has_room = self._has_room
        wanted: int | None = (IN if self._reading and not self._blocked and has_room else 0) | (
            OUT if self._pending is not None else 0
        )
        if not wanted and (self._shut or self._keep_hop):
            wanted = None  # an end of the connection would be reported for ever
        if wanted != self._hop_watched:
            host.watch(self.hop_descriptor, self._hop_watched, wanted)
            self._hop_watched = wanted
        receives = (self._pending is None or not has_room) and not self._lost and not self.finishing
        if self.driver.error is not None:
            wanted = None  # the driver has closed it
        else:
            wanted = (IN if receives else 0) | (OUT if self._blocked else 0) or None
        if wanted != self._carrier_watched:
            host.watch(self.carrier_descriptor, self._carrier_watched, wanted)
            self._carrier_watched = wanted

    # -- buffers

    def _drop_pending(self) -> None:
        self._pending = None
        if self._stuck_in is not None:
            self._give_back(self._stuck_in)
            self._stuck_in = None

    def _take(self) -> memoryview:
        assert self._host is not None
        return self._host.take()

    def _give_back(self, buffer: memoryview) -> None:
        if self._host is not None:
            self._host.give_back(buffer)

    def _once_more(self) -> None:
        assert self._host is not None
        self._host.again(self)
