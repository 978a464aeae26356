"""Joins a session machine and a carrier: whole frames out, payload straight into the reader's buffer.

There is no task in here. Whoever sends, receives or closes moves the frames on; what one of them
could not get rid of is finished by the next.

A carrier may be lost, or be exchanged for a better one: meanwhile the driver is suspended, moves nothing, and whoever
waits in it goes on waiting. See `ntcpsock._session.moving`.
"""

from __future__ import annotations

import contextlib
import errno
from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from ntcpsock._errors import BadMessage
from ntcpsock._session.carrier import Carrier
from ntcpsock._session.frames import HEADER_LENGTH, LARGEST_PAYLOAD
from ntcpsock._session.liveness import Liveness, Verdict
from ntcpsock._session.machine import (
    WINDOW,
    Acknowledged,
    PongReceived,
    ResetReceived,
    Session,
    SignalReceived,
)

# Header and the beginning of the payload share the first TLS record (16 KiB); the rest of the
# payload goes out from where the application has it. So a full frame is sixteen full records.
FIRST_RECORD: Final = 16384
FULL_PAYLOAD: Final = LARGEST_PAYLOAD - HEADER_LENGTH
# A message of fewer bytes is probably the last for now.
SMALL: Final = 4096
# Read at once of what no reader has asked for.
AHEAD: Final = 64 * 1024


