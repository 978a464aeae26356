"""Moves the datagrams between one QUIC machine and its path: one task, and whoever sends.

The task waits for the path and the machine's timer. Sending happens at once, in the caller's task: a wake-up
costs more than a packet.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import trio

from ntcpsock._address import Endpoint
from ntcpsock._freed import freed
from ntcpsock._session.datagram_path import DatagramPath
from ntcpsock._session.quic.configuration import ABORT, DONE
from ntcpsock._session.quic.machine import QuicMachine
from ntcpsock._session.socket_path import SocketPath

# Datagrams in one system call, and in one turn before others get theirs.
BATCH: Final = 45
TURN: Final = 450
# Seconds that a closed connection goes on without progress to bring out what was sent before.
LINGER: Final = 5.0
# After an ICMP error the peer has so long to be heard of: seconds, and at least three round trips.
UNREACHABLE_PATIENCE: Final = 1.0
# Probe time-outs after which large datagrams are suspected of getting lost for their size.
BLACK_HOLE_TIMEOUTS: Final = 3
# Bytes that a connection needs less while it is dormant, at least.
CORE: Final = 28 * 1024
# The core's clock counts nanoseconds, ours has the digits of a float.
SHORTEST_WAIT: Final = 1e-6

#: What paths over a socket of their own have besides: buffers, and the size of each one's datagrams.
Batches = Callable[[], list[tuple[bytes, int]]]


@runtime_checkable
class Tended(Protocol):
    """A path that has something to do of its own now and then: see `ntcpsock._traversal.checks.driver`."""

    def tend_yourself(self, on_news: Callable[[], None]) -> None: ...
    def next_timeout(self) -> float | None: ...
    def tend(self) -> None: ...


@dataclass
class _Move:
    """The peer's packets come from `remote` now. ping: what was sent there, and where else never; at: when."""

    remote: Endpoint
    ping: int
    at: float


