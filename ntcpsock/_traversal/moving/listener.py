"""The listener's side: streams that were accepted wait for their dialer to bring another carrier."""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain, repeat

import trio

from ntcpsock._errors import BadMessage
from ntcpsock._report import PathInfo
from ntcpsock._session.carrier import Carrier
from ntcpsock._session.plain import PlainStream
from ntcpsock._session.resumption import Resumable
from ntcpsock._session.stream import NTCPStream
from ntcpsock._traversal.broker.driver import Delivery
from ntcpsock._traversal.moving import greeting
from ntcpsock._traversal.moving.kept import CHANGED, CLOSED, MOVE, KeptContext, KeptStream
from ntcpsock._traversal.opened import make_path
from ntcpsock._traversal.pending import PendingDial
from ntcpsock._traversal.punch.message import Signal, encode_sealed_payload
from ntcpsock._traversal.standing import StandingOffer

#: Seconds between the words to a dialer that it should move: datagrams that nobody acknowledges, so the last pause
#: repeats as long as the stream waits.
ASK_PAUSES = (0.05, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0)

#: Seconds after a move in which the dialer may have given it up, and does not know that we have moved.
GIVEN_UP = 2 * greeting.DEADLINE

log = logging.getLogger("ntcpsock")


class AcceptedStream(KeptStream):
    """One of them. resumable: who may move it."""

    def __init__(
        self, node: KeptContext, stream: NTCPStream, pending: PendingDial, book: dict[bytes, AcceptedStream]
    ) -> None:
        session_id = pending.offer.dial_id
        super().__init__(node, stream, pending.delivery.sender, partial(book.pop, session_id, None))
        self.resumable = Resumable(session_id, pending.offer.token, pending.delivery.sender)
        self._dialler = replace(pending.delivery, sealed=b"", answer=None)
        self._lock = trio.Lock()
        self._standing: StandingOffer | None = None
        self._is_answer_due = False
        self._moved_at = -math.inf

    @property
    def observed_host(self) -> str:
        return self._dialler.observed_host

    def patience(self, error: OSError) -> float:
        """Seconds to wait for another carrier. One that is reset as soon as it is there does not say that the dialer's
        program has died: it has given the move up, and has to find a way anew."""
        if trio.current_time() - self._moved_at < GIVEN_UP:
            return self.linger
        return super().patience(error)

    async def _keep(self, error: OSError) -> None:
        """The dialer may not know yet that we are elsewhere, or have lost the path: it is asked to move, by the
        broker."""
        with trio.move_on_after(self.patience(error)):
            async with trio.open_nursery() as nursery:
                if self._standing is not None:
                    nursery.start_soon(self._standing.follow)
                await self._ask_until_usable()
                nursery.cancel_scope.cancel()
        if self.is_lost():
            self.stream.give_up(error)

    def tend(self, now: float) -> None:
        if self._standing is None or self.stream.driver.suspended:
            return
        if self.stream.driver.is_silent:
            self._standing.begin()
            return
        self._standing.rest()
        if self._is_answer_due:
            self._is_answer_due = False
            self._standing.answer()

    async def _ask_until_usable(self) -> None:
        for pause in chain(ASK_PAUSES, repeat(ASK_PAUSES[-1])):
            with trio.move_on_after(pause):
                await self.stream.wait_usable()
                return
            self._ask()

    def _ask(self) -> None:
        with suppress(OSError):
            self._say_by_broker(MOVE, self.resumable.epoch.to_bytes(8, "big"))

    def _tell_closed(self) -> None:
        self._say_by_broker(CLOSED, b"")

    def _say_by_broker(self, name: str, body: bytes) -> None:
        word = Signal(self.resumable.session_id, 1, name, body)
        self._node.introductions.tell(self.key, self._dialler.sender_instance, word)

    def stands(self, standing: StandingOffer | None) -> None:
        """Keep the dialer's newest offer for when there is no path."""
        if self._standing is not None:
            self._standing.withdraw()
        self._standing = standing

    def answer_again(self) -> None:
        """We are to be reached elsewhere than the dialer knows. As long as it cannot hear that, it goes by what it
        knows, and so do we."""
        self._is_answer_due = True
        self.tend(trio.current_time())

    def moved(self, carrier: Carrier, position: int, path: PathInfo, reason: str) -> None:
        super().moved(carrier, position, path, reason)
        self._moved_at = trio.current_time()
        if self._standing is not None:
            self._standing.stop()

    def _ended(self) -> None:
        super()._ended()
        self.stands(None)

    async def tell_changed(self) -> None:
        """The dialer may find a better path than the relay's: our network is another one."""
        word = Signal(self.resumable.session_id, 1, CHANGED, b"")
        with suppress(OSError):
            dialler = replace(self._dialler, answer=self.say)
            await self._node.introductions.tell_dialer(dialler, encode_sealed_payload(word))

    async def resume(self, carrier: Carrier, position: int, technique: str) -> None:
        """Move to `carrier`, at whose other end everything before `position` has arrived. Raises OSError, or
        BadMessage where that cannot be; then nothing has changed."""
        driver = self.stream.driver
        async with self._lock:
            await self.stream.suspend()
            try:
                if driver.error is not None or driver.machine.is_reset:
                    await greeting.refuse(carrier)
                    return
                try:
                    driver.machine.check_position(position)
                except BadMessage as error:
                    # It may have been under way for long, and its dialer has said more since by the carrier that it
                    # kept: no reason to end the stream.
                    raise BadMessage("RESUME: out of date, or a lie") from error
                await greeting.grant(carrier, driver.machine.position)
                reason = "its path was lost" if self._lost_at is not None else "a better path"
                self.moved(carrier, position, make_path(carrier, technique), reason)
            finally:
                if driver.suspended and self._lost_at is None:
                    self.stream.go_on()


