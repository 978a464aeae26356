"""Joins a session machine and a carrier: whole frames out, payload straight into the reader's buffer.

There is no task in here. Whoever sends, receives or closes moves the frames on; what one of them
could not get rid of is finished by the next.

A carrier may be lost, or be exchanged for a better one: meanwhile the driver is suspended, moves nothing, and whoever
waits in it goes on waiting. `ntcpsock._traversal.moving` brings the next one.
"""

from __future__ import annotations

import contextlib
import errno

import trio

from ntcpsock._session.carrier import Carrier
from ntcpsock._session.liveness import Liveness, Verdict
from ntcpsock._session.sending import FULL_PAYLOAD, SendingDriver

__all__ = ["FULL_PAYLOAD", "SessionDriver"]


class SessionDriver(SendingDriver):
    """Attributes and hooks: see `DriverLife`."""

    def attach(self, carrier: Carrier, peer_position: int) -> None:
        """After `suspend`: go on over `carrier`, whose other end has everything before `peer_position`. The carrier
        before is closed. Raises BadMessage where that cannot be."""
        self.machine.reattach(peer_position)
        before, self.carrier = self.carrier, carrier
        before.close(abort=True)  # in order it might look like the end of the stream: see `fail`
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
            now,
            self.heard,
            self.taken,
            self.carrier.unacknowledged(),
            self.answers,
            (self.machine.aside_heard, self.machine.aside_said),
        )
        if verdict == "dead" and not self.can_move:
            return "idle"  # its kernel will tell, as it does without us
        if verdict == "ask":
            self._ask()
        self.flush_nowait()
        if verdict == "dead":
            self.fail(TimeoutError(errno.ETIMEDOUT, "the path went silent"))
        return verdict

    @property
    def is_silent(self) -> bool:
        """Whether the carrier seems to be lost, though that is not certain yet."""
        is_used = not self.suspended and self.error is None
        return is_used and self._liveness is not None and self._liveness.silent

    @property
    def silence(self) -> float | None:
        """Seconds without a sign of life when somebody looked at the carrier last; None where nobody has."""
        return None if self._liveness is None else self._liveness.silence

    def _ask(self) -> None:
        if self._in_frame or self._tail or self.carrier.has_unsent or self.send_error is not None:
            return  # it takes nothing now: that it does later is a sign as good as an answer
        with contextlib.suppress(OSError, trio.ClosedResourceError, RuntimeError):
            ping = self.machine.ping(self.answers)
            self._tail = ping[self._try_send(ping) :]

    async def wait_incoming(self) -> None:
        """Until there is something to read; meanwhile send what waits, if nobody else is at it."""
        if self.suspended or not (self.machine.has_control or self.has_unfinished) or self.lock.locked():
            await self._wait_readable()
            return
        interrupted: trio.ClosedResourceError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.catch_up)
            try:
                await self._wait_readable()
            except trio.ClosedResourceError as error:
                interrupted = error
            nursery.cancel_scope.cancel()
        if interrupted is not None:
            raise interrupted

    async def catch_up(self) -> None:
        """After `attach`, where perhaps nobody sends or receives: what the carrier before has lost goes out."""
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