class QuicDriver:
    """path, machine: the two it joins. `run` must be a task for as long as there is a connection."""

    def __init__(self, path: DatagramPath, machine: QuicMachine, keep_alive: float) -> None:
        self.path = path
        self.machine = machine
        self.keep_alive = keep_alive
        self.moves = 0  # times that the peer's address has changed
        self.on_wake: Callable[[], None] | None = None  # called when something may have changed
        self._batches: Batches | None = getattr(path, "try_receive_batches", None)
        self._changed = trio.lowlevel.ParkingLot()
        self._waiting: trio.CancelScope | None = None
        self._unsent: list[bytes] = []
        self._more = False
        self._closing = False
        self._progress = (0.0, 0)
        self._heard = trio.current_time()
        self._said = self._heard
        self._lost_since: float | None = None
        self._move: _Move | None = None
        self._is_dormant = False
        self._tended = path if isinstance(path, Tended) else None
        self._tend_at = math.inf
        if isinstance(path, SocketPath):
            path.on_stranger = self._on_stranger

    # -- in anybody's task

    def flush(self) -> None:
        """Send what the machine has, as far as path and congestion control let it go."""
        now = trio.current_time()
        try:
            self._flush(now)
        except (OSError, trio.ClosedResourceError) as error:
            self._break(error)
        self._rearm()

    def close(self, *, abort: bool) -> None:
        """The application is done: bring out what was sent (or, with abort, say so at once). Does not wait."""
        if self._closing:
            return
        self._closing = True
        self._progress = (trio.current_time(), self.machine.unacknowledged())
        if abort or not self.machine.unacknowledged():
            self.machine.close(ABORT if abort else DONE)
            self.flush()
        self.wake()
        self._wake_task()

    async def wait(self) -> None:
        """Until something may have changed."""
        await self._changed.park()

    def wake(self) -> None:
        self._changed.unpark_all()
        if self.on_wake is not None:
            self.on_wake()

    # -- the task

    async def run(self) -> None:
        """Until the connection is over; then the path is closed. Raises nothing but cancellation."""
        try:
            if self._tended is not None:
                self._tended.tend_yourself(self._on_news)
                self._on_news()
            while not self._turn():
                deadline = self._deadline()
                with trio.CancelScope(deadline=deadline) as self._waiting:
                    if self._more:
                        await trio.lowlevel.checkpoint()
                    elif self._unsent:
                        await self._wait_both()
                    else:
                        await self.path.wait_readable()
                self._waiting = None
        except (OSError, trio.ClosedResourceError) as error:
            self._break(error)
        finally:
            self._end()

    def _turn(self) -> bool:
        """Take what has arrived, do what is due, send; whether the connection is over."""
        machine = self.machine
        now = self._receive()
        if self._tended is not None and self._tend_at <= now:
            self._tended.tend()
            self._on_news()
        timer = machine.next_timer()
        if timer is not None and timer <= now:
            machine.handle_timer(now)
        self._keep_alive(now)
        if self._move is not None:
            self._follow()
        if machine.timeouts >= BLACK_HOLE_TIMEOUTS:
            machine.lower_datagram_size()
        if self._closing and not machine.closed:
            self._linger(now)
        self._watch_errors(now)
        self._flush(now)
        self._watch_dormancy(now)
        self.wake()
        if machine.error is not None and not machine.closed:
            machine.close(ABORT)  # so that what goes on arriving gets an answer for a while
            self._flush(now)
        return machine.is_over

    def _receive(self) -> float:
        """Give the machine what is here; when that was."""
        machine, accepted = self.machine, 0
        if self._batches is not None:
            batches = self._batches()
        else:
            batches = [(data, len(data) or 1) for data in self.path.try_receive()]
        # While they were fetched a stranger may have been answered, and his answer may be among them: to the machine
        # nothing is answered before it was sent.
        now = trio.current_time()
        for data, size in batches:
            accepted += machine.receive_in_order(data, size, now)
        if accepted:
            self._heard = now
            self._lost_since = None
        return now

    def _flush(self, now: float) -> None:
        if self._unsent:
            del self._unsent[: self.path.try_send(self._unsent)]
            if self._unsent:
                return
        count = 0
        while count < TURN:
            datagrams = self.machine.datagrams_to_send(now, BATCH)
            if not datagrams:
                self._more = False
                return
            self._said = now
            count += len(datagrams)
            sent = self.path.try_send(datagrams)
            if sent < len(datagrams) or len(datagrams) < BATCH:
                self._unsent = datagrams[sent:]
                self._more = False
                return
        self._more = True

    def _on_stranger(self, data: bytes, remote: Endpoint) -> None:
        """A datagram from another address than the peer's. If it is the peer's, its address has changed, perhaps: a
        NAT has forgotten it. A PING to there whose answer comes back proves that it is there (as the PATH_CHALLENGE
        of RFC 9000 section 8.2 would; no more is sent there before than three times what came from there)."""
        assert isinstance(self.path, SocketPath)
        now, machine = trio.current_time(), self.machine
        if not machine.handshake_done or not machine.receive(data, len(data) or 1, now):
            self.path.dropped += 1
            return
        self._heard = now
        patience = 2 * (machine.round_trip or 0.1)
        if self._move is not None and self._move.remote == remote and now < self._move.at + patience:
            return
        machine.forget_pings()
        ping = machine.ping(expect=True)
        probe = machine.datagrams_to_send(now, 1)
        if probe and len(probe[0]) <= 3 * len(data):
            self.path.try_send_to(probe[0], remote)
            self._move = _Move(remote, ping, now)
        else:
            # One that the old address answers would prove nothing.
            machine.forget_pings()
            self._unsent += probe

    def _follow(self) -> None:
        if self._move is not None and self.machine.is_answered(self._move.ping):
            assert isinstance(self.path, SocketPath)
            self.path.retarget(self._move.remote)
            self.moves += 1
            self._move = None

    def _keep_alive(self, now: float) -> None:
        if self.machine.handshake_done and now >= self._said + self.keep_alive and not self.machine.closed:
            self._said = now
            self.machine.say_alive()
            freed.give_back(now)

    def _watch_dormancy(self, now: float) -> None:
        was_dormant, self._is_dormant = self._is_dormant, self.machine.is_dormant
        if self._is_dormant and not was_dormant:
            freed.add(CORE)
            freed.give_back(now)

    def _linger(self, now: float) -> None:
        """Close as soon as everything has arrived, or nothing moves any more."""
        left = self.machine.unacknowledged()
        if left != self._progress[1]:
            self._progress = (now, left)
        if not left or self.machine.error is not None or now >= self._progress[0] + LINGER:
            self.machine.close(ABORT if left else DONE)

    def _watch_errors(self, now: float) -> None:
        """ICMP says that nobody is there, and nobody is heard: believe it after a while."""
        error: OSError | None = getattr(self.path, "error", None)
        if error is None:
            self._lost_since = None
        elif self._lost_since is None:
            self._lost_since = now
            self.machine.ping()  # one who is there after all answers
        elif now >= self._lost_since + self._unreachable_patience():
            self.machine.fail(error)

    def _unreachable_patience(self) -> float:
        return max(UNREACHABLE_PATIENCE, 3 * (self.machine.round_trip or 0.0))

    def _deadline(self) -> float:
        deadline = self.machine.next_timer()
        wanted = self._tend_at if deadline is None else min(deadline, self._tend_at)
        if self.machine.handshake_done and not self.machine.closed:
            wanted = min(wanted, self._said + self.keep_alive)
        if self._closing and not self.machine.closed:
            wanted = min(wanted, self._progress[0] + LINGER)
        if self._lost_since is not None:
            wanted = min(wanted, self._lost_since + self._unreachable_patience())
        # What is due already has been done, but for the last fraction of a microsecond.
        return max(wanted, trio.current_time() + SHORTEST_WAIT)

    async def _wait_both(self) -> None:
        async with trio.open_nursery() as nursery:

            async def wait(waiting: object) -> None:
                assert callable(waiting)
                await waiting()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait, self.path.wait_writable)
            nursery.start_soon(wait, self.path.wait_readable)

    def _on_news(self) -> None:
        """The path has something to do at another time."""
        assert self._tended is not None
        due = self._tended.next_timeout()
        self._tend_at = math.inf if due is None else due
        self._rearm()

    def _rearm(self) -> None:
        """The task's wait must not last longer than the machine's timer, which may have moved."""
        if self._waiting is None:
            return
        if self._unsent or self._more:
            self._waiting.cancel()
        else:
            self._waiting.deadline = self._deadline()

    def _wake_task(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()

    def _break(self, error: OSError | trio.ClosedResourceError) -> None:
        if not isinstance(error, OSError):
            error = ConnectionAbortedError(errno.ECONNABORTED, "the path was closed")
        self.machine.fail(error)
        self.wake()
        self._wake_task()

    def _end(self) -> None:
        machine = self.machine
        if not machine.is_over:
            # The nursery ends, or the path has broken: the last word, if it can still be said.
            machine.fail(ConnectionAbortedError(errno.ECONNABORTED, "this end was shut down"))
            machine.close(ABORT)
            with suppress(OSError, trio.ClosedResourceError):
                self._flush(trio.current_time())
        self.path.close()
        self.wake()
