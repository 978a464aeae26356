"""The stream that applications hold: trio's HalfCloseableStream over a session and its carrier."""

from __future__ import annotations

import errno
import math
import threading
from collections.abc import Callable
from typing import Final, Protocol

import trio

from ntcpsock._report import PathInfo, PeerInfo, Report
from ntcpsock._session.carrier import Carrier, WatchableCarrier
from ntcpsock._session.driver import FULL_PAYLOAD, SessionDriver
from ntcpsock._session.guards import Conflict, Sending, Translated
from ntcpsock._slim_event import SlimEvent

CLOSE_TIMEOUT: Final = 5.0  # seconds without any progress after which aclose() gives up
CLOSE_GRACE: Final = 0.1  # seconds that aclose() prefers the peer's ACK to its kernel's
LARGEST_RECEIVE_SIZE: Final = 256 * 1024


class _Scratch(threading.local):
    """One receive buffer a thread: it is filled and copied out of without a checkpoint between."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(LARGEST_RECEIVE_SIZE))


_scratch = _Scratch()


class _Progress:
    """Whether the peer or its kernel still takes what we sent: slow is no reason to give up, dead is."""

    def __init__(self, driver: SessionDriver, timeout: float) -> None:
        self._driver = driver
        self._timeout = timeout
        self.tick = timeout / 16  # seconds between two looks
        self._seen = self._look()
        self._moved = trio.current_time()

    def _look(self) -> tuple[int, int | None, int]:
        driver = self._driver
        return driver.taken, driver.carrier.unacknowledged(), driver.machine.acknowledged

    def has_stalled(self) -> bool:
        seen, now = self._look(), trio.current_time()
        if (
            seen != self._seen or self._driver.suspended
        ):  # who waits for another carrier has a deadline of its own
            self._seen, self._moved = seen, now
        return now >= self._moved + self._timeout


class Holder(Protocol):
    """Moves the frames of a stream outside its own methods."""

    async def let_go(self) -> None:
        """Suspend the stream's driver; returns when it is touched no more, at any byte."""
        ...

    def soon(self, step: Callable[[], None]) -> None:
        """Call `step` where the frames are moved, and then send what it has left to be sent."""
        ...