class AcceptedStreams:
    """Those of one node, by the dial id of their first carrier. refused: how often somebody was, by reason."""

    def __init__(self, node: KeptContext) -> None:
        self._node = node
        self._streams: dict[bytes, AcceptedStream] = {}
        self.refused: dict[str, int] = {}

    def __iter__(self) -> Iterator[AcceptedStream]:
        return iter(self._streams.values())

    def accepted(self, stream: NTCPStream, pending: PendingDial) -> None:
        """Look after a stream from now on."""
        if not isinstance(stream, PlainStream) and stream.driver.machine.window:
            self._streams[pending.offer.dial_id] = AcceptedStream(self._node, stream, pending, self._streams)

    def heard(self, delivery: Delivery, signal: Signal) -> bool:
        """Take a dialer's word; whether it was one of a stream's."""
        stream = self._streams.get(signal.dial_id)
        if stream is None or stream.key != delivery.sender or signal.name != CLOSED:
            return False
        stream.closed_there()
        return True

    def knows(self, session_id: bytes, key: bytes) -> bool:
        """Whether the node `key` has such a stream here."""
        stream = self._streams.get(session_id)
        return stream is not None and stream.key == key

    def stands(self, session_id: bytes, standing: StandingOffer) -> None:
        """Keep an offer for a stream; whose that is the caller has seen."""
        self._streams[session_id].stands(standing)

    async def arrived(self, carrier: Carrier, dial_id: bytes, key: bytes, technique: str) -> None:
        """A proven connection, whose dialer says that a stream shall move to it."""
        try:
            resume = await greeting.hear(carrier)
            stream = self._streams.get(resume.session_id)
            if stream is None:
                self._count("unknown")
                await greeting.refuse(carrier)
                return
            stream.resumable.take(resume, dial_id, key)
            await stream.resume(carrier, resume.received, technique)
        except (OSError, BadMessage, trio.ClosedResourceError) as error:
            self._count(str(error) if isinstance(error, BadMessage) else "broken")
            log.debug("a stream did not move: %s", error)
            carrier.close(abort=True)
        except BaseException:
            carrier.close(abort=True)
            raise

    def _count(self, reason: str) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def close(self) -> None:
        """The node ends: whoever waits for another carrier waits in vain."""
        for stream in tuple(self._streams.values()):
            if stream.stream.driver.suspended:
                with suppress(OSError):
                    stream.stream.give_up(ConnectionAbortedError(errno.ECONNABORTED, "the node was closed"))
