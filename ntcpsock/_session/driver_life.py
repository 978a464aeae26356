"""What a session's driver has, and how it loses its carrier: for good, or until another one comes."""

from __future__ import annotations

import contextlib
import errno
from abc import ABC, abstractmethod
from collections.abc import Callable

import trio

from ntcpsock._errors import BadMessage
from ntcpsock._session.carrier import Carrier
from ntcpsock._session.frames import HEADER_LENGTH
from ntcpsock._session.liveness import Liveness
from ntcpsock._session.machine import Session


class DriverLife(ABC):
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
        self.suspensions = 0  # so far
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
        self._ahead: list[tuple[memoryview, bool]] = []
        self._is_read = False  # somebody waits for the carrier
        self._liveness: Liveness | None = None

    @abstractmethod
    def read_ahead(self) -> None:
        """See `ntcpsock._session.receiving`."""

    @property
    def can_move(self) -> bool:
        """Whether the loss of the carrier is not the end."""
        machine = self.machine
        is_over = machine.is_reset or (machine.eof_acknowledged and machine.eof_received)
        return self.error is None and machine.window > 0 and not is_over

    def suspend(self) -> None:
        """Leave the carrier alone from now on, at any byte: what is half sent will be sent again. Waiters wait on."""
        if not self.suspended and self.error is None:
            self.suspended = True
            self.suspensions += 1
            self.carrier.interrupt()

    def go_on(self) -> None:
        """After `suspend`, with the same carrier."""
        self.suspended = False
        self._wake()

    def fail(self, error: OSError | BadMessage) -> None:
        """The carrier is of no use any more: remember why, close it, wake who waits on it. Or only suspend the
        stream, where it is to go on over another one."""
        if self.error is not None or self.suspended:
            return
        if isinstance(error, OSError) and self.can_move and self.on_lost is not None:
            self.suspend()
            if self.on_lost(error):
                # Closed in order it would look, to a peer that has our FIN, like one who has said all and leaves.
                self.carrier.close(abort=True)
                return
            self.suspended = False
        self.end(error)

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

    def abort(self, code: int = 0) -> None:
        """RESET, if it can go out whole and at once, and the carrier's own reset. Never blocks."""
        if not self.machine.is_reset:
            frame = self.machine.reset(code)
            if not self._in_frame and not self._tail and self.send_error is None and not self.suspended:
                with contextlib.suppress(OSError, trio.ClosedResourceError):
                    self._try_send(frame)  # where it fails, the carrier's reset says the same
        self.carrier.close(abort=True)
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

    def _uses(self, carrier: Carrier) -> bool:
        return carrier is self.carrier and not self.suspended

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
