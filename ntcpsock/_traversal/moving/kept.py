"""What both ends do for a stream that may lose its carrier."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import trio

from ntcpsock._report import Move, PathInfo
from ntcpsock._session.carrier import Carrier
from ntcpsock._session.stream import NTCPStream
from ntcpsock._traversal.broker.driver import Delivery
from ntcpsock._traversal.candidate import is_loopback
from ntcpsock._traversal.introductions import Introductions

#: Seconds to find the peer again after its kernel, or something on the way, has ended the connection in order or by a
#: reset. A router or a relay that was restarted does so, and so does the kernel of a peer whose process died.
ABRUPT_LINGER = 10.0

#: The listener's word to the dialer that a stream should move. Its body is the epoch of the last move that it knows.
MOVE = "move"

#: Either end's word by the broker that it has ended a stream which has no path, or does not know it any more.
CLOSED = "closed"
#: The listener's word that its network has changed: there may be a better path now.
CHANGED = "changed"

#: How a path fails without a word.
_SILENT = frozenset(
    {
        errno.ETIMEDOUT,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.EHOSTDOWN,
        errno.EADDRNOTAVAIL,
    }
)


class Network(Protocol):
    """What watches the node's network."""

    def suspect(self) -> None: ...


class KeptContext(Protocol):
    """What a stream that may move needs of its node."""

    @property
    def nursery(self) -> trio.Nursery: ...
    @property
    def introductions(self) -> Introductions: ...
    @property
    def linger(self) -> float:
        """Seconds for which both ends wait for another carrier."""
        ...

    @property
    def closing(self) -> bool: ...
    @property
    def network(self) -> Network: ...


class KeptStream(ABC):
    """One stream at one end. The hooks are called in whatever thread moves its frames, all else in trio's.

    key: of the node at the other end.
    """

    def __init__(
        self, node: KeptContext, stream: NTCPStream, key: bytes, on_end: Callable[[], object]
    ) -> None:
        self.stream = stream
        self.key = key
        self._node = node
        self._forget = on_end
        self._token = trio.lowlevel.current_trio_token()
        self._lost_at: float | None = None
        stream.report.path = stream.path
        driver = stream.driver
        driver.on_lost, driver.on_signal, driver.on_end = self._on_lost, self._on_signal, self._on_end

    # -- hooks, in any thread

    def _on_lost(self, error: OSError) -> bool:
        if self._node.closing or not self._node.linger:
            return False
        carrier = self.stream.carrier
        if is_loopback(carrier.remote.host) and error.errno not in _SILENT and not carrier.ended_cleanly:
            return False  # nothing lies between the two processes: the other one has died
        return self._soon(self._lost, error)

    def _on_signal(self, body: bytes) -> None:
        self._soon(self._heard, body)

    def _on_end(self) -> None:
        self._soon(self._ended)

    def _soon(self, step: Callable[..., object], *arguments: object) -> bool:
        try:
            self._token.run_sync_soon(step, *arguments)
        except trio.RunFinishedError:
            return False
        return True

    # -- in trio's thread

    def is_lost(self) -> bool:
        """Whether the stream waits for another carrier."""
        return self._lost_at is not None and self.stream.driver.suspended

    def _lost(self, error: OSError) -> None:
        if self._lost_at is None:
            self._lost_at = trio.current_time()
        if self._node.closing:
            self.stream.give_up(error)
            return
        if self._is_of_the_way(error):
            self._node.network.suspect()
        self._node.nursery.start_soon(self._keep, error)

    @abstractmethod
    async def _keep(self, error: OSError) -> None:
        """See to it that the stream gets another carrier, or ends with `error`."""

    @abstractmethod
    def tend(self, now: float) -> None:
        """Called a few times a second, with the time."""

    def patience(self, error: OSError) -> float:
        """Seconds to wait for another carrier."""
        return self.linger if self._is_of_the_way(error) else min(self.linger, ABRUPT_LINGER)

    @property
    def linger(self) -> float:
        """Seconds for which both allow the stream to be without a path."""
        return min(self._node.linger, self.stream.linger)

    def _is_of_the_way(self, error: OSError) -> bool:
        """Whether it was certainly something between the two nodes that failed: then that may be renewed."""
        return error.errno in _SILENT or self.stream.path.kind == "relay"

    def _ended(self) -> None:
        self.stream.tell_end()
        self._forget()
        if self._lost_at is not None and not self._node.closing:
            with suppress(OSError):
                self._tell_closed()

    @abstractmethod
    def _tell_closed(self) -> None:
        """Say CLOSED to the other end by the broker, once: there is no path for a RESET."""

    def closed_there(self) -> None:
        """The other end has said CLOSED."""
        if self.is_lost():
            self.stream.give_up(ConnectionResetError(errno.ECONNRESET, "the peer has ended the connection"))

    def say(self, sealed: bytes) -> bool:
        """Tell the other node something by the stream; False where it has no carrier now."""
        return self.stream.signal(sealed)

    def _heard(self, sealed: bytes) -> None:
        """The other node says something."""
        path = self.stream.path
        host = path.remote[0] if path.kind != "relay" else self.observed_host
        delivery = Delivery(self.key, b"", self.stream.peer.name, sealed, host, (), self.say)
        self._node.introductions.take(delivery)

    @property
    @abstractmethod
    def observed_host(self) -> str:
        """Where the broker saw the other end last."""

    def moved(self, carrier: Carrier, position: int, path: PathInfo, reason: str) -> None:
        """Go on over `carrier`. Raises BadMessage."""
        now = trio.current_time()
        self.stream.attach(carrier, position, path)
        if not self.stream.is_held:
            self._node.nursery.start_soon(self.stream.driver.catch_up)
        report = self.stream.report
        pause = 0.0 if self._lost_at is None else now - self._lost_at
        self._lost_at = None
        report.moved(Move(now - report.started, path, reason, pause))