class SessionDriver:
    """machine, carrier: the two it joins; error: what ended receiving (and with it everything), or
    None; send_error: what ended sending, or None.

    window: of the machine; 0: the stream cannot move.
    suspended: whether the carrier is let alone, being lost, or about to be exchanged.
    on_lost: called with the error of a lost carrier, in whatever thread moves the frames: whether somebody will bring
    another one. on_signal: called with each word of the peer's node; on_end: called once when the stream is over;
    likewise.
    """

    def __init__(self, carrier: Carrier, received: bytes = b"", window: int = 0) -> None:
        self.machine = Session(window)
        self.carrier = carrier
        self.error: OSError | None = None
        self.send_error: OSError | None = None
        self.suspended = False
        self.on_lost: Callable[[OSError], bool] | None = None
        self.on_signal: Callable[[bytes], None] | None = None
        self.on_end: Callable[[], None] | None = None
        #: Wakes who waits for something else than the carrier: room, or another carrier.
        self.changed = trio.lowlevel.ParkingLot()
        self.receivers = 0  # tasks that want stream data
        self.heard = 0  # bytes that came by this carrier
        self.answers = 0  # to pings
        self.closed = False  # by our own application
        self.taken = 0  # bytes that the carrier has taken
        # Held by whoever puts frames on the carrier, over its waits: frames never interleave.
        self.lock = trio.Lock()
        self._early = received
        # The rest of a frame: its sender was cancelled or closed, or does not wait.
        self._tail: bytes | memoryview = b""
        self._in_frame = False
        self._header = memoryview(bytearray(HEADER_LENGTH))
        # Read before anybody asked for it; and whether the machine holds it for not taken.
        self._ahead: deque[tuple[memoryview, bool]] = deque()
        self._is_read = False  # somebody waits for the carrier
        self._liveness: Liveness | None = None

    @property
    def at_end(self) -> bool:
        """Whether the peer's FIN is what comes next to the reader."""
        return self.machine.eof_received and not self._ahead

    @property
    def has_ahead(self) -> bool:
        """Whether stream data waits here for its reader."""
        return bool(self._ahead)

    # -- receiving: never blocks -----------------------------------------------------------------

    def receive_into(self, view: memoryview) -> int:
        """Fill `view` with stream data that is here; 0 where there is none now, or ever (`error`, FIN)."""
        filled, room, machine = 0, len(view), self.machine
        if self._ahead:
            filled = self._take_ahead(view)
        try:
            while filled < room and not machine.receiving_ended and self.error is None and not self.suspended:
                remaining = machine.payload_remaining
                if remaining:
                    count = self._read(view[filled : filled + remaining])
                    if count is None:
                        break
                    machine.skip_payload(count)
                    filled += count
                    if filled < SMALL and not self._early and not self.carrier.pending():
                        break  # whoever waits for more is told; asking for it costs as much as this message
                elif not self._receive_header():
                    break
        except (OSError, BadMessage) as error:
            self.fail(error)
        return filled

    def absorb(self) -> None:
        """Handle the frames that are here, up to the first byte of stream data."""
        try:
            while not self.machine.payload_remaining and self.error is None and not self.suspended:
                if not self._receive_header():
                    break
        except (OSError, BadMessage) as error:
            self.fail(error)

    def read_ahead(self) -> None:
        """Take what is here out of the carrier although nobody reads: what the peer's end says lies behind it.

        No more than a window of it is kept; a peer that sends more waits.
        """
        machine = self.machine
        try:
            while self.error is None and not self.suspended:
                remaining = machine.payload_remaining
                if not remaining:
                    if not self._receive_header():
                        return
                    continue
                if machine.held >= WINDOW:
                    return
                view = memoryview(bytearray(min(remaining, AHEAD)))
                count = self._read(view)
                if count is None:
                    return
                machine.hold(count)
                machine.skip_payload(count)
                self._ahead.append((view[:count], True))
        except (OSError, BadMessage) as error:
            self.fail(error)

    def unread(self, data: bytes) -> None:
        """Give back stream data that its reader could not bring on."""
        self._ahead.appendleft((memoryview(data), False))

    def _take_ahead(self, view: memoryview) -> int:
        filled = 0
        while self._ahead and filled < len(view):
            data, is_held = self._ahead[0]
            count = min(len(data), len(view) - filled)
            view[filled : filled + count] = data[:count]
            filled += count
            if count == len(data):
                self._ahead.popleft()
            else:
                self._ahead[0] = data[count:], is_held
            if is_held:
                self.machine.release(count)
        return filled

    def discard(self, view: memoryview) -> int:
        """Like `receive_into` for a reader who is gone, but goes on after FIN, for the ACK of ours."""
        count = self.receive_into(view)
        if not count:
            self.absorb()
        return count

    def _receive_header(self) -> bool:
        missing, view = self.machine.header_missing, self._header
        if missing != HEADER_LENGTH:
            view = view[:missing] if missing < HEADER_LENGTH else memoryview(bytearray(missing))
        count = self._read(view)
        if count is None:
            return False
        if count == HEADER_LENGTH and self.machine.receive_data_header(view):
            return True
        event = self.machine.receive_header_part(bytes(view[:count]))
        if event is not None:
            if isinstance(event, Acknowledged):
                self._wake()
            elif isinstance(event, PongReceived):
                self.answers += 1
            elif isinstance(event, SignalReceived):
                if self.on_signal is not None:
                    self.on_signal(event.body)
            elif isinstance(event, ResetReceived):
                raise ConnectionResetError(errno.ECONNRESET, "the peer reset the stream")
        return True

    def _read(self, view: memoryview) -> int | None:
        if self._early:
            count = min(len(view), len(self._early))
            view[:count] = self._early[:count]
            self._early = self._early[count:]
            return count
        count_or_none = self.carrier.try_receive_into(view)
        if count_or_none == 0 and self.machine.eof_received and self.carrier.ended_cleanly:
            # It has said all, and wants no more.
            self.end(ConnectionResetError(errno.ECONNRESET, "the peer closed the connection"))
            return None
        if count_or_none == 0:
            # Whoever cuts the carrier must not look like a peer that has finished: only FIN ends.
            raise ConnectionResetError(errno.ECONNRESET, "the connection ended without the peer's FIN")
        if count_or_none is not None:
            self.heard += count_or_none
        return count_or_none

    def fail(self, error: OSError | BadMessage) -> None:
        """The carrier is of no use any more: remember why, close it, wake who waits on it. Or only suspend the
        stream, where it is to go on over another one."""
        if self.error is not None or self.suspended:
            return
        if isinstance(error, OSError) and self.can_move and self.on_lost is not None:
            self.suspend()
            if self.on_lost(error):
                self.carrier.close()
                return
            self.suspended = False
        self.end(error)

    @property
    def can_move(self) -> bool:
        """Whether the loss of the carrier is not the end."""
        machine = self.machine
        is_over = machine.is_reset or (machine.eof_acknowledged and machine.eof_received)
        return self.error is None and machine.window > 0 and not is_over

    def end(self, error: OSError | BadMessage) -> None:
        """The stream is over."""
        if self.error is not None:
            return
        self.suspended = False
        if isinstance(error, BadMessage):
            self.error = ConnectionAbortedError(errno.ECONNABORTED, f"the peer broke the protocol: {error}")
            self.error.__cause__ = error
            self.abort()
        else:
            self.error = error
            self.carrier.close()
        self.send_error = self.send_error or self.error
        self._tell_end()

    def _tell_end(self) -> None:
        self._wake()
        on_end, self.on_end, self.on_lost = self.on_end, None, None
        if on_end is not None:
            on_end()

    def _wake(self) -> None:
        """Outside trio, in the pump's thread, nobody waits."""
        if self.changed:
            self.changed.unpark_all()

    # -- moving ----------------------------------------------------------------------------------

    def suspend(self) -> None:
        """Leave the carrier alone from now on, at any byte: what is half sent will be sent again. Waiters wait on."""
        if not self.suspended and self.error is None:
            self.suspended = True
            self.carrier.interrupt()

    def go_on(self) -> None:
        """After `suspend`, with the same carrier."""
        self.suspended = False
        self._wake()

    def attach(self, carrier: Carrier, peer_position: int) -> None:
        """After `suspend`: go on over `carrier`, whose other end has everything before `peer_position`. The carrier
        before is closed. Raises BadMessage where that cannot be."""
        self.machine.reattach(peer_position)
        before, self.carrier = self.carrier, carrier
        before.close()
        self._early, self._tail = b"", b""
        self._in_frame = False
        self.taken = self.heard = self.answers = 0
        self.send_error = self._liveness = None
        self.suspended = False
        self._wake()

    def look(self, now: float, rtt: float = 0.0) -> Verdict:
        """Whether the carrier still lives: see `Liveness`. Says what is due, asks, and at "dead" gives it up."""
        if self.suspended or self.error is not None or self.closed:
            return "idle"
        if self._liveness is None:
            self._liveness = Liveness(now, rtt)
        self.machine.acknowledge()
        verdict = self._liveness.look(
            now, self.heard, self.taken, self.carrier.unacknowledged(), self.answers
        )
        if verdict == "dead" and not self.can_move:
            return "idle"  # its kernel will tell, as it does without us
        if verdict == "ask":
            self._ask()
        self.flush_nowait()
        if verdict == "dead":
            self.fail(TimeoutError(errno.ETIMEDOUT, "the path went silent"))
        return verdict

    def _ask(self) -> None:
        if self._in_frame or self._tail or self.carrier.has_unsent or self.send_error is not None:
            return  # it takes nothing now: that it does later is a sign as good as an answer
        with contextlib.suppress(OSError, trio.ClosedResourceError, RuntimeError):
            ping = self.machine.ping(self.answers)
            self._tail = ping[self._try_send(ping) :]

    # -- sending: under the lock -----------------------------------------------------------------

    async def acquire(self) -> None:
        """Take the lock; no checkpoint where it is free."""
        try:
            self.lock.acquire_nowait()
        except trio.WouldBlock:
            await self.lock.acquire()

    async def send_data(self, payload: memoryview) -> None:
        """One DATA frame (up to FULL_PAYLOAD bytes), after whatever waits."""
        await self._wait_turn(len(payload))
        header = self.machine.send_data(len(payload))
        self.machine.keep(payload)
        await self._send_frame(header, payload)

    async def _wait_turn(self, length: int) -> None:
        """Until a new frame may go out, behind whatever waits. Without a carrier its sender waits too: what is kept
        for another one is bounded."""
        while True:
            while self.suspended:
                await self.changed.park()
            if self.send_error is not None:
                raise self.send_error
            await self.finish()
            if self.machine.room < length:
                await self._wait_room(length)
            if self._uses(self.carrier) and not self._tail and not self.machine.is_behind:
                return  # nothing has happened to the carrier while we waited

    async def _wait_room(self, length: int) -> None:
        """Until the peer has confirmed enough. Where nobody else reads, its word is looked for here."""
        while self.machine.room < length:
            if self.send_error is not None:
                raise self.send_error
            if self.machine.is_reset:
                raise ConnectionResetError(errno.ECONNRESET, "the stream was reset")
            if self.receivers:
                self.absorb()
            else:
                self.read_ahead()
            if self.machine.room < length:
                await self._wait_readable()

    async def wait_sendable(self) -> None:
        """Until a little more may be sent."""
        await self._wait_turn(1)
        await self._wait_writable(self.carrier)

    async def send_eof(self) -> None:
        await self._wait_turn(0)
        await self._send_frame(self.machine.send_eof(), memoryview(b""))
        await self.finish()

    async def finish(self) -> None:
        """Send what is left of an interrupted frame, control frames, and what the carrier holds."""
        while not self.suspended:
            if self._tail:
                tail, self._tail = self._tail, b""
                await self._push(tail, memoryview(b""))
            elif again := self.machine.next_again():
                await self._push(again, memoryview(b""))
            elif self.machine.has_control:
                await self._push(self.machine.control_to_send(), memoryview(b""))
            elif self.carrier.has_unsent:
                self._try_send(b"")
                if self._uses(self.carrier) and self.carrier.has_unsent:
                    await self._wait_writable(self.carrier)
            else:
                return

    async def _send_frame(self, header: bytes, payload: memoryview) -> None:
        split = FIRST_RECORD - len(header)
        await self._push(b"".join((header, payload[:split])), payload[split:])

    async def _push(self, first: bytes | memoryview, rest: memoryview) -> None:
        """Put `first` and `rest` on the carrier; what an exception leaves over becomes the tail."""
        views = [memoryview(first), rest]
        carrier = self.carrier
        self._in_frame = True
        try:
            for index, view in enumerate(views):
                while view and self._uses(carrier):
                    view = view[self._try_send(view) :]
                    views[index] = view
                    if view:
                        await self._wait_writable(carrier)
        except OSError:
            raise  # broken for good: nothing to finish later
        except BaseException:
            if carrier is self.carrier:
                self._tail = b"".join(views)
            raise
        else:
            if carrier is self.carrier:
                # Left over where it was suspended; another carrier gets the frame as a whole.
                self._tail = b"".join(views)
        finally:
            if carrier is self.carrier:
                self._in_frame = False

    def _uses(self, carrier: Carrier) -> bool:
        return carrier is self.carrier and not self.suspended

    async def _wait_writable(self, carrier: Carrier) -> None:
        """Until `carrier` takes more, or is not the one any more."""
        try:
            await carrier.wait_writable()
        except trio.ClosedResourceError:
            if self._uses(carrier):
                raise

    def flush_nowait(self) -> None:
        """Send control frames as far as that goes without waiting and without cutting into a frame."""
        if not self.machine.has_control or self._in_frame or self._tail or self.send_error is not None:
            return
        if self.suspended or self.machine.is_behind:
            return
        try:
            if self.carrier.has_unsent:
                self._try_send(b"")
            if not self.carrier.has_unsent:
                control = self.machine.control_to_send()
                self._tail = control[self._try_send(control) :]
        except (OSError, trio.ClosedResourceError):
            pass  # the next sender raises it

    # -- sending without waiting: for one caller who has the driver to himself ---------------------

    @property
    def has_unfinished(self) -> bool:
        """Whether a frame or the carrier waits for room."""
        return bool(self._tail) or self.carrier.has_unsent or self.machine.is_behind

    def finish_nowait(self) -> bool:
        """As `finish`; False where the carrier takes no more for now."""
        while not self.suspended:
            if self._tail:
                self._tail = self._tail[self._try_send(self._tail) :]
                if self._tail:
                    return False
            elif self.machine.is_behind:
                self._tail = self.machine.next_again()
            elif self.machine.has_control:
                self._tail = self.machine.control_to_send()
            elif self.carrier.has_unsent:
                self._try_send(b"")
                if self.carrier.has_unsent:
                    return False
            else:
                return True
        return False

    def send_nowait(self, frame: memoryview) -> bool:
        """One DATA frame: room for its header, then up to FULL_PAYLOAD bytes, no more than the machine's `room`. After
        `finish_nowait` was True.

        False where the carrier took a part only: then `frame` is the driver's until `finish_nowait` is True.
        """
        frame[:HEADER_LENGTH] = self.machine.send_data(len(frame) - HEADER_LENGTH)
        self.machine.keep(frame[HEADER_LENGTH:])
        taken = self._try_send(frame)
        if taken < len(frame):
            self._tail = frame[taken:]
        return not self.has_unfinished

    def send_eof_nowait(self) -> bool:
        """FIN, as far as it goes now; see `finish_nowait`."""
        if self.finish_nowait():
            self._tail = self.machine.send_eof()
        elif self.suspended:
            self.machine.send_eof()  # kept by the machine for the next carrier
        else:
            # Behind what waits: a frame boundary is where the tail ends.
            self._tail = bytes(self._tail) + self.machine.send_eof()
        return self.finish_nowait()

    def _try_send(self, data: bytes | memoryview) -> int:
        if self.send_error is not None:
            raise self.send_error
        if self.suspended:
            return 0
        try:
            count = self.carrier.try_send(data)
        except OSError as error:
            if self.can_move and self.on_lost is not None:
                # What came before is good, and the peer may have closed after it.
                self.read_ahead()
                self.fail(error)
                if not self._uses(self.carrier):
                    return 0
            # What the peer sent before may still be there to be read: the carrier stays.
            self.send_error = error
            raise
        self.taken += count
        return count

    # -- waiting and ending ----------------------------------------------------------------------

    async def wait_incoming(self) -> None:
        """Until there is something to read; meanwhile send what waits, if nobody else is at it."""
        if self.suspended or not (self.machine.has_control or self.has_unfinished) or self.lock.locked():
            await self._wait_readable()
            return
        interrupted: trio.ClosedResourceError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._finish_quietly)
            try:
                await self._wait_readable()
            except trio.ClosedResourceError as error:
                interrupted = error
            nursery.cancel_scope.cancel()
        if interrupted is not None:
            raise interrupted

    async def _wait_readable(self) -> None:
        """Until the carrier may have something, or something else has changed. One task waits for the carrier itself,
        and wakes the others."""
        carrier = self.carrier
        if self.suspended or self._is_read:
            if self.error is None:
                await self.changed.park()
            return
        self._is_read = True
        try:
            await carrier.wait_readable()
        except trio.ClosedResourceError:
            if self._uses(carrier):
                raise
        finally:
            self._is_read = False
            self._wake()

    async def _finish_quietly(self) -> None:
        try:
            async with self.lock:
                await self.finish()
        except (OSError, trio.ClosedResourceError):
            pass  # the next sender raises it

    def close_to_others(self) -> None:
        """Our own application closes: whoever waits in here hears of it."""
        self.closed = True
        if not self.suspended:
            self.carrier.interrupt()
        self._wake()

    def leave(self) -> None:
        """Close the carrier. A peer that has not got all, or has more to say, learns that nobody is here any more."""
        machine = self.machine
        if self.error is None and not self.suspended and not machine.eof_sent and not machine.is_reset:
            frame = machine.reset()
            if not self._in_frame and not self._tail and self.send_error is None:
                with contextlib.suppress(OSError, trio.ClosedResourceError):
                    self._try_send(frame)
        self.carrier.close()
        self.end(ConnectionAbortedError(errno.ECONNABORTED, "this end was closed"))

    def abort(self, code: int = 0) -> None:
        """RESET, if it can go out whole and at once, and the carrier's own reset. Never blocks."""
        if not self.machine.is_reset:
            frame = self.machine.reset(code)
            if not self._in_frame and not self._tail and self.send_error is None and not self.suspended:
                with contextlib.suppress(OSError, trio.ClosedResourceError):
                    self._try_send(frame)  # where it fails, the carrier's reset says the same
        self.carrier.close(abort=True)
        self._tell_end()


