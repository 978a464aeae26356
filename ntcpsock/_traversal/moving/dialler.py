"""The dialer's side: it brings the next carrier, when one is lost and when a better one may be had."""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial

import trio

from ntcpsock._config import UDP_TECHNIQUES
from ntcpsock._errors import EncryptionMismatch, IdentityMismatch, PeerRefused
from ntcpsock._report import PathInfo, Report
from ntcpsock._session.carrier import Carrier
from ntcpsock._session.plain import PlainStream
from ntcpsock._session.stream import NTCPStream
from ntcpsock._slim_event import SlimEvent
from ntcpsock._traversal.broker.driver import Delivery
from ntcpsock._traversal.dial import Dial
from ntcpsock._traversal.moving.agreed import Agreed, Agreements
from ntcpsock._traversal.moving.climbing import BUDGET, LEFT_OUT, LOOK, Climbing, Seekers
from ntcpsock._traversal.moving.kept import CHANGED, CLOSED, MOVE
from ntcpsock._traversal.moving.redial import LOST, SILENT, DiallerContext, Redialling
from ntcpsock._traversal.punch.message import Signal

log = logging.getLogger("ntcpsock")

#: Seconds between two attempts to find a lost peer: the first pause, and the longest.
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0

#: Streams that go where both ends agreed to at once; each of them takes some sockets.
MAX_AS_AGREED = 64
#: Seconds between two attempts to go where both ends agreed to, while there is no other way.
AGREED_PAUSE = 0.5

_RELAYED = frozenset({"relay", "turn"})


