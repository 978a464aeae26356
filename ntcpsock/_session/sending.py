"""A session's driver, sending: whole frames, one after the other, whoever brings them."""

from __future__ import annotations

import errno
from typing import Final

import trio

from ntcpsock._session.carrier import Carrier
from ntcpsock._session.frames import HEADER_LENGTH, LARGEST_PAYLOAD
from ntcpsock._session.receiving import ReceivingDriver
from ntcpsock._session.send_buffer import Recycle

# Header and the beginning of the payload share the first TLS record (16 KiB); the rest of the
# payload goes out from where the application has it. So a full frame is sixteen full records.
FIRST_RECORD: Final = 16384
FULL_PAYLOAD: Final = LARGEST_PAYLOAD - HEADER_LENGTH


class SendingDriver(ReceivingDriver):
    """What waits is for whoever holds the lock."""

    _spare: Recycle | None = None

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
        """Until the peer has confirmed enough. Where nobody else reads, its word is looked for here.

        Not while something is to be sent again: it would wait for that.
        """
        while self.machine.room < length and self._uses(self.carrier) and not self.machine.is_behind:
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
        """Send what is left of an interrupted frame, control frames, what is to be sent again, and what the carrier
        holds. Acknowledgements first: the peer, who may have a faster way, waits for them."""
        while not self.suspended:
            if self._tail:
                tail, self._tail = self._tail, b""
                await self._push(tail, memoryview(b""))
            elif self.machine.has_control:
                await self._push(self.machine.control_to_send(), memoryview(b""))
            elif again := self.machine.next_again():
                await self._push(again, memoryview(b""))
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

    async def _wait_writable(self, carrier: Carrier) -> None:
        """Until `carrier` takes more, or is not the one any more."""
        suspensions = self.suspensions
        try:
            await carrier.wait_writable()
        except trio.ClosedResourceError:
            if self._uses(carrier) and suspensions == self.suspensions:
                raise

    def flush_nowait(self) -> None:
        """Send control frames as far as that goes without waiting and without cutting into a frame."""
        if not self.machine.has_control or self._in_frame or self._tail or self.send_error is not None:
            return
        if self.suspended:
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
                self._tail = b""  # an empty part would keep the whole buffer
            elif self.machine.has_control:
                self._tail = self.machine.control_to_send()
            elif self.machine.is_behind:
                self._tail = self.machine.next_again()
            elif self.carrier.has_unsent:
                self._try_send(b"")
                if self.carrier.has_unsent:
                    return False
            else:
                return True
        return False

    def send_nowait(self, frame: memoryview, recycle: Recycle | None = None) -> bool:
        """One DATA frame: room for its header, then up to FULL_PAYLOAD bytes, no more than the machine's `room`. After
        `finish_nowait` was True.

        False where the carrier took a part only: then `frame` is the driver's until `finish_nowait` is True. With
        `recycle`, where there is a window: its bytearray is the driver's until `recycle` gets it, if it ever does.
        """
        frame[:HEADER_LENGTH] = self.machine.send_data(len(frame) - HEADER_LENGTH)
        if recycle is None:
            self.machine.keep(frame[HEADER_LENGTH:])
        else:
            self._spare = recycle
            self.machine.adopt(frame[HEADER_LENGTH:], self._recycle)
        taken = self._try_send(frame)
        if taken < len(frame):
            self._tail = frame[taken:]
        return not self.has_unfinished

    def _recycle(self, buffer: bytearray) -> None:
        """Unless the rest of a frame is still to be sent from there: a peer may confirm what it has not got, and would
        be sent what others write there."""
        is_used = isinstance(self._tail, memoryview) and self._tail.obj is buffer
        if self._spare is not None and not is_used:
            self._spare(buffer)

    def send_eof_nowait(self) -> bool:
        """FIN, as far as it goes now; see `finish_nowait`."""
        if self.finish_nowait():
            self._tail = self.machine.send_eof()
        else:
            # Behind what waits: a frame boundary is where the tail ends. Another carrier starts without the tail, and
            # gets FIN from the machine; where it comes to none the stream goes on with this one.
            self._tail = bytes(self._tail) + self.machine.send_eof()
        return self.finish_nowait()
