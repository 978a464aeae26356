"""The dialer's side: it brings the next carrier, when one is lost and when a better one may be had."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import suppress
from typing import Protocol

import trio

from ntcpsock._errors import BadMessage, EncryptionMismatch, IdentityMismatch, PeerRefused
from ntcpsock._report import PathInfo, Report
from ntcpsock._session.carrier import Carrier
from ntcpsock._session.datagram_road import BareRoad
from ntcpsock._session.plain import PlainCarrier, PlainStream
from ntcpsock._session.resumption import Resuming
from ntcpsock._session.stream import NTCPStream
from ntcpsock._traversal.connect import dial_for
from ntcpsock._traversal.course import DialContext
from ntcpsock._traversal.dial import Dial
from ntcpsock._traversal.moving import greeting
from ntcpsock._traversal.moving.kept import KeptContext, KeptStream
from ntcpsock._traversal.opened import make_path
from ntcpsock._traversal.time_limit import limited

log = logging.getLogger("ntcpsock")

#: Seconds between two attempts to find a lost peer: the first pause, and the longest.
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0
#: Seconds from one attempt for a better path to the next, while the stream goes by way of a relay.
CLIMB_PAUSES = (0.0, 3.0, 10.0, 30.0, 60.0)
#: Seconds that such an attempt may take.
CLIMB_BUDGET = 8.0


class DiallerContext(DialContext, KeptContext, Protocol):
    """What these streams need of their node."""

    @property
    def connect_timeout(self) -> float: ...
    @property
    def dialling(self) -> trio.CapacityLimiter: ...
    async def wait_network_changed(self) -> None:
        """Until an address or a route has changed, or the machine has slept."""
        ...


class DialledStream(KeptStream):
    """One of them. One attempt to move at a time: that for a lost carrier ends that for a better one."""

    def __init__(
        self, node: DiallerContext, stream: NTCPStream, dial: Dial, book: dict[bytes, DialledStream]
    ) -> None:
        super().__init__(node, stream, dial.key, lambda: book.pop(dial.dial_id, None))
        self._dialler = node
        self._dial = dial
        self._resuming = Resuming(dial.dial_id, dial.token)
        self._climbing = trio.CancelScope()
        if stream.path.kind == "relay":
            node.nursery.start_soon(self._climb)

    @property
    def observed_host(self) -> str:
        return self._dial.observed_host

    def _ended(self) -> None:
        super()._ended()
        self._climbing.cancel()

    # -- a carrier that was lost

    async def _keep(self, error: OSError) -> None:
        self._climbing.cancel()
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
        if self.stream.driver.error is None and self.stream.path.kind == "relay":
            node.nursery.start_soon(self._climb)

    # -- a better one

    async def _climb(self) -> None:
        """From the relay to a direct path, as soon as there is one."""
        driver = self.stream.driver
        with trio.CancelScope() as self._climbing:
            for pause in CLIMB_PAUSES:
                with trio.move_on_after(pause):
                    await self._dialler.wait_network_changed()
                if driver.error is not None or self.stream.path.kind != "relay":
                    return
                with suppress(OSError), trio.move_on_after(CLIMB_BUDGET):
                    await self._move("a direct path", direct_only=True)
                    return

    # -- both

    async def _move(self, reason: str, *, direct_only: bool = False) -> PathInfo:
        """Dial again, and go on over what that gives; the path. Raises OSError."""
        node, first = self._dialler, self._dial
        dial = Dial(first.key, first.label, first.port, first.source_port, resume=first.dial_id)
        dial.instance, dial.say, dial.direct_only = first.instance, self.say, direct_only
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
            await self._exchange(carrier, dial.dial_id, make_path(carrier, connection.technique), reason)
        except BaseException:
            carrier.close(abort=True)
            raise
        return self.stream.path

    async def _exchange(self, carrier: Carrier, dial_id: bytes, path: PathInfo, reason: str) -> None:
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
            self.moved(carrier, position, path, reason)
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

    def __iter__(self) -> Iterator[DialledStream]:
        return iter(self._streams.values())

    def dialled(self, stream: NTCPStream, dial: Dial) -> None:
        """Look after a stream from now on."""
        if not isinstance(stream, PlainStream) and stream.driver.machine.window:
            self._streams[dial.dial_id] = DialledStream(self._node, stream, dial, self._streams)

    def close(self) -> None:
        """The node ends: whoever waits for another carrier waits in vain."""
        for stream in tuple(self._streams.values()):
            if stream.stream.driver.suspended:
                stream.stream.give_up(ConnectionAbortedError(errno.ECONNABORTED, "the node was closed"))
