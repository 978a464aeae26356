"""The dialer's side: it brings the next carrier, when one is lost and when a better one may be had."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple, Protocol

import trio

from ntcpsock._errors import BadMessage, EncryptionMismatch, IdentityMismatch, PeerRefused
from ntcpsock._report import PathInfo, Report
from ntcpsock._session.carrier import Carrier
from ntcpsock._session.datagram_road import BareRoad
from ntcpsock._session.plain import PlainCarrier, PlainStream
from ntcpsock._session.resumption import Resuming
from ntcpsock._session.stream import NTCPStream
from ntcpsock._traversal.broker.driver import Delivery
from ntcpsock._traversal.connect import dial_for
from ntcpsock._traversal.dial import Dial
from ntcpsock._traversal.moving import greeting
from ntcpsock._traversal.moving.climber import ClimbContext, ClimbingStream
from ntcpsock._traversal.moving.climbing import Seekers
from ntcpsock._traversal.moving.kept import CHANGED, MOVE
from ntcpsock._traversal.opened import make_path
from ntcpsock._traversal.punch.message import Signal
from ntcpsock._traversal.time_limit import limited

log = logging.getLogger("ntcpsock")

#: Seconds between two attempts to find a lost peer: the first pause, and the longest.
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0


class DiallerContext(ClimbContext, Protocol):
    """What these streams need of their node."""

    @property
    def connect_timeout(self) -> float: ...
    @property
    def dialling(self) -> trio.CapacityLimiter: ...


class _First(NamedTuple):
    """What stays of the first dial."""

    label: str
    port: int
    source_port: int
    instance: bytes | None
    observed_host: str
    also_observed: tuple[str, ...]


class DialledStream(ClimbingStream):
    """One of them. One attempt to move at a time: that for a lost carrier ends that for a better one."""

    def __init__(
        self,
        node: DiallerContext,
        stream: NTCPStream,
        dial: Dial,
        book: dict[bytes, DialledStream],
        seekers: Seekers,
    ) -> None:
        super().__init__(node, stream, dial, partial(book.pop, dial.dial_id, None), seekers)
        self._dialler = node
        self._first = _First(
            dial.label, dial.port, dial.source_port, dial.instance, dial.observed_host, dial.also_observed
        )
        self._resuming = Resuming(dial.dial_id, dial.token)

    @property
    def observed_host(self) -> str:
        return self._first.observed_host

    def asked(self, signal: Signal) -> None:
        """The listener has lost the path, or is elsewhere; a word from before the last move is out of date."""
        is_late = self._resuming.is_late(int.from_bytes(signal.body[:8], "big"))
        if not is_late and not self.stream.driver.suspended:
            self.stream.lose(TimeoutError(errno.ETIMEDOUT, "the peer has lost the path"))

    # -- a carrier that was lost

    async def _keep(self, error: OSError) -> None:
        self._stop_climbing()
        node = self._dialler
        deadline = trio.current_time() + self.patience(error)
        pause = FIRST_PAUSE
        while self.is_lost():
            try:
                with trio.move_on_at(deadline):
                    await self._move("its path was lost")
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
        self.start_climbing()

    # -- both

    async def _move(self, reason: str, useless: frozenset[str] = frozenset()) -> None:
        """Dial again, and go on over what that gives. Raises OSError."""
        node, first = self._dialler, self._first
        dial = Dial(self.key, first.label, first.port, first.source_port, resume=self._resuming.session_id)
        dial.instance, dial.say, dial.useless = first.instance, self.say, useless
        path = self.stream.path
        dial.observed_host = path.remote[0] if path.kind != "relay" else first.observed_host
        dial.also_observed = first.also_observed
        report = Report(f"{first.label}:{first.port}", "dialer", trio.current_time())
        with limited(first.label, first.port, node.connect_timeout, report):
            async with node.dialling:
                connection = await dial_for(node, dial, report)
        carrier = connection.carrier
        assert not isinstance(carrier, BareRoad | PlainCarrier), "streams without encryption do not move"
        try:
            path = make_path(carrier, connection.technique)
            await self._exchange(carrier, dial.dial_id, path, reason, dial.since)
        except BaseException:
            carrier.close(abort=True)
            raise

    async def _exchange(
        self, carrier: Carrier, dial_id: bytes, path: PathInfo, reason: str, since: float
    ) -> None:
        driver = self.stream.driver
        was_lost = driver.suspended
        await self.stream.suspend()
        try:
            if driver.error is not None:
                raise ConnectionResetError(errno.ECONNRESET, "the stream has ended")
            position = await greeting.ask(carrier, self._resuming.resume(driver.machine.position, dial_id))
            if position is None:
                raise PeerRefused("the peer does not know this connection any more")
            if driver.error is not None:  # meanwhile
                raise ConnectionResetError(errno.ECONNRESET, "the stream has ended")
            silence = driver.silence
            self.moved(carrier, position, path, reason)
            self._resuming.has_moved()
            self.age.replaced(path, since, trio.current_time(), silence)
        except BadMessage as error:
            raise ConnectionAbortedError(
                errno.ECONNABORTED, f"the peer broke the protocol: {error}"
            ) from error
        except trio.ClosedResourceError as error:
            raise ConnectionAbortedError(errno.ECONNABORTED, "the carrier was closed") from error
        finally:
            if driver.suspended and not was_lost:
                self.stream.go_on()


class DialledStreams:
    """Those of one node."""

    def __init__(self, node: DiallerContext) -> None:
        self._node = node
        self._streams: dict[bytes, DialledStream] = {}
        self._seekers = Seekers()

    def heard(self, delivery: Delivery, signal: Signal) -> bool:
        """Take a listener's word; whether it was one of a stream's."""
        stream = self._streams.get(signal.dial_id)
        if stream is None or stream.key != delivery.sender or signal.name not in (MOVE, CHANGED):
            return False
        if signal.name == MOVE:
            stream.asked(signal)
        else:
            stream.changed_there()
        return True

    def __iter__(self) -> Iterator[DialledStream]:
        return iter(self._streams.values())

    def dialled(self, stream: NTCPStream, dial: Dial) -> None:
        """Look after a stream from now on."""
        if not isinstance(stream, PlainStream) and stream.driver.machine.window:
            self._streams[dial.dial_id] = DialledStream(
                self._node, stream, dial, self._streams, self._seekers
            )

    def close(self) -> None:
        """The node ends: whoever waits for another carrier waits in vain."""
        for stream in tuple(self._streams.values()):
            if stream.stream.driver.suspended:
                stream.stream.give_up(ConnectionAbortedError(errno.ECONNABORTED, "the node was closed"))
