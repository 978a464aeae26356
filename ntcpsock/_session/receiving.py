"""A session's driver, receiving: payload goes straight into the reader's buffer, and control frames to the machine."""

from __future__ import annotations

import errno
from typing import Final

import trio

from ntcpsock._errors import BadMessage
from ntcpsock._session.driver_life import DriverLife
from ntcpsock._session.frames import HEADER_LENGTH
from ntcpsock._session.machine import WINDOW, Acknowledged, PongReceived, ResetReceived, SignalReceived

# A message of fewer bytes is probably the last for now.
SMALL: Final = 4096
# Read at once of what no reader has asked for.
AHEAD: Final = 64 * 1024


class ReceivingDriver(DriverLife):
    """All but `_wait_readable` never blocks."""

    @property
    def at_end(self) -> bool:
        """Whether the peer's FIN is what comes next to the reader."""
        return self.machine.eof_received and not self._ahead

    @property
    def has_ahead(self) -> bool:
        """Whether stream data waits here for its reader."""
        return bool(self._ahead)

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
        self._ahead.insert(0, (memoryview(data), False))

    def _take_ahead(self, view: memoryview) -> int:
        filled = 0
        while self._ahead and filled < len(view):
            data, is_held = self._ahead[0]
            count = min(len(data), len(view) - filled)
            view[filled : filled + count] = data[:count]
            filled += count
            if count == len(data):
                del self._ahead[0]
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

    async def _wait_readable(self) -> None:
        """Until the carrier may have something, or something else has changed. One task waits for the carrier itself,
        and wakes the others."""
        carrier = self.carrier
        if self.suspended or self._is_read:
            if self.error is None:
                await self.changed.park()
            return
        self._is_read = True
        suspensions = self.suspensions
        try:
            await carrier.wait_readable()
        except trio.ClosedResourceError:
            # A suspension that is over already has woken us, too.
            if self._uses(carrier) and suspensions == self.suspensions:
                raise
        finally:
            self._is_read = False
            self._wake()
