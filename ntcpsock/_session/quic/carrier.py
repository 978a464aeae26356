"""A session's carrier over QUIC, and the handshakes that end in one. Shaped like `ntcpsock._session.tls`.

The peer's certificate is pinned by its fingerprint as over TLS, and one bidirectional stream carries the
session's frames, BIND first.
"""

from __future__ import annotations

import errno
import importlib
import os
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio

from ntcpsock._address import Endpoint
from ntcpsock._session.datagram_path import DatagramPath
from ntcpsock._session.tls import Certificate

if TYPE_CHECKING:
    from ntcpsock._session.quic.driver import QuicDriver

# Seconds without a word from the peer after which the connection is over: RFC 9000 section 10.1.
IDLE_TIMEOUT: Final = 60.0
# Seconds between two signs of life: less than the shortest time-outs of NATs for UDP (RFC 4787 REQ-5 allows none
# below two minutes, and many have 30 s).
KEEP_ALIVE: Final = 15.0
# Round-trip time that is assumed where nothing is known: RFC 9002 section 6.2.2.
INITIAL_ROUND_TRIP: Final = 0.333


# Whoever forks waits until nothing is being loaded: a child would have the lock of a half-loaded module, and nobody who
# lets go of it.
_loading = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_loading.acquire, after_in_parent=_loading.release, after_in_child=_loading.release
    )


async def prepare() -> None:
    """Load qh3 in a thread (some 80 ms) and use it once, so that the first handshake does not wait for it."""
    await trio.to_thread.run_sync(_load)


def _load() -> None:
    with _loading:
        importlib.import_module("ntcpsock._session.quic.driver")
        importlib.import_module("ntcpsock._session.quic.machine").warm_up()


async def quic_client_handshake(
    path: DatagramPath,
    fingerprint: bytes,
    *,
    nursery: trio.Nursery,
    keep_alive: float = KEEP_ALIVE,
    round_trip: float = INITIAL_ROUND_TRIP,
) -> QuicCarrier:
    """QUIC as client over `path`, which belongs to the carrier from here on.

    nursery: runs the task of the connection, for its whole life; cancelled, it resets the connection.
    keep_alive: seconds between two signs of life. round_trip: what is known of the path, in seconds.

    Raises IdentityMismatch where the server's certificate is not the one of `fingerprint` (nothing but the
    handshake has been sent then), ConnectionError or another OSError where the handshake fails. The path is
    closed after any failure, cancellation included. The caller sets the deadline.
    """
    from ntcpsock._session.quic.driver import QuicDriver
    from ntcpsock._session.quic.machine import QuicMachine

    machine = QuicMachine.client(
        fingerprint,
        trio.current_time(),
        datagram_size=path.max_datagram_size,
        idle_timeout=IDLE_TIMEOUT,
        initial_rtt=round_trip,
        is_ipv6=path.remote.is_ipv6,
    )
    return await _establish(QuicDriver(path, machine, keep_alive), nursery)


async def quic_server_handshake(
    path: DatagramPath,
    certificate: Certificate,
    *,
    nursery: trio.Nursery,
    keep_alive: float = KEEP_ALIVE,
    round_trip: float = INITIAL_ROUND_TRIP,
) -> QuicCarrier:
    """QUIC as server over `path`; everything else as in `quic_client_handshake`.

    That the client may come in is not known yet: `receive_bind` says who claims to be there.
    """
    from ntcpsock._session.quic.accepting import accept_client
    from ntcpsock._session.quic.driver import QuicDriver

    try:
        machine = await accept_client(path, certificate, IDLE_TIMEOUT, round_trip)
        driver = QuicDriver(path, machine, keep_alive)
    except BaseException:
        path.close()
        raise
    return await _establish(driver, nursery)


async def _establish(driver: QuicDriver, nursery: trio.Nursery) -> QuicCarrier:
    machine = driver.machine
    nursery.start_soon(driver.run)
    try:
        while not machine.handshake_done:
            if machine.error is not None:
                raise machine.error
            await driver.wait()
        return QuicCarrier(driver)
    except BaseException:
        driver.close(abort=True)
        raise