class Conflict:
    """Lets one task in at a time; the second gets BusyResourceError instead of a queue."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.busy = False

    def __enter__(self) -> None:
        if self.busy:
            raise trio.BusyResourceError(self._text)
        self.busy = True

    def __exit__(self, *_: object) -> None:
        self.busy = False


class Translated:
    """The errors of carriers as those of trio's streams. A class, because it stands in the hot path."""

    def __init__(self, driver: SessionDriver) -> None:
        self._driver = driver

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, (OSError, trio.ClosedResourceError)):
            return
        # A waiter that `fail` woke up finds the reason in the driver.
        reason = error if isinstance(error, OSError) else self._driver.send_error
        if self._driver.closed or reason is None:
            raise trio.ClosedResourceError("this stream was closed") from None
        raise trio.BrokenResourceError(str(reason)) from reason


class Sending:
    """The right to put frames on the carrier, with errors translated."""

    def __init__(self, driver: SessionDriver) -> None:
        self._driver = driver
        self._translated = Translated(driver)

    async def __aenter__(self) -> None:
        await self._driver.acquire()
        if self._driver.closed:  # while we waited
            self._driver.lock.release()
            raise trio.ClosedResourceError("this stream was closed")

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._driver.lock.release()
        self._translated.__exit__(kind, error, traceback)