class DialledStream(Redialling):
    """One of them. One attempt to move at a time: that for a lost carrier ends that for a better one."""

    def __init__(
        self,
        node: DiallerContext,
        stream: NTCPStream,
        dial: Dial,
        book: dict[bytes, DialledStream],
        seekers: Seekers[DialledStream],
        as_agreed: trio.CapacityLimiter,
    ) -> None:
        super().__init__(node, stream, dial, partial(book.pop, dial.dial_id, None))
        self._climbing: trio.CancelScope | None = None
        self._agreements = Agreements(node, self._make_dial)
        #: What looks for another carrier just now.
        self._ahead: trio.CancelScope | None = None
        self._ahead_ended = SlimEvent()
        self._going_as_agreed: trio.CancelScope | None = None
        self._going_anew: trio.CancelScope | None = None
        self._changed_there = SlimEvent()
        self._book = book
        self._seekers = seekers
        self._as_agreed = as_agreed
        self._start_climbing()

    def _ended(self) -> None:
        self.age.ended(trio.current_time(), self.stream.driver.silence)
        super()._ended()
        self._stop_climbing()
        self._stop_searching()
        self._agreements.forget()

    def _tell_closed(self) -> None:
        if self._first.instance is not None:
            word = Signal(self._resuming.session_id, 1, CLOSED, b"")
            self._node.introductions.tell(self.key, self._first.instance, word)

    def _stop_climbing(self) -> None:
        if self._climbing is not None:
            self._climbing.cancel()
            self._climbing = None

    def asked(self, signal: Signal) -> None:
        """The listener has lost the path, or is elsewhere; a word from before the last move is out of date."""
        is_late = self._resuming.is_late(int.from_bytes(signal.body[:8], "big"))
        if not is_late and not self.stream.driver.suspended:
            self.stream.lose(TimeoutError(errno.ETIMEDOUT, "the peer has lost the path"))

    def moved(self, carrier: Carrier, position: int, path: PathInfo, reason: str) -> None:
        super().moved(carrier, position, path, reason)
        self._stop_searching()
        self._agreements.renew()
        self._start_climbing()

    # -- a carrier that is silent, or was lost

    def tend(self, now: float) -> None:
        """Called a few times a second: agree with the listener when it is time, and look for another carrier as soon
        as the present one is silent."""
        if not self.stream.driver.suspended:
            self._agreements.tend(now)
        if self.stream.driver.is_silent:
            self._start_agreed()
            if self._ahead is None:
                self._dialler.nursery.start_soon(self._move_ahead)
        elif not self.stream.driver.suspended:
            self._stop_searching()

    async def _move_ahead(self) -> None:
        """One dial, which goes on when the carrier is lost meanwhile, and ends where that is alive again."""
        self._ahead_ended = SlimEvent()
        try:
            with trio.CancelScope() as self._ahead:
                await self._move(SILENT)
        except OSError as failure:
            log.debug("no other path yet: %s", failure)
        finally:
            self._ahead = None
            self._ahead_ended.set()

    def _start_agreed(self) -> None:
        agreed = self._agreements.current
        if agreed is not None and self._going_as_agreed is None:
            self._going_as_agreed = trio.CancelScope()
            self._dialler.nursery.start_soon(self._move_as_agreed, agreed, self._going_as_agreed)

    async def _move_as_agreed(self, agreed: Agreed, scope: trio.CancelScope) -> None:
        """Without the broker, which may be gone; until the stream has moved, or has ended."""
        try:
            with scope:
                while True:
                    report = Report(f"{self._first.label}:{self._first.port}", "dialer", trio.current_time())
                    try:
                        moved = self._resuming.moved
                        async with self._as_agreed:
                            connection = await agreed.connect(report)
                        reason = LOST if self.is_lost() else SILENT
                        await self._take(connection, agreed.dial, reason, moved)
                    except OSError as failure:
                        log.debug("no path as agreed: %s", failure)
                    with trio.move_on_after(AGREED_PAUSE):
                        await self._dialler.wait_network_changed()
        finally:
            self._going_as_agreed = None

    def _stop_searching(self) -> None:
        """The stream has a path that is alive."""
        for scope in (self._ahead, self._going_as_agreed, self._going_anew):
            if scope is not None:
                scope.cancel()

    # -- one that is about to be lost

    def mind_age(self) -> None:
        """Have another path before this one is dropped, where it is known when it will be."""
        driver = self.stream.driver
        if driver.suspended or not driver.can_move or driver.closed:
            return
        if self.age.wants_successor(trio.current_time(), driver.silence):
            self._dialler.nursery.start_soon(self._renew)

    async def _renew(self) -> None:
        if self.stream.driver.suspended:
            return
        self._stop_climbing()
        useless = frozenset() if self.stream.path.kind == "relay" else _RELAYED
        self._climbing = scope = trio.CancelScope()
        try:
            with scope:
                with suppress(OSError):
                    await self._move("it grew old", useless, BUDGET)
                await self._climb_on()
        finally:
            self._has_climbed(scope)

    def _lost(self, error: OSError) -> None:
        if self._lost_at is None:
            self.age.lost(trio.current_time(), error, self.stream.driver.silence)
        super()._lost(error)

    async def _keep(self, error: OSError) -> None:
        self._stop_climbing()
        deadline = trio.current_time() + self.patience(error)
        if error.errno == errno.EADDRNOTAVAIL and self._ahead is not None:
            self._ahead.cancel()  # it comes from where we are not any more
        self._start_agreed()
        with trio.CancelScope() as self._going_anew:
            if self._ahead is not None:
                with trio.move_on_at(deadline):
                    await self._ahead_ended.wait()
            await self._move_anew(error, deadline)
        self._going_anew = None
        self._stop_searching()

    async def _move_anew(self, error: OSError, deadline: float) -> None:
        """By a dial like the first one; until the stream has moved, or has ended."""
        node = self._dialler
        pause = FIRST_PAUSE
        while self.is_lost():
            try:
                with trio.move_on_at(deadline):
                    await self._move(LOST)
            except (PeerRefused, IdentityMismatch, EncryptionMismatch) as refusal:
                # It answers, and has no such stream: its process is another one.
                gone = ConnectionResetError(errno.ECONNRESET, f"the peer has lost the connection: {refusal}")
                gone.__cause__ = error
                self.stream.give_up(gone)
            except OSError as failure:
                log.debug("no other path yet: %s", failure)
            if not self.is_lost():
                break
            if trio.current_time() >= deadline:
                self.stream.give_up(error)
                return
            with trio.move_on_at(min(deadline, trio.current_time() + pause)):
                await node.wait_network_changed()
            pause = min(2 * pause, LONGEST_PAUSE)

    # -- a better one

    def _useless(self) -> frozenset[str]:
        """What brings no better path than this one; empty where there is no better one. Direct ones are better than a
        relay, and where the first one has won, TCP, whose bytes the kernel moves, is better than UDP."""
        node, path = self._dialler, self.stream.path
        useless: frozenset[str] = frozenset()
        if path.kind == "relay":
            useless = _RELAYED
        elif path.kind == "udp" and node.prefer == "first":
            useless = _RELAYED | set(UDP_TECHNIQUES)
        return useless if set(node.techniques) - useless else frozenset()

    def _start_climbing(self) -> None:
        if self._climbing is None and self.stream.driver.error is None and self._useless():
            self._climbing = trio.CancelScope()
            self._dialler.nursery.start_soon(self._climb, self._climbing)

    async def _climb(self, scope: trio.CancelScope) -> None:
        """To a better path, as soon as there is one."""
        try:
            with scope:
                await self._climb_on()
        finally:
            self._has_climbed(scope)

    def _has_climbed(self, scope: trio.CancelScope) -> None:
        if self._climbing is scope:
            self._climbing = None

    async def _climb_on(self) -> None:
        driver, machine = self.stream.driver, self.stream.driver.machine
        climbing: Climbing | None = None
        while driver.error is None and (useless := self._useless()):
            now, carried = trio.current_time(), machine.sent + machine.received
            has_light = bool(set(self._dialler.techniques) - useless - LEFT_OUT)
            climbing = climbing or Climbing(now, carried, has_light=has_light)
            short = self._dialler.bursts.is_held(self.key, now)
            kind, seconds = climbing.next(now, carried, short=short)
            if kind != "wait" and not self._seekers.enter(self.key, self):
                kind, seconds = "wait", LOOK
            if kind == "wait":
                with trio.move_on_after(seconds) as waiting:
                    await self._wait_changed()
                climbing = climbing if waiting.cancelled_caught else None
                continue
            reason = "a direct path" if self.stream.path.kind == "relay" else "a path over TCP"
            try:
                with suppress(OSError):
                    await self._move(reason, useless if kind == "full" else useless | LEFT_OUT, seconds)
                    self._tell_others()
            finally:
                self._seekers.leave(self.key, self)
            climbing.tried(kind, trio.current_time(), machine.sent + machine.received)

    def _tell_others(self) -> None:
        """Streams to the same node may go where this one has gone."""
        for stream in self._book.values():
            if stream.key == self.key and stream is not self:
                stream.changed_there()

    async def _wait_changed(self) -> None:
        """Until the network is another one, at either end."""
        there = self._changed_there
        async with trio.open_nursery() as nursery:

            async def wait(event: Callable[[], Awaitable[None]]) -> None:
                await event()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait, self._dialler.wait_network_changed)
            nursery.start_soon(wait, there.wait)

    def changed_there(self) -> None:
        """The listener's network is another one."""
        self._changed_there.set()
        self._changed_there = SlimEvent()