class QuicCarrier:
    """QUIC over a datagram path, after the handshake. See `ntcpsock._session.carrier.Carrier` for tries and waits."""

    has_unsent = False  # what was taken is the driver's business

    def __init__(self, driver: QuicDriver) -> None:
        self._driver = driver
        self._machine = driver.machine
        self._closed = False
        self._interrupts = 0

    @property
    def path(self) -> DatagramPath:
        return self._driver.path

    @property
    def kernel_socket(self) -> socket.socket | None:
        """The path's UDP socket where it has one of its own: for its options, and for forked children to close."""
        found = getattr(self._driver.path, "socket", None)
        return found if isinstance(found, socket.socket) else None

    @property
    def local(self) -> Endpoint:
        return self._driver.path.local

    @property
    def remote(self) -> Endpoint:
        return self._driver.path.remote

    def try_send(self, data: bytes | memoryview) -> int:
        self._check_open()
        if not len(data):
            return 0
        taken = self._machine.send(data)
        if taken:
            self._driver.flush()
        return taken

    def try_receive_into(self, buffer: memoryview) -> int | None:
        self._check_open()
        machine = self._machine
        count = machine.receive_into(buffer)
        if count:
            if machine.wants_to_speak:
                self._driver.flush()
            return count
        if machine.error is not None:
            raise machine.error
        return 0 if machine.ended else None

    @property
    def ended_cleanly(self) -> bool:
        return self._machine.error is None

    def pending(self) -> int:
        return self._machine.readable

    async def wait_writable(self) -> None:
        await self._wait(lambda: self._machine.has_room)

    async def wait_readable(self) -> None:
        machine = self._machine
        await self._wait(lambda: bool(machine.readable or machine.ended or machine.error is not None))

    async def _wait(self, is_ready: object) -> None:
        assert callable(is_ready)
        self._check_open()
        if is_ready():
            await trio.lowlevel.checkpoint()
            return
        interrupts = self._interrupts
        while not is_ready():
            await self._driver.wait()
            if self._closed or interrupts != self._interrupts:
                raise trio.ClosedResourceError("this carrier was closed")

    def watch_readable(self, callback: Callable[[], None]) -> Callable[[], None]:
        """See `ntcpsock._session.carrier.WatchableCarrier`."""
        machine, interrupts = self._machine, self._interrupts

        def look() -> None:
            is_ready = machine.readable or machine.ended or machine.error is not None
            if is_ready or self._closed or interrupts != self._interrupts:
                stop()
                callback()

        def stop() -> None:
            self._driver.on_wake = None

        self._driver.on_wake = look
        look()
        return stop

    def unacknowledged(self) -> int | None:
        return None if self._closed else self._machine.unacknowledged()

    # -- datagrams

    @property
    def max_datagram_payload(self) -> int:
        """The most bytes that `try_send_datagram` takes."""
        return self._machine.max_datagram_payload

    @property
    def dropped_datagrams(self) -> int:
        """Datagrams that arrived and were dropped, because they were not fetched in time."""
        return self._machine.dropped_datagrams

    def try_send_datagram(self, data: bytes, *, more: bool = False) -> bool:
        """Send one datagram, which may get lost; False where too many wait. EMSGSIZE, or the carrier's error.

        more: others follow at once; what congestion control lets go leaves together, with `flush_datagrams`."""
        self._check_open()
        taken = self._machine.send_datagram(data)
        if more and not taken:
            self._driver.flush()
            return self._machine.send_datagram(data)
        if taken and not more:
            self._driver.flush()
        return taken

    def flush_datagrams(self) -> None:
        """Send what has waited for more."""
        self._check_open()
        self._driver.flush()

    async def wait_datagram_room(self) -> None:
        """Until `try_send_datagram` takes one, or raises."""
        await self._wait(lambda: self._machine.has_datagram_room)

    def try_receive_datagrams(self) -> list[bytes]:
        """Those that have arrived, oldest first; the carrier's error where there are none and none can come."""
        self._check_open()
        datagrams = self._machine.take_datagrams()
        if not datagrams:
            if self._machine.error is not None:
                raise self._machine.error
            if self._machine.ended:
                raise ConnectionResetError(errno.ECONNRESET, "the peer has closed the connection")
        return datagrams

    async def wait_datagram(self) -> None:
        """Until `try_receive_datagrams` gives some, or raises."""
        machine = self._machine
        await self._wait(lambda: machine.has_datagrams or machine.ended or machine.error is not None)

    # -- ending

    def interrupt(self) -> None:
        self._interrupts += 1
        self._driver.wake()

    def close(self, *, abort: bool = False) -> None:
        if not self._closed:
            self._closed = True
            # As TCP does: what nobody will read any more is no orderly end.
            self._driver.close(abort=abort or self._machine.readable > 0)
            self.interrupt()

    async def aclose(self) -> None:
        """`close`, with a checkpoint. The connection's task still delivers what was sent."""
        self.close()
        await trio.lowlevel.checkpoint()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this carrier was closed")