class NTCPStream(trio.abc.HalfCloseableStream):
    """A connection to a peer.

    peer: who is at the other end; path: how the bytes travel; report: what it took to connect;
    close_timeout: seconds without progress after which `aclose` gives up (5.0; may be set).

    Errors are trio's: ClosedResourceError after `aclose`, `reset` or, for sending, `send_eof`;
    BrokenResourceError with the OSError as `__cause__` (ConnectionResetError after the peer's reset,
    or where the connection ended without its FIN); BusyResourceError for two tasks in one direction.
    A cancelled `send_all` has sent a beginning of its data, of unknown length; the stream stays usable.

    window: bytes a direction that are kept until the peer has them, so that the stream can move to another path;
    0: it cannot.
    """

    def __init__(
        self,
        carrier: Carrier,
        *,
        peer: PeerInfo,
        path: PathInfo,
        report: Report,
        received: bytes = b"",
        window: int = 0,
    ) -> None:
        self.peer = peer
        self.path = path
        self.report = report
        self.close_timeout = CLOSE_TIMEOUT
        #: Whoever moves the frames in a thread of his own lets go of them when asked to.
        self.holder: Holder | None = None
        #: Whether that is done for all of its life, but for the moments between two carriers.
        self.is_held = False
        #: Seconds that its user would wait for another carrier at most, whatever the node's `linger` is.
        self.linger = math.inf
        self._driver = SessionDriver(carrier, received, window)
        self._moved = SlimEvent()
        self._receive_conflict = Conflict("another task is receiving on this stream")
        self._sent_unread = 0
        self._translated = Translated(self._driver)
        self._sending = Sending(self._driver)
        self._send_conflict = Conflict("another task is sending on this stream")

    def __repr__(self) -> str:
        state = "closed" if self._driver.closed else "open"
        return f"<NTCPStream {state} to {self.peer.name or self.peer.node_id}:{self.peer.port}>"

    @property
    def carrier(self) -> Carrier:
        """What carries the bytes now."""
        return self._driver.carrier

    @property
    def failure(self) -> OSError | None:
        """What the connection broke with."""
        return self._driver.error or self._driver.send_error

    @property
    def driver(self) -> SessionDriver:
        """What moves the frames: for one who does that himself, while no task uses the stream."""
        return self._driver

    # -- moving to another path ------------------------------------------------------------------

    async def wait_moved(self) -> PathInfo:
        """Until the stream has moved to another path, which is `path` then. Cancelling it changes nothing.

        Raises BrokenResourceError at its end, ClosedResourceError where that was ours, and OSError (EOPNOTSUPP) where
        it cannot move (`linger=0`).
        """
        if not self._driver.machine.window:
            raise OSError(errno.EOPNOTSUPP, "this connection does not move to another path")
        await self._moved.wait()
        if self._driver.closed:
            raise trio.ClosedResourceError("this stream was closed")
        if self._driver.error is not None:
            raise trio.BrokenResourceError(str(self._driver.error)) from self._driver.error
        return self.path

    async def suspend(self) -> None:
        """Let nobody use the carrier any more. Then `attach`, `go_on` or `give_up`."""
        if self.holder is not None:
            await self.holder.let_go()
        self._driver.suspend()

    def lose(self, error: OSError) -> None:
        """Its carrier is known to be of no use any more: it breaks with `error`, or waits for another one."""
        if self.holder is not None:
            self.holder.soon(lambda: self._driver.fail(error))
        else:
            self._driver.fail(error)

    def go_on(self) -> None:
        """After `suspend`: with the same carrier."""
        self._driver.go_on()

    def attach(self, carrier: Carrier, peer_position: int, path: PathInfo) -> None:
        """After `suspend`: over another one, as `SessionDriver.attach`. Raises BadMessage."""
        self._driver.attach(carrier, peer_position)
        self.path = path
        self._tell_moved()

    def give_up(self, error: OSError) -> None:
        """After `suspend`: no carrier comes any more."""
        self._driver.end(error)
        self.tell_end()

    def _tell_moved(self) -> None:
        moved, self._moved = self._moved, SlimEvent()
        moved.set()

    def tell_end(self) -> None:
        """The stream is over: whoever waits for a move waits in vain."""
        self._moved.set()

    def signal(self, body: bytes) -> bool:
        """Tell the peer's node something (1 to 4,096 bytes), as far as it goes: it may get lost with the carrier.
        False where there is no carrier now."""
        driver = self._driver
        if driver.suspended or driver.error is not None or driver.closed:
            return False
        if self.holder is not None:
            self.holder.soon(lambda: driver.machine.signal(body))
        else:
            driver.machine.signal(body)
            driver.flush_nowait()
        return True

    async def wait_usable(self) -> bool:
        """While it is suspended; whether it goes on then."""
        while self._driver.suspended:
            await self._driver.changed.park()
        return self._driver.error is None and self._driver.send_error is None

    # -- a word at the beginning -----------------------------------------------------------------

    def confirm(self) -> None:
        """Tell the peer at once that this end has been accepted. See `wait_confirmed`."""
        self._driver.machine.confirm()
        self._driver.flush_nowait()

    async def wait_confirmed(self) -> None:
        """Until the peer has said so, or anything else, its end included. Reads no stream data.

        Nobody may receive on this stream meanwhile. Cancelled, it has lost nothing.
        """
        driver, machine = self._driver, self._driver.machine
        with self._receive_conflict, self._translated:
            while not driver.closed:
                driver.absorb()
                if machine.confirmed or machine.payload_remaining or machine.receiving_ended or driver.error:
                    return
                if driver.has_ahead:
                    return
                await driver.wait_incoming()

    # -- sending ---------------------------------------------------------------------------------

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`, in order; it returns when the kernel has taken it."""
        with self._send_conflict:
            view = memoryview(data).cast("B")
            await trio.lowlevel.checkpoint()
            self._check_may_send()
            if not view:
                return
            async with self._sending:
                position = 0
                while True:
                    payload = view[position : position + FULL_PAYLOAD]
                    position += len(payload)
                    await self._driver.send_data(payload)
                    self._look_at_incoming(len(payload))
                    if position >= len(view):
                        break
                    await trio.lowlevel.checkpoint()
                await self._driver.finish()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the carrier takes data again."""
        with self._send_conflict:
            await trio.lowlevel.checkpoint()
            self._check_may_send()
            async with self._sending:
                await self._driver.wait_sendable()

    async def send_eof(self) -> None:
        """Send FIN: the peer reads b"" after what was sent before. Receiving goes on. Repeatable."""
        with self._send_conflict:
            await trio.lowlevel.checkpoint()
            if self._driver.machine.eof_sent and not self._driver.closed and self._driver.send_error is None:
                async with self._sending:
                    await self._driver.finish()
                return
            self._check_may_send()
            async with self._sending:
                await self._driver.send_eof()

    def _check_may_send(self) -> None:
        if self._driver.closed:
            raise trio.ClosedResourceError("this stream was closed")
        if self._driver.machine.eof_sent:
            raise trio.ClosedResourceError("send_eof() was called on this stream")
        if self._driver.send_error is not None:
            raise trio.BrokenResourceError(str(self._driver.send_error)) from self._driver.send_error

    def _look_at_incoming(self, sent: int) -> None:
        """A task that only sends still learns of the peer's RESET, ACKs and pings now and then."""
        self._sent_unread += sent
        if self._sent_unread < FULL_PAYLOAD or self._receive_conflict.busy:
            return
        self._sent_unread = 0
        self._driver.absorb()
        if self._driver.send_error is not None:
            raise self._driver.send_error

    # -- receiving -------------------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """1 to `max_bytes` (262,144 by default and at most) bytes; b"" after the peer's FIN."""
        if max_bytes is None:
            max_bytes = LARGEST_RECEIVE_SIZE
        elif not isinstance(max_bytes, int):
            raise TypeError("max_bytes must be an integer")
        elif max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        view = _scratch.view[:max_bytes]
        count, has_waited = await self._receive_into(view)
        data = bytes(view[:count])
        if not has_waited:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return data

    async def receive_into(self, buffer: bytearray | memoryview) -> int:
        """Like `receive_some` into the front of `buffer`, without a copy: how many bytes, 0 after FIN."""
        view = memoryview(buffer).cast("B")
        if not view:
            raise ValueError("receive_into() needs room for at least 1 byte")
        count, has_waited = await self._receive_into(view)
        if not has_waited:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return count

    async def _receive_into(self, view: memoryview) -> tuple[int, bool]:
        """How many bytes, and whether this was a checkpoint. None between the read and the return."""
        driver, has_waited = self._driver, False
        with self._receive_conflict, self._translated:
            await trio.lowlevel.checkpoint_if_cancelled()
            driver.receivers += 1
            try:
                while not driver.closed:
                    count = driver.receive_into(view)
                    driver.flush_nowait()
                    if count or driver.machine.eof_received:
                        return count, has_waited
                    if driver.error is not None:
                        await trio.lowlevel.cancel_shielded_checkpoint()
                        raise trio.BrokenResourceError(str(driver.error)) from driver.error
                    await driver.wait_incoming()
                    has_waited = True
            finally:
                driver.receivers -= 1
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise trio.ClosedResourceError("this stream was closed")

    @property
    def is_watchable(self) -> bool:
        """Whether `watch_incoming` may serve in place of a task."""
        return isinstance(self.carrier, WatchableCarrier)

    def watch_incoming(self, callback: Callable[[], None]) -> Callable[[], None] | None:
        """Call `callback` once, as soon as `receive_some` might return or raise: for who would only wait in it, and
        needs no task for that. What this returns ends the watch; None where `receive_some` has to be called now."""
        driver, carrier = self._driver, self.carrier
        if driver.suspended or driver.closed or driver.error is not None:
            return None
        if driver.has_ahead or driver.machine.has_control or driver.has_unfinished:
            return None
        if not isinstance(carrier, WatchableCarrier):
            return None
        stop = carrier.watch_readable(callback)
        driver.receivers += 1

        def end() -> None:
            driver.receivers -= 1
            stop()

        return end

    # -- ending ----------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Close both directions; what was sent before still reaches the peer.

        FIN goes out if `send_eof` has not sent it. Then this waits until the peer has confirmed it;
        where the peer's application is not reading, its kernel's word is enough after 0.1 seconds, or
        at once if it is sending. It gives up when nothing has moved for `close_timeout` seconds.
        What the peer sends meanwhile is dropped. Cancelled, it closes at once, and the peer may see a
        reset in place of the end.
        """
        driver = self._driver
        if driver.closed:
            await trio.lowlevel.checkpoint()
            return
        driver.close_to_others()
        try:
            await trio.lowlevel.checkpoint()
            progress = _Progress(driver, self.close_timeout)
            if driver.send_error is None and await self._send_last_frames(progress):
                await self._linger(progress)
        except (OSError, trio.ClosedResourceError):
            pass  # the carrier broke, or reset() was called: there is nothing left to deliver
        finally:
            driver.leave()

    async def _send_last_frames(self, progress: _Progress) -> bool:
        """Up to and with FIN; False where the carrier has stalled."""
        driver = self._driver
        while not progress.has_stalled():
            with trio.move_on_after(progress.tick):
                async with driver.lock:
                    if not driver.machine.eof_sent:
                        await driver.send_eof()
                    await driver.finish()
                return True
        return False

    async def _linger(self, progress: _Progress) -> None:
        """Until nothing that was sent can be lost by closing.

        A kernel that gets data for a closed socket answers RST, and drops what it had still to send.
        """
        driver, patience, pause = self._driver, trio.current_time() + CLOSE_GRACE, 0.002
        while not progress.has_stalled():
            dropped = driver.discard(_scratch.view)
            driver.flush_nowait()
            if driver.error is not None or driver.machine.eof_acknowledged:
                return
            has_patience = not dropped and trio.current_time() < patience
            if not has_patience and self.carrier.unacknowledged() == 0:
                return
            if dropped:
                await trio.lowlevel.checkpoint()
            else:
                with trio.move_on_after(pause):
                    await driver.wait_incoming()
                pause = min(pause * 2, CLOSE_GRACE)

    def reset(self, code: int = 0) -> None:
        """End the stream at once, both ways, dropping what is under way.

        The peer gets BrokenResourceError whose cause is ConnectionResetError; tasks that wait on
        this end get ClosedResourceError. `code` (32 bits) is for the peer's log.
        """
        self._driver.closed = True
        self._driver.abort(code)
