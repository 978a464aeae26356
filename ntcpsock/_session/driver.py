"""Joins a session machine and a carrier: whole frames out, payload straight into the reader's buffer.

There is no task in here. Whoever sends, receives or closes moves the frames on; what one of them
could not get rid of is finished by the next.
"""

from __future__ import annotations

import contextlib
import errno
from typing import Final

import trio

from ntcpsock._errors import BadMessage
from ntcpsock._session.carrier import Carrier
from ntcpsock._session.frames import HEADER_LENGTH, LARGEST_PAYLOAD
from ntcpsock._session.machine import ResetReceived, Session

# Header and the beginning of the payload share the first TLS record (16 KiB); the rest of the
# payload goes out from where the application has it. So a full frame is sixteen full records.
FIRST_RECORD: Final = 16384
FULL_PAYLOAD: Final = LARGEST_PAYLOAD - HEADER_LENGTH
# A message of fewer bytes is probably the last for now.
SMALL: Final = 4096


class SessionDriver:
    """machine, carrier: the two it joins; error: what ended receiving (and with it everything), or
    None; send_error: what ended sending, or None."""

    def __init__(self, carrier: Carrier, received: bytes = b"") -> None:
        self.machine = Session()
        self.carrier = carrier
        self.error: OSError | None = None
        self.send_error: OSError | None = None
        self.closed = False  # by our own application
        self.taken = 0  # bytes that the carrier has taken
        # Held by whoever puts frames on the carrier, over its waits: frames never interleave.
        self.lock = trio.Lock()
        self._early = received
        # The rest of a frame: its sender was cancelled or closed, or does not wait.
        self._tail: bytes | memoryview = b""
        self._in_frame = False
        self._header = memoryview(bytearray(HEADER_LENGTH))

    # -- receiving: never blocks -----------------------------------------------------------------

    def receive_into(self, view: memoryview) -> int:
        """Fill `view` with stream data that is here; 0 where there is none now, or ever (`error`, FIN)."""
        filled, room, machine = 0, len(view), self.machine
        try:
            while filled < room and not machine.receiving_ended and self.error is None:
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
            while not self.machine.payload_remaining and self.error is None:
                if not self._receive_header():
                    break
        except (OSError, BadMessage) as error:
            self.fail(error)

    def discard(self, view: memoryview) -> int:
        """Like `receive_into` for a reader who is gone, but goes on after FIN, for the ACK of ours."""
        count = self.receive_into(view)
        if not count:
            self.absorb()
        return count

    def _receive_header(self) -> bool:
        missing = self.machine.header_missing
        count = self._read(self._header if missing == HEADER_LENGTH else self._header[:missing])
        if count is None:
            return False
        if count == HEADER_LENGTH and self.machine.receive_data_header(self._header):
            return True
        event = self.machine.receive_header_part(bytes(self._header[:count]))
        if isinstance(event, ResetReceived):
            raise ConnectionResetError(errno.ECONNRESET, "the peer reset the stream")
        return True

    def _read(self, view: memoryview) -> int | None:
        if self._early:
            count = min(len(view), len(self._early))
            view[:count] = self._early[:count]
            self._early = self._early[count:]
            return count
        count_or_none = self.carrier.try_receive_into(view)
        if count_or_none == 0:
            # Whoever cuts the carrier must not look like a peer that has finished: only FIN ends.
            raise ConnectionResetError(errno.ECONNRESET, "the connection ended without the peer's FIN")
        return count_or_none

    def fail(self, error: OSError | BadMessage) -> None:
        """The carrier is of no use any more: remember why, close it, wake who waits on it."""
        if self.error is not None:
            return
        if isinstance(error, BadMessage):
            self.error = ConnectionAbortedError(errno.ECONNABORTED, f"the peer broke the protocol: {error}")
            self.error.__cause__ = error
            self.abort()
        else:
            self.error = error
            self.carrier.close()
        self.send_error = self.send_error or self.error

    # -- sending: under the lock -----------------------------------------------------------------

    async def acquire(self) -> None:
        """Take the lock; no checkpoint where it is free."""
        try:
            self.lock.acquire_nowait()
        except trio.WouldBlock:
            await self.lock.acquire()

    async def send_data(self, payload: memoryview) -> None:
        """One DATA frame (up to FULL_PAYLOAD bytes), after whatever waits."""
        await self.finish()
        await self._send_frame(self.machine.send_data(len(payload)), payload)

    async def send_eof(self) -> None:
        await self.finish()
        await self._send_frame(self.machine.send_eof(), memoryview(b""))
        await self.finish()

    async def finish(self) -> None:
        """Send what is left of an interrupted frame, control frames, and what the carrier holds."""
        while True:
            if self._tail:
                tail, self._tail = self._tail, b""
                await self._push(tail, memoryview(b""))
            elif self.machine.has_control:
                await self._push(self.machine.control_to_send(), memoryview(b""))
            elif self.carrier.has_unsent:
                self._try_send(b"")
                if self.carrier.has_unsent:
                    await self.carrier.wait_writable()
            else:
                return

    async def _send_frame(self, header: bytes, payload: memoryview) -> None:
        split = FIRST_RECORD - len(header)
        await self._push(b"".join((header, payload[:split])), payload[split:])

    async def _push(self, first: bytes | memoryview, rest: memoryview) -> None:
        """Put `first` and `rest` on the carrier; what an exception leaves over becomes the tail."""
        views = [memoryview(first), rest]
        self._in_frame = True
        try:
            for index, view in enumerate(views):
                while view:
                    view = view[self._try_send(view) :]
                    views[index] = view
                    if view:
                        await self.carrier.wait_writable()
        except OSError:
            raise  # broken for good: nothing to finish later
        except BaseException:
            self._tail = b"".join(views)
            raise
        finally:
            self._in_frame = False

    def flush_nowait(self) -> None:
        """Send control frames as far as that goes without waiting and without cutting into a frame."""
        if not self.machine.has_control or self._in_frame or self._tail or self.send_error is not None:
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
        return bool(self._tail) or self.carrier.has_unsent

    def finish_nowait(self) -> bool:
        """As `finish`; False where the carrier takes no more for now."""
        while True:
            if self._tail:
                self._tail = self._tail[self._try_send(self._tail) :]
                if self._tail:
                    return False
            elif self.machine.has_control:
                self._tail = self.machine.control_to_send()
            elif self.carrier.has_unsent:
                self._try_send(b"")
                if self.carrier.has_unsent:
                    return False
            else:
                return True

    def send_nowait(self, frame: memoryview) -> bool:
        """One DATA frame: room for its header, then up to FULL_PAYLOAD bytes. After `finish_nowait` was True.

        False where the carrier took a part only: then `frame` is the driver's until `finish_nowait` is True.
        """
        frame[:HEADER_LENGTH] = self.machine.send_data(len(frame) - HEADER_LENGTH)
        taken = self._try_send(frame)
        if taken < len(frame):
            self._tail = frame[taken:]
        return not self.has_unfinished

    def send_eof_nowait(self) -> bool:
        """FIN, as far as it goes now; see `finish_nowait`."""
        if self.finish_nowait():
            self._tail = self.machine.send_eof()
        else:
            # Behind what waits: a frame boundary is where the tail ends.
            self._tail = bytes(self._tail) + self.machine.send_eof()
        return self.finish_nowait()

    def _try_send(self, data: bytes | memoryview) -> int:
        if self.send_error is not None:
            raise self.send_error
        try:
            count = self.carrier.try_send(data)
        except OSError as error:
            # What the peer sent before may still be there to be read: the carrier stays.
            self.send_error = error
            raise
        self.taken += count
        return count

    # -- waiting and ending ----------------------------------------------------------------------

    async def wait_incoming(self) -> None:
        """Until there is something to read; meanwhile send what waits, if nobody else is at it."""
        if not (self.machine.has_control or self._tail or self.carrier.has_unsent) or self.lock.locked():
            await self.carrier.wait_readable()
            return
        interrupted: trio.ClosedResourceError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._finish_quietly)
            try:
                await self.carrier.wait_readable()
            except trio.ClosedResourceError as error:
                interrupted = error
            nursery.cancel_scope.cancel()
        if interrupted is not None:
            raise interrupted

    async def _finish_quietly(self) -> None:
        try:
            async with self.lock:
                await self.finish()
        except (OSError, trio.ClosedResourceError):
            pass  # the next sender raises it

    def abort(self, code: int = 0) -> None:
        """RESET, if it can go out whole and at once, and the carrier's own reset. Never blocks."""
        if not self.machine.is_reset:
            frame = self.machine.reset(code)
            if not self._in_frame and not self._tail and self.send_error is None:
                with contextlib.suppress(OSError, trio.ClosedResourceError):
                    self._try_send(frame)  # where it fails, the carrier's reset says the same
        self.carrier.close(abort=True)


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
