"""An allocation at a TURN server as its owner sees it: a relayed address, peers that are let in, paths to them.

Its task (`run`) moves what the machine says, and gives the allocation back at the end, in a second at most, also
when it is cancelled. When the server is lost it ends too, and every path says why.
"""

from __future__ import annotations

import errno
import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Final

import trio

from ntcpsock._address import Endpoint, TurnAddress
from ntcpsock._traversal.turn.events import Allocated, Ended, PeerPermitted, PeerRefused, Redirected
from ntcpsock._traversal.turn.machine import TurnMachine
from ntcpsock._traversal.turn.path import TurnPath
from ntcpsock._traversal.turn.transport import Transport, TurnError

#: Seconds for the server to confirm that it has the allocation back.
CLOSE_DEADLINE: Final = 1.0

#: Datagrams of permitted hosts that belong to no path, kept for `receive_from`.
MAX_UNCLAIMED: Final = 64

#: What ICMP says of a way that a UDP socket may go on using.
_ICMP: Final = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPROTO)


class TurnAllocation:
    """A relayed address, and the paths to peers that use it.

    server: where it is; relayed: the address that peers send to; mapped: our own, as the server sees it. The
    numbers of what was dropped are in `dropped`.
    """

    def __init__(self, server: TurnAddress, transport: Transport, machine: TurnMachine) -> None:
        self.server = server
        self.relayed = self.mapped = Endpoint("0.0.0.0", 0)
        self.error: TurnError | None = None
        self._transport = transport
        self._machine = machine
        self._paths: dict[Endpoint, TurnPath] = {}
        self._refused: dict[str, TurnError] = {}
        self._unclaimed: deque[tuple[bytes, Endpoint]] = deque()
        self._take: Callable[[bytes, Endpoint], None] | None = None
        self._tell_lost: Callable[[OSError], None] | None = None
        self._changed = trio.Event()
        self._closing = False
        self._close_when_unused = False
        self._close_due = math.inf
        self._is_allocated = False
        self._is_broken = False
        self._redirected: Redirected | None = None
        self._sleep: trio.CancelScope | None = None

    @property
    def dropped(self) -> Counter[str]:
        """How many messages of the server, and datagrams, were not taken, by reason."""
        return self._machine.dropped

    def __repr__(self) -> str:
        return f"<TurnAllocation {self.relayed} at {self.server}>"

    # --- peers ---------------------------------------------------------------------------------

    async def permit(self, host: str) -> None:
        """Have the server let in what comes from `host` (a numeric address, any port), for as long as the allocation
        lasts. Raises TurnError where it refuses, or is lost."""
        self._check_server()
        self._refused.pop(host, None)
        if not self._machine.permit(host, trio.current_time()):
            raise TurnError(errno.ENOBUFS, "too many peers for one TURN allocation")
        self._flush()
        await trio.lowlevel.checkpoint()
        while not self._machine.is_permitted(host, trio.current_time()):
            self.check(host)
            await self._changed.wait()

    def path(self, peer: Endpoint) -> TurnPath:
        """The road to `peer`, whose host is permitted. One at a time for each peer: closing it makes room for
        another. Raises TurnError."""
        self.check(peer.host)
        if peer in self._paths:
            raise TurnError(errno.EADDRINUSE, f"there is a path to {peer} already")
        path = self._paths[peer] = TurnPath(self, peer)
        for data, source in [entry for entry in self._unclaimed if entry[1] == peer]:
            self._unclaimed.remove((data, source))
            path.deliver(data)
        self._machine.bind(peer, trio.current_time())
        self._flush()
        return path

    def try_send_to(self, datagrams: Sequence[bytes | memoryview], peer: Endpoint) -> int:
        """As `DatagramPath.try_send`, to any peer of a permitted host."""
        self.check(peer.host)
        now = trio.current_time()
        taken = 0
        try:
            for data in datagrams:
                unit = self._machine.encode(peer, data, now)
                if unit is not None and not self._transport.try_send(unit):
                    break
                taken += 1
        except OSError as error:
            self._handle_fault(error)
            self.check(peer.host)
        self._arm()
        return taken

    async def receive_from(self) -> tuple[bytes, Endpoint]:
        """A datagram from a permitted host and its source, where no path to that source is open. Raises TurnError when
        the server is lost."""
        await trio.lowlevel.checkpoint()
        while not self._unclaimed:
            self._check_server()
            await self._changed.wait()
        return self._unclaimed.popleft()

    def take_over(self, take: Callable[[bytes, Endpoint], None], lost: Callable[[OSError], None]) -> None:
        """Have `take` called with every datagram that no path is open for, in place of `receive_from`, and `lost` when
        the server is lost or the allocation closed; both by the allocation's task, or by what closes it."""
        self._take, self._tell_lost = take, lost

    def bind(self, peer: Endpoint) -> None:
        """Have a channel to `peer`, whose host is permitted: 4 octets of overhead in place of 36."""
        self._machine.bind(peer, trio.current_time())
        self._flush()

    async def wait_writable(self) -> None:
        """Until `try_send_to`, that did not take all, may get on."""
        try:
            await self._transport.wait_writable()
        except OSError as error:
            self._handle_fault(error)

    def check(self, host: str) -> None:
        """Raises TurnError where nothing reaches `host` any more."""
        self._check_server()
        refused = self._refused.get(host)
        if refused is not None:
            raise TurnError(refused.errno, refused.strerror)

    def _check_server(self) -> None:
        if self.error is not None:
            again = TurnError(self.error.errno, self.error.strerror)
            again.code = self.error.code
            raise again

    def release(self, path: TurnPath) -> None:
        """A path's own word that it was closed."""
        if self._paths.get(path.remote) is path:
            del self._paths[path.remote]
            if path.dropped:
                self._machine.dropped["queue full"] += path.dropped
            self._machine.forget(path.remote)
            if self._close_when_unused and not self._paths:
                self.close()

    def close_when_unused(self) -> None:
        """`close` as soon as there is no path; at once where there is none."""
        self._close_when_unused = True
        if not self._paths:
            self.close()

    def close_after(self, seconds: float) -> None:
        """`close`, when what is still under way has had its time."""
        self._close_due = trio.current_time() + seconds
        self._wake()

    def close(self) -> None:
        """Give the allocation back. Its paths break at once; the rest is done by the task."""
        if not self._closing:
            self._closing = True
            self._fail(TurnError(errno.ECONNABORTED, "the TURN allocation was closed"))

    # --- the task ------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[TurnAllocation]) -> Redirected | None:
        """Allocate, tell, and serve until the end; or where else it is to be had. Raises TurnError without one."""
        try:
            async with trio.open_nursery() as nursery:
                self._start(nursery)
                while not self._is_allocated:
                    if self._redirected is not None:
                        nursery.cancel_scope.cancel()
                        return self._redirected
                    self._check_server()
                    await self._changed.wait()
                task_status.started(self)
                while self.error is None:
                    with trio.move_on_at(self._close_due) as waiting:
                        await self._changed.wait()
                    if waiting.cancelled_caught:
                        self.close()
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            # Its tasks raise nothing of their own: this is the body's, or Cancelled.
            _, rest = group.split(TurnError)
            if rest is not None or self.error is None:
                raise
            raise self.error from None
        finally:
            await self._give_back()
            self._fail(TurnError(errno.ECONNABORTED, "the TURN allocation was closed"))
            self._transport.close()
        return None

    def _start(self, nursery: trio.Nursery) -> None:
        for operation in (self._receive, self._keep_time, self._run_transport):
            nursery.start_soon(operation)

    async def _give_back(self) -> None:
        """Also when cancelled; the machine knows whether there is anything to give. A broken stream has done it."""
        if self._is_broken:
            return
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_DEADLINE):
            self._machine.close(trio.current_time())
            async with trio.open_nursery() as nursery:
                self._start(nursery)
                while self._machine.next_timeout() is not None:
                    await self._changed.wait()
                nursery.cancel_scope.cancel()

    async def _receive(self) -> None:
        while True:
            try:
                units = await self._transport.receive()
            except OSError as error:
                self._handle_fault(error)
                if self._transport.reliable:
                    return
                await trio.lowlevel.checkpoint()
                continue
            now = trio.current_time()
            for unit in units:
                received = self._machine.handle_unit(unit, now)
                if received is not None:
                    self._deliver(*received)
            self._flush()

    def _deliver(self, peer: Endpoint, data: bytes) -> None:
        path = self._paths.get(peer)
        if path is not None:
            path.deliver(data)
        elif self._take is not None:
            self._take(data, peer)
        elif len(self._unclaimed) < MAX_UNCLAIMED:
            self._unclaimed.append((data, peer))
            self._wake()
        else:
            self._machine.dropped["nobody takes it"] += 1

    async def _keep_time(self) -> None:
        while True:
            self._flush()
            with trio.CancelScope(deadline=self._deadline()) as self._sleep:
                await trio.sleep_forever()
            self._machine.handle_timeout(trio.current_time())

    async def _run_transport(self) -> None:
        try:
            await self._transport.run()
        except OSError as error:
            self._handle_fault(error)

    def _deadline(self) -> float:
        timeout = self._machine.next_timeout()
        return math.inf if timeout is None else timeout

    def _arm(self) -> None:
        if self._sleep is not None:
            self._sleep.deadline = self._deadline()

    def _flush(self) -> None:
        """Send what the machine has to say, take its events, and set the clock."""
        try:
            for data in self._machine.datagrams_to_send(trio.current_time()):
                # Where there is no room it is lost, and repeated over UDP.
                self._transport.try_send(data, request=True)
        except OSError as error:
            self._handle_fault(error)
        while (event := self._machine.next_event()) is not None:
            if isinstance(event, Allocated):
                self._is_allocated = True
                self.relayed, self.mapped = event.relayed, event.mapped
            elif isinstance(event, Redirected):
                self._redirected = event
            elif isinstance(event, PeerRefused):
                text = f"TURN server {self.server}, peer {event.host}: {event.refusal}"
                self._refused[event.host] = TurnError(event.refusal.errno, text)
                self._wake_paths()
            elif isinstance(event, Ended) and event.refusal is not None:
                error_ = TurnError(event.refusal.errno, f"TURN server {self.server}: {event.refusal}")
                error_.code = event.refusal.code
                self._fail(error_)
            else:
                assert isinstance(event, PeerPermitted | Ended)
            self._wake()
        self._arm()

    def _handle_fault(self, error: OSError) -> None:
        """The transport broke. Over UDP an ICMP error may be a stranger's, and what it says may pass."""
        if self._is_allocated and not self._transport.reliable and error.errno in _ICMP:
            self._machine.dropped["ICMP errors"] += 1
            return
        self._is_broken = True
        text = f"TURN server {self.server}: {error.strerror or error}"
        self._fail(TurnError(error.errno or errno.ECONNRESET, text))

    def _fail(self, error: TurnError) -> None:
        if self.error is None:
            self.error = error
            if self._tell_lost is not None:
                self._tell_lost(error)
        self._wake()
        self._wake_paths()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _wake_paths(self) -> None:
        for path in self._paths.values():
            path.wake()
