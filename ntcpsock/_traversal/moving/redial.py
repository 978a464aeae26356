"""A dialled stream dials again: what stays of its first dial, and how it goes on over what a later one gives."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import trio

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage, PeerRefused
from ntcpsock._report import PathInfo, Report
from ntcpsock._session.carrier import Carrier
from ntcpsock._session.datagram_road import BareRoad
from ntcpsock._session.plain import PlainCarrier
from ntcpsock._session.resumption import Resuming
from ntcpsock._session.stream import NTCPStream
from ntcpsock._traversal.connect import dial_for
from ntcpsock._traversal.course import DialContext
from ntcpsock._traversal.dial import Dial
from ntcpsock._traversal.moving import greeting
from ntcpsock._traversal.moving.ages import PathAge
from ntcpsock._traversal.moving.kept import KeptContext, KeptStream
from ntcpsock._traversal.opened import make_path
from ntcpsock._traversal.strategies.base import Connection
from ntcpsock._traversal.time_limit import limited

#: Why a stream has moved that had no path any more, or none that answered.
LOST = "its path was lost"
SILENT = "its path was silent"


class DiallerContext(DialContext, KeptContext, Protocol):
    """What these streams need of their node."""

    @property
    def connect_timeout(self) -> float: ...
    @property
    def dialling(self) -> trio.CapacityLimiter: ...
    async def wait_network_changed(self) -> None:
        """Until an address or a route has changed, or the machine has slept."""
        ...


class _First(NamedTuple):
    """What stays of the first dial."""

    label: str
    port: int
    source_port: int
    instance: bytes | None
    observed_host: str
    also_observed: tuple[str, ...]


class Redialling(KeptStream):
    """One stream. on_end: called once when it is over; age: of its path."""

    def __init__(
        self, node: DiallerContext, stream: NTCPStream, dial: Dial, on_end: Callable[[], object]
    ) -> None:
        super().__init__(node, stream, dial.key, on_end)
        self._dialler = node
        self._first = _First(
            dial.label, dial.port, dial.source_port, dial.instance, dial.observed_host, dial.also_observed
        )
        self._resuming = Resuming(dial.dial_id, dial.token)
        self._exchanging = trio.Lock()
        self.age = PathAge(node.surroundings, self.key, stream.path, dial.since)

    @property
    def observed_host(self) -> str:
        return self._first.observed_host

    async def _move(
        self, reason: str, useless: frozenset[str] = frozenset(), within: float = math.inf
    ) -> None:
        """Dial again, and go on over what that gives. Raises OSError.

        within: seconds that the dial may take. What is agreed with the peer after it is not cut short: the peer would
        be on a path that nobody has at this end.
        """
        node, first = self._dialler, self._first
        moved = self._resuming.moved
        dial = self._make_dial()
        dial.useless = useless
        if self.stream.path.technique == "relay" and reason in (LOST, SILENT):
            dial.lost_relay = Endpoint(*self.stream.path.remote)
        if reason == SILENT:
            dial.say = None
        report = Report(f"{first.label}:{first.port}", "dialer", trio.current_time())
        connection: Connection | None = None
        with trio.move_on_after(within):
            with limited(first.label, first.port, node.connect_timeout, report):
                async with node.dialling:
                    connection = await dial_for(node, dial, report)
        if connection is None:
            raise TimeoutError(errno.ETIMEDOUT, f"no other path to {first.label} within {within:.1f} s")
        await self._take(connection, dial, reason, moved)

    def _make_dial(self) -> Dial:
        first, path = self._first, self.stream.path
        dial = Dial(self.key, first.label, first.port, first.source_port, resume=self._resuming.session_id)
        dial.instance, dial.say = first.instance, self.say
        dial.observed_host = path.remote[0] if path.kind != "relay" else first.observed_host
        dial.also_observed = first.also_observed
        return dial

    async def _take(self, connection: Connection, dial: Dial, reason: str, moved: int) -> None:
        """Go on over what was dialled, unless the stream is not where it was at the move `moved`. Raises OSError."""
        carrier = connection.carrier
        assert not isinstance(carrier, BareRoad | PlainCarrier), "streams without encryption do not move"
        try:
            async with self._exchanging:
                if self._resuming.moved != moved:
                    raise ConnectionAbortedError(errno.ECONNABORTED, "another path was first")
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
            if reason == SILENT and not was_lost:
                gone = TimeoutError(errno.ETIMEDOUT, "the path has fallen silent")
                self.age.lost(trio.current_time(), gone, silence)
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