class DialledStreams:
    """Those of one node."""

    def __init__(self, node: DiallerContext) -> None:
        self._node = node
        self._streams: dict[bytes, DialledStream] = {}
        self._seekers: Seekers[DialledStream] = Seekers()
        self._as_agreed = trio.CapacityLimiter(MAX_AS_AGREED)

    def heard(self, delivery: Delivery, signal: Signal) -> bool:
        """Take a listener's word; whether it was one of a stream's."""
        stream = self._streams.get(signal.dial_id)
        if stream is None:
            if signal.name == MOVE and delivery.sender_instance:
                answer = Signal(signal.dial_id, 1, CLOSED, b"")
                self._node.introductions.tell(delivery.sender, delivery.sender_instance, answer)
            return signal.name == MOVE
        if stream.key != delivery.sender or signal.name not in (MOVE, CLOSED, CHANGED):
            return False
        if signal.name == MOVE:
            stream.asked(signal)
        elif signal.name == CLOSED:
            stream.closed_there()
        else:
            stream.changed_there()
        return True

    def __iter__(self) -> Iterator[DialledStream]:
        return iter(self._streams.values())

    def dialled(self, stream: NTCPStream, dial: Dial) -> None:
        """Look after a stream from now on."""
        if not isinstance(stream, PlainStream) and stream.driver.machine.window:
            self._streams[dial.dial_id] = DialledStream(
                self._node, stream, dial, self._streams, self._seekers, self._as_agreed
            )

    def close(self) -> None:
        """The node ends: whoever waits for another carrier waits in vain."""
        for stream in tuple(self._streams.values()):
            if stream.stream.driver.suspended:
                stream.stream.give_up(ConnectionAbortedError(errno.ECONNABORTED, "the node was closed"))
