"""The trio side of the checks: one dial on one UDP port, and the path to the peer that comes of it.

The path can be used from the beginning. What is sent before any pair works goes to where the peer most probably is,
beside the first check, and is sent again when the peer has been heard from elsewhere: so the first packet of a
handshake is itself the punch. What is received is taken from where the peer has proven itself, and nowhere else.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, cast

import trio

from ntcpsock._address import Endpoint
from ntcpsock._session.datagram_path import SAFE_DATAGRAM_SIZE
from ntcpsock._session.socket_path import SocketPath
from ntcpsock._traversal.checks.machine import ChecksMachine
from ntcpsock._traversal.checks.pairs import Heard, Lost, Nominated, Outgoing, Valid, Way
from ntcpsock._traversal.checks.port import UdpPort
from ntcpsock._traversal.punch.driver import source_address

if TYPE_CHECKING:
    import socket

# Datagrams that are kept until they are read, before the path has a socket of its own.
_LONGEST_QUEUE = 256

# Of what was sent before anything came back: kept, to be sent again where the peer turns up.
_MOST_IN_FLIGHT = 4
_MOST_REPEATS = 8

# Ways that the first datagrams take when none has been heard from.
MAX_GUESSES = 2

# Seconds after which a writer that met a full socket tries again.
_WRITE_PAUSE = 0.005

# Seconds in which something must come back before there are doubts about the path.
SHORTEST_DOUBT = 1.0


class PunchedPath:
    """A DatagramPath over a port and its checks. `run` drives the checks, as a task of a nursery that outlives the
    path; `close` ends both.

    guesses: the ways of what is sent first; rtt: of the path, in seconds; port_is_ours: whether the port is closed with
    the path.
    """

    def __init__(
        self,
        port: UdpPort,
        machine: ChecksMachine,
        fragment: str,
        *,
        guesses: Sequence[Way] = (),
        rtt: float = 0.1,
        port_is_ours: bool = False,
    ) -> None:
        self.fragment = fragment
        self.machine = machine
        self._port = port
        self._port_is_ours = port_is_ours
        self._rtt = rtt
        self._guesses = tuple(guesses)[:MAX_GUESSES]
        self._alive: dict[Way, None] = {}
        self._current: Way | None = None
        # Both are empty while the path has a socket of its own.
        self._queue: list[bytes] = []
        self._flight: list[bytes] = []
        self._repeats = 0
        self._has_received = False
        self._settled = False
        self._socket: SocketPath | None = None
        self._connected: Way | None = None
        self._error: OSError | None = None
        self._closed = False
        self._interrupts = 0
        # Made by who waits: set whenever a wait may be over, and whenever the machine has something new.
        self._readable: trio.Event | None = None
        self._news: trio.Event | None = None
        self._tender: Callable[[], None] | None = None
        self._sent_at = -math.inf
        self._received_at = -math.inf
        #: Datagrams that found no room.
        self.dropped = 0
        #: Our own address as the peer sees it, of the pair that was valid last; the round trip of its check.
        self.mapped: Endpoint | None = None
        self.measured_rtt: float | None = None

    # -- the checks ------------------------------------------------------------------------------

    def start(self) -> None:
        """Take part in what the port receives, and send the first checks at once."""
        self._port.register(self)
        self._turn()

    async def run(self) -> None:
        """Until the path is closed, or somebody else tends it. Cancelled, it closes the path."""
        try:
            while not self._closed:
                news = self._news = trio.Event()
                if self._tender is not None:
                    return
                self._turn()
                deadline = self.machine.next_timeout()
                with trio.move_on_at(math.inf if deadline is None else deadline):
                    await news.wait()
        finally:
            self._news = None
            if self._tender is None:
                self.close()

    def tend_yourself(self, on_news: Callable[[], None]) -> None:
        """The caller calls `tend` at `next_timeout` from now on, and closes the path; `run` ends, for one task is
        enough. on_news: called when `next_timeout` has changed."""
        self._tender = on_news
        self._notify()

    def next_timeout(self) -> float | None:
        """When `tend` is to be called; None for never."""
        return self.machine.next_timeout()

    def tend(self) -> None:
        """Do what is due of the checks."""
        self._turn()

    def expects(self, transaction_id: bytes) -> bool:
        return self.machine.expects(transaction_id)

    def take_check(self, base: int, data: bytes, source: Endpoint) -> None:
        """A STUN message from the port."""
        self.machine.handle_datagram(base, data, source, trio.current_time())
        self._turn()
        self._notify()

    def _turn(self) -> None:
        """Let the machine do what is due, and do what it says."""
        if self._closed:
            return
        self.machine.handle_timeout(trio.current_time())
        while (event := self.machine.next_event()) is not None:
            if isinstance(event, Lost):
                self._fail(OSError(errno.ETIMEDOUT, "the peer has not answered for too long"))
            elif isinstance(event, Nominated):
                self._go_by((event.base, event.remote))
            else:
                if isinstance(event, Valid):
                    self.mapped, self.measured_rtt = event.mapped, event.rtt
                self._came_alive((event.base, event.remote), event)
        for out in self.machine.datagrams_to_send():
            self._port.send(out)

    def _came_alive(self, way: Way, event: Heard | Valid) -> None:
        is_new = way not in self._alive
        self._alive[way] = None
        self._port.claim(way, self)
        if self.machine.selected is not None:
            return  # another way that came late; where the peer has moved there, a nomination follows
        if self._current is None or (isinstance(event, Valid) and not self._has_received):
            self._current = way
        if is_new or way not in self._guesses:
            self._send_again(way)
        self._wake()

    def _send_again(self, way: Way) -> None:
        """What went out before the peer's NAT was open is lost; where it was not, the peer drops the second one."""
        if not self._has_received and self._repeats < _MOST_REPEATS:
            for data in self._flight:
                self._repeats += 1
                self._port.send(Outgoing(*way, data))

    def _go_by(self, way: Way) -> None:
        if way not in self._alive:
            self._send_again(way)
        self._alive[way] = None
        self._port.claim(way, self)
        self._current = way
        if self._settled:
            self._connect(way)
        self._wake()

    def _notify(self) -> None:
        if self._tender is not None:
            self._tender()
        if self._news is not None:
            self._news.set()

    def _wake(self) -> None:
        if self._readable is not None:
            self._readable.set()
            self._readable = None
        if self._socket is not None:
            self._socket.interrupt()

    def check(self, base: int, remote: Endpoint, kind: str, tries: int) -> None:
        """One more way to check, from now on."""
        self.machine.add_pair(base, remote, now=trio.current_time(), kind=kind, tries=tries)
        self._turn()
        self._notify()

    def guess(self, ways: Sequence[Way]) -> None:
        """Send by these ways, once more what was sent by others, as long as the peer was not heard from."""
        if self._current is None:
            self._guesses = tuple(ways)[:MAX_GUESSES]
            for way in self._guesses:
                self._send_again(way)

    def fail(self, error: OSError) -> None:
        """The way out is lost, for good."""
        self._fail(error)

    def _fail(self, error: OSError) -> None:
        self._error = self._error or error
        self._wake()

    async def _wait_change(self) -> None:
        if self._readable is None:
            self._readable = trio.Event()
        await self._readable.wait()

    async def wait_alive(self) -> None:
        """Until the peer was heard from. Raises OSError where the path is broken, ClosedResourceError when closed."""
        while not self._alive:
            self._check_usable()
            await self._wait_change()

    async def wait_nominated(self) -> None:
        """Until the checks have ended with a pair. As `wait_alive`."""
        while self.machine.selected is None:
            self._check_usable()
            await self._wait_change()

    def settle(self) -> None:
        """The peer is authenticated: give it a socket of its own as soon as the checks have ended.

        Its word may have been the last before the path was closed: then there is nothing to give."""
        if self._closed:
            return
        self._settled = True
        if self.machine.selected is not None:
            self._connect(self.machine.selected)
            self._wake()

    def _connect(self, way: Way) -> None:
        """From now on the kernel brings us what comes by `way`. Without a socket to spare all goes on by the port."""
        if way == self._connected:
            return
        base, remote = way
        before = self._socket
        try:
            # The C class is what the standard one is made of, and in a patched process that is ours.
            sock = cast("socket.socket", self._port.open_connected(base, remote))
            self._socket = SocketPath(
                sock, remote, on_stun=lambda data, source: self.take_check(base, data, source)
            )
            self._connected = way
        except OSError:
            self._socket, self._connected = None, None
        if before is not None:
            before.close()

    # -- DatagramPath ----------------------------------------------------------------------------

    @property
    def local(self) -> Endpoint:
        if self._socket is not None:
            return self._socket.local
        relayed = None if self._current is None else self._port.local_of(self._current[0])
        if relayed is not None:
            return relayed
        remote = self.remote
        if not remote.port:
            return Endpoint("0.0.0.0", self._port.number)
        return Endpoint(source_address(remote), self._port.number)

    @property
    def remote(self) -> Endpoint:
        if self._current is not None:
            return self._current[1]
        return self._guesses[0][1] if self._guesses else Endpoint("0.0.0.0", 0)

    @property
    def max_datagram_size(self) -> int:
        return SAFE_DATAGRAM_SIZE

    def try_send(self, datagrams: Sequence[bytes | memoryview]) -> int:
        self._check_usable()
        now = trio.current_time()
        if self._sent_at <= self._received_at:
            self._sent_at = now
        elif now - self._sent_at > max(SHORTEST_DOUBT, 4 * self._rtt):
            # All that has been sent since then has brought nothing back.
            self._sent_at = now
            self.machine.probe(now)
            self._notify()
        if self._socket is not None:
            return self._socket.try_send(datagrams)
        ways = self._guesses if self._current is None else (self._current,)
        for number, datagram in enumerate(datagrams):
            data = bytes(datagram)
            if not self._has_received:
                self._flight.append(data)
                del self._flight[:-_MOST_IN_FLIGHT]
            for way in ways:
                if not self._port.send(Outgoing(*way, data)):
                    return number
        return len(datagrams)

    def take_datagram(self, base: int, data: bytes, source: Endpoint) -> None:
        """What the port received from where the peer has proven itself."""
        way = base, source
        if way not in self._alive:
            return
        if len(self._queue) >= _LONGEST_QUEUE:
            self.dropped += 1
            return
        self._queue.append(data)
        if self.machine.selected is None:
            self._current = way
        self._has_received = True
        self._received_at = trio.current_time()
        self._flight.clear()
        self._wake()

    def try_receive(self) -> list[bytes]:
        return [
            data[start : start + size]
            for data, size in self.try_receive_batches()
            for start in range(0, len(data), size)
        ]

    def try_receive_batches(self) -> list[tuple[bytes, int]]:
        """As `try_receive`, uncut: buffers, and the size of each one's datagrams."""
        self._check_usable()
        batches = [(data, len(data)) for data in self._queue]
        self._queue.clear()
        if self._socket is not None:
            received = self._socket.try_receive_batches()
            if received:
                self._received_at = trio.current_time()
                batches += received
        return batches

    @property
    def error(self) -> OSError | None:
        """The last ICMP error since something came from the peer, where the checks have their doubts too, or None.

        A router that has restarted says that nobody is there, until the peer's next check has opened it again.
        """
        error = None if self._socket is None else self._socket.error
        if error is None:
            return None
        now = trio.current_time()
        self.machine.probe(now)
        self._notify()
        return error if self.machine.is_doubtful(now) else None

    async def wait_readable(self) -> None:
        if self._queue:
            self._check_usable()
            await trio.lowlevel.checkpoint()
            return
        sock = self._socket
        await self._wait(self._wait_change if sock is None else sock.wait_readable)

    async def wait_writable(self) -> None:
        sock = self._socket
        # Before that many paths share a socket, and each may wait for it.
        await self._wait(partial(trio.sleep, _WRITE_PAUSE) if sock is None else sock.wait_writable)

    async def _wait(self, wait: Callable[[], Awaitable[None]]) -> None:
        self._check_usable()
        interrupts = self._interrupts
        with suppress(
            trio.ClosedResourceError
        ):  # our own socket's: it was replaced, or there is something here
            await wait()
        if self._closed or self._interrupts != interrupts:
            raise trio.ClosedResourceError("this path was closed")

    def interrupt(self) -> None:
        self._interrupts += 1
        self._wake()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.machine.close()
        self._port.unregister(self)
        if self._socket is not None:
            self._socket.close()
        if self._port_is_ours:
            self._port.close()
        self._queue.clear()
        self.interrupt()
        self._notify()

    @property
    def is_closed(self) -> bool:
        return self._closed

    def _check_usable(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this path was closed")
        if self._error is not None and not self._queue:
            raise self._error
