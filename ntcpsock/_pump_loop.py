"""The thread that carries the bytes of all connections: one epoll, no tasks.

Waking a task of trio's costs more than everything else that has to happen for a small message, and a round
trip wakes four: measured, a byte there and back took 230 us through two tasks a connection and takes 80 us
through this loop, of which 40 are those of three plain hops. The engine's thread opens and closes
connections; meanwhile their frames are moved here. What the loop lets go of (a reset, or the end of both
directions) the engine closes in its own way.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeGuard

import trio

from ntcpsock._broken import is_of_the_network
from ntcpsock._pump import Stream, abort, close_ends, prepare_hop, tune
from ntcpsock._pump_link import BUFFER, IN, NEARLY_FULL, Link
from ntcpsock._session.liveness import INTERVAL
from ntcpsock._session.machine import WINDOW
from ntcpsock._session.stream import NTCPStream
from ntcpsock._session.tls import Carrier

log = logging.getLogger("ntcpsock")

# Free buffers that are kept. Two directions need one each; more are in use only while peers are slow, and for what they
# have not confirmed: a window of it for each connection at work, and what one has done with the next one takes.
_FREE_BUFFERS: Final = 4
_FREE_BUFFERS_AT_WORK: Final = WINDOW // NEARLY_FULL + _FREE_BUFFERS
# How often finishing links are looked at, in seconds.
_TICK: Final = 0.01
# The last bytes, the reset behind them, and both again at a peer in this process: each takes a turn of the loop or two.
_TURNS_OF_A_RESET: Final = 8
# How long somebody waits for that: it takes some 50 us, and a busy machine is slower.
_TURNS_DEADLINE: Final = 1.0
# Events taken from the kernel at once; the rest come the next time.
_EVENTS: Final = 64

_LOOPBACK: Final = ("127.", "::1")


class PumpLoop:
    """The thread and its epoll. It starts with the first connection; `stop` ends it, and `close` in a child."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._bell, IN)
        self._lock = threading.Lock()
        self._orders: deque[Callable[[], None]] = deque()
        self._stopped = False
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._links: set[Link] = set()
        self._finishing: set[Link] = set()
        self._again: list[Link] = []
        self._stirred: set[Link] = set()
        self._look_at = 0.0
        self._free: list[memoryview] = []
        self._waiting: list[tuple[int, threading.Event]] = []
        self._thread = threading.Thread(target=self._run, name="ntcpsock-pump", daemon=True)
        self._thread.start()

    # -- in any thread

    def soon(self, order: Callable[[], None]) -> None:
        """Run `order` in the loop's thread; at once, here, when the loop has stopped."""
        with self._lock:
            stopped = self._stopped
            if not stopped:
                self._orders.append(order)
                os.eventfd_write(self._bell, 1)
        if stopped:
            order()

    def add(self, link: Link) -> None:
        self.soon(lambda: self._add(link))

    def finish(self, link: Link, keep_hop: bool) -> None:
        self.soon(lambda: self._finish(link, keep_hop))

    def end(self, link: Link) -> None:
        self.soon(lambda: link.end(clean=False))

    def wait_turns(self, turns: int) -> None:
        """Until the loop has looked at the kernel's events so many times, or for a second."""
        turned = threading.Event()
        self.soon(lambda: self._waiting.append((turns, turned)))
        if not self._stopped:
            turned.wait(_TURNS_DEADLINE)

    def stop(self) -> None:
        """End all links and the thread; what was under way is lost."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
            os.eventfd_write(self._bell, 1)
        self._thread.join()
        self.close()

    def close(self) -> None:
        """Close the loop's own descriptors: after the end, or in a forked child, which has no such thread."""
        self._stopped = True
        self._epoll.close()
        bell, self._bell = self._bell, -1
        if bell >= 0:
            os.close(bell)

    # -- in the loop's thread

    def _add(self, link: Link) -> None:
        if self._stopped:
            link.end(clean=False)
            return
        self._links.add(link)
        self._handlers[link.hop_descriptor] = link.on_hop
        self._handlers[link.carrier_descriptor] = link.on_carrier
        self._guard(link, link.attach, self)

    def _finish(self, link: Link, keep_hop: bool) -> None:
        self._finishing.add(link)
        self._guard(link, link.finish, keep_hop, time.monotonic())

    def _run(self) -> None:
        try:
            while not self._stopped:
                self._turn()
        except Exception as error:
            log.error("the pump stopped", exc_info=error)
        with self._lock:
            self._stopped = True
        self._obey()
        for link in tuple(self._links):
            link.end(clean=False)
        self._links.clear()

    def _turn(self) -> None:
        handlers = self._handlers
        for descriptor, mask in self._epoll.poll(self._patience(), _EVENTS):
            handler = handlers.get(descriptor)
            if handler is not None:
                try:
                    handler(mask)
                except Exception as error:  # one connection's fault must not end the others
                    self._fail(handler.__self__, error)  # type: ignore[attr-defined]
        if self._again:
            again, self._again = self._again, []
            for link in again:
                self._guard(link, link.go_on)
        if self._orders:
            self._obey()
        if self._waiting:
            self._count_turn()
        if self._finishing:
            now = time.monotonic()
            for link in tuple(self._finishing):
                self._guard(link, link.tick, now)
        if self._stirred:
            self._look()

    def _look(self) -> None:
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + INTERVAL
            for link in tuple(self._stirred):
                self._guard(link, self._look_at_link, link, now)

    def _look_at_link(self, link: Link, now: float) -> None:
        if not link.look(now):
            self._calm(link)

    def _calm(self, link: Link) -> None:
        self._stirred.discard(link)
        if not self._stirred:
            del self._free[_FREE_BUFFERS:]

    def _patience(self) -> float | None:
        if self._again or self._waiting:
            return 0
        if self._finishing:
            return _TICK
        return INTERVAL if self._stirred else None

    def _count_turn(self) -> None:
        left = [(turns - 1, turned) for turns, turned in self._waiting]
        self._waiting = [waiter for waiter in left if waiter[0] > 0]
        for turns, turned in left:
            if turns <= 0:
                turned.set()

    def _obey(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        while self._orders:
            self._orders.popleft()()

    def _guard(self, link: Link, step: Callable[..., None], *args: Any) -> None:
        try:
            step(*args)
        except Exception as error:
            self._fail(link, error)

    def _fail(self, link: Link, error: Exception) -> None:
        log.error("a connection failed", exc_info=error)
        link.end(clean=False)

    # -- what links ask for (ntcpsock._pump_link.Host)

    def watch(self, descriptor: int, before: int | None, wanted: int | None) -> None:
        if before is None:
            if wanted is not None:
                self._epoll.register(descriptor, wanted)
        elif wanted is None:
            with suppress(OSError):  # closed already
                self._epoll.unregister(descriptor)
        else:
            self._epoll.modify(descriptor, wanted)

    def again(self, link: Link) -> None:
        self._again.append(link)

    def stir(self, link: Link) -> None:
        self._stirred.add(link)

    def forget(self, link: Link) -> None:
        """The link has ended."""
        self._links.discard(link)
        self._finishing.discard(link)
        self._calm(link)
        for descriptor, handler in (
            (link.hop_descriptor, link.on_hop),
            (link.carrier_descriptor, link.on_carrier),
        ):
            if self._handlers.get(descriptor) == handler:
                del self._handlers[descriptor]

    def take(self) -> memoryview:
        return self._free.pop() if self._free else memoryview(bytearray(BUFFER))

    def give_back(self, buffer: memoryview) -> None:
        if len(self._free) < (_FREE_BUFFERS_AT_WORK if self._stirred else _FREE_BUFFERS):
            self._free.append(buffer)

    def recycle(self, buffer: bytearray) -> None:
        self.give_back(memoryview(buffer))


class LoopPump:
    """Carries one connection in the loop's thread; the same interface as `ntcpsock._pump.Pump`."""

    def __init__(self, hop: socket.socket, stream: NTCPStream, loop: PumpLoop) -> None:
        prepare_hop(hop)
        self.hop = hop
        self.stream = stream
        self._loop = loop
        self._ended = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self._keep_hop = False
        assert isinstance(stream.carrier, Carrier)
        self.carrier = stream.carrier
        if self.carrier.remote.host.startswith(_LOOPBACK):
            tune(self.carrier.socket)  # the path is a loopback hop too, and no other one is judged here
        self._link = Link(hop, stream.driver, self.carrier, self._on_end, stream.path.rtt or 0.0)

    async def run(self) -> bool:
        """Pump until the end. Owns both ends: they are closed, or reset, on every way out but one: True, where the
        stream is to go on over another carrier."""
        self.stream.is_held = True
        try:
            driver = self.stream.driver
            await driver.acquire()
            driver.lock.release()  # no task is amid a frame
            if driver.suspended or driver.carrier is not self.carrier:  # meanwhile
                self._link.left = True
                return True
            self._loop.add(self._link)
            self.stream.holder = self
            await self._ended.wait()
            if self._link.left:
                return True
        except BaseException:
            self._loop.end(self._link)
            with trio.CancelScope(shield=True):
                await self._ended.wait()  # not long: the loop's thread never waits for a peer
            self._link.clean = self._link.left = False
            raise
        finally:
            self.stream.holder = None
            if not self._link.left:
                await self._close_ends()
        return False

    async def _close_ends(self) -> None:
        driver = self.stream.driver
        await close_ends(
            self.hop,
            self.stream,
            clean=self._link.clean,
            keep_hop=self._keep_hop,
            failure=driver.error or driver.send_error,
        )

    def soon(self, step: Callable[[], None]) -> None:
        """As `ntcpsock._session.stream.Holder`."""

        def step_and_speak() -> None:
            if not self._link.ended:
                step()
                self._link.speak()

        self._loop.soon(step_and_speak)

    async def let_go(self) -> None:
        """As `ntcpsock._session.stream.Holder`."""
        self._loop.soon(self._suspend)
        with trio.CancelScope(shield=True):
            await self._ended.wait()  # not long: the loop's thread never waits for a peer

    def _suspend(self) -> None:
        """In the loop's thread. Suspended first: whoever wakes at the pump's end looks whether there is a carrier."""
        if not self._link.ended:
            self.stream.driver.suspend()
            self._link.leave()

    def finish(self, *, keep_hop: bool) -> None:
        """As `Pump.finish`."""
        self._keep_hop = keep_hop
        self._loop.finish(self._link, keep_hop)

    def limit_outward(self, size: int) -> None:
        """In any thread: take no more than so many bytes from the program at once."""
        self._link.outward_step = size

    def limit_inward(self, size: int) -> None:
        """In any thread: take no more than so many bytes from the peer at once."""
        self._link.inward_step = size

    def check(self) -> None:
        """Nothing: the loop is told of a reset by the kernel."""

    def wait_passed(self) -> None:
        """In a program's thread: until what it has just done at its end has gone on its way to the peer."""
        self._loop.wait_turns(_TURNS_OF_A_RESET)

    def _on_end(self) -> None:
        """In the loop's thread."""
        self._loop.forget(self._link)
        driver = self.stream.driver
        if (
            not self._link.clean
            and not self._link.left
            and not is_of_the_network(driver.error or driver.send_error)
        ):
            # At once, as a kernel does it; the engine finds both ends closed.
            driver.closed = True
            driver.abort()
            if not self._keep_hop:
                abort(self.hop)
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._ended.set)


def suits_loop(stream: Stream) -> TypeGuard[NTCPStream]:
    """Whether the loop can move the frames of `stream`: TLS over a socket of the kernel's."""
    return (
        hasattr(select, "epoll")
        and hasattr(os, "eventfd")
        and isinstance(stream, NTCPStream)
        and isinstance(stream.carrier, Carrier)
        and not stream.driver.closed
    )
