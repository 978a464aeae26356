"""The warm ports of a node: a pool for dialling, and the one that all listeners share."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import trio

from ntcpsock._address import Endpoint
from ntcpsock._traversal.gather import (
    STUN_DEADLINE,
    TCP_REFRESH_INTERVAL,
    WarmPort,
    gather,
)
from ntcpsock._traversal.gather_udp import WarmDatagramPort, refresh_interval
from ntcpsock._traversal.mapping import Mapping, PortMapper
from ntcpsock._traversal.punch.driver import accept_connections

# Seconds until the next try when a port could not be gathered.
GATHER_RETRY = 5.0


class DialPorts:
    """Keeps `size` ports warm. `keep` runs as a task for the node's life and closes them at its end.

    servers: STUN servers. pace: of all kinds of ports, what the usual intervals between refreshes are multiplied by;
    inf: none. Both may be set anew, and hold from the next time on. udp: whether they have one of UDP as well.
    """

    def __init__(self, servers: Sequence[Endpoint], size: int, pace: float = 1.0, udp: bool = True) -> None:
        self.servers = servers
        self._udp = udp
        self.pace = pace
        self._size = size
        # The scopes of what is being gathered.
        self._scopes: set[trio.CancelScope] = set()
        self._doubtful = False
        self._doubt_datagrams = trio.Event()
        self._ready: deque[WarmPort] = deque()
        self._gathering = 0
        self._waiting = 0
        self._failures = 0
        self._last_failure: OSError | None = None
        # Set and replaced whenever any of the above has changed.
        self._changed = trio.Event()
        self._filled = trio.Event()

    @property
    def ready(self) -> Sequence[WarmPort]:
        """Those that nobody has taken yet."""
        return tuple(self._ready)

    async def take(self) -> WarmPort:
        """A warm port; it is the caller's to close. Raises OSError when none can be gathered."""
        failures = self._failures
        self._waiting += 1
        self._notify()
        try:
            while not self._ready:
                await self._changed.wait()
                if self._failures > failures and self._last_failure is not None and not self._ready:
                    raise self._last_failure
            return self._ready.popleft()
        finally:
            self._waiting -= 1
            self._notify()

    def renew(self) -> None:
        """The network is another one: what is ready, or half ready, is good for nothing any more."""
        for scope in self._scopes:
            scope.cancel()
        for port in self._ready:
            port.close()
        self._ready.clear()
        self._notify()

    def drop_older(self, than: float) -> None:
        """Close those that were gathered before a time of trio's clock: their mappings will not last."""
        for port in tuple(self._ready):
            if port.since < than or (port.datagram is not None and port.datagram.since < than):
                self._ready.remove(port)
                port.close()
                self._notify()

    def check(self) -> None:
        """See at once what the NAT still knows."""
        self._doubtful = True
        self._doubt_datagrams.set()
        self._notify()

    async def wait_filled(self) -> None:
        """Until the pool was full for the first time."""
        await self._filled.wait()

    async def keep(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                if self._udp:
                    nursery.start_soon(self._keep_datagrams)
                while True:
                    for _ in range(len(self._ready) + self._gathering, self._size + self._waiting):
                        self._gathering += 1
                        nursery.start_soon(self._gather)
                    if len(self._ready) >= self._size:
                        self._filled.set()
                    with trio.move_on_after(TCP_REFRESH_INTERVAL * self.pace) as idle:
                        await self._changed.wait()
                    if idle.cancelled_caught or self._doubtful:
                        self._doubtful = False
                        await self._refresh()
        finally:
            for port in self._ready:
                port.close()
            self._ready.clear()

    async def _gather(self) -> None:
        scope = trio.CancelScope()
        self._scopes.add(scope)
        try:
            with scope:
                try:
                    self._ready.append(await gather(self.servers, udp=self._udp))
                except OSError as error:
                    self._failures += 1
                    self._last_failure = error
                    self._notify()
                    await trio.sleep(GATHER_RETRY)
        finally:
            self._scopes.discard(scope)
            self._gathering -= 1
            self._notify()

    async def _refresh(self) -> None:
        """Drop what a NAT has forgotten or moved, and what no STUN server has seen."""
        if not self.servers:
            return
        async with trio.open_nursery() as nursery:
            for port in self._ready:
                nursery.start_soon(self._refresh_one, port)

    async def _refresh_one(self, port: WarmPort) -> None:
        if not await port.refresh() and port in self._ready:
            self._ready.remove(port)
            port.close()

    async def _keep_datagrams(self) -> None:
        """Keep the mappings for UDP; where one has changed the port goes on with the new one."""
        while True:
            self._doubt_datagrams = trio.Event()
            with trio.move_on_after(refresh_interval(self.pace)):
                await self._doubt_datagrams.wait()
            for port in list(self._ready):
                if port.datagram is not None and port in self._ready:
                    await port.datagram.refresh()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class ListeningPort:
    """The port at which a node's listeners are reached. `keep` runs as a task from the first listener on.

    servers: STUN servers. pace: as of `DialPorts`. mapper: what asks the router for the port; None: nobody does.
    dropped: how often something was dropped at its UDP ports, one after the other, by reason.
    """

    def __init__(
        self,
        servers: Sequence[Endpoint],
        serve: Callable[[trio.socket.SocketType], Awaitable[None]],
        changed: Callable[[], Awaitable[None]],
        mapper: PortMapper | None = None,
        pace: float = 1.0,
        patience: float = STUN_DEADLINE,
        nursery: trio.Nursery | None = None,
    ) -> None:
        """patience: seconds that the first start waits for the STUN servers; later ones do not hold anybody up.
        nursery: for reading the UDP port, which paths may use for longer than it is announced; None: without UDP."""
        self._nursery = nursery
        self.servers = servers
        self.pace = pace
        self._serve = serve
        self._mapper = mapper
        self._patience = patience
        self._changed = changed
        self.warm: WarmPort | None = None
        self.dropped: Counter[str] = Counter()
        self._wake = trio.Event()
        self._doubt_datagram = trio.Event()
        self._elsewhere = False
        self._gathering = trio.CancelScope()

    def renew(self) -> None:
        """The network is another one: gather anew at once."""
        self._elsewhere = True
        self._gathering.cancel()
        self._wake.set()

    def check(self) -> None:
        """See at once whether the NAT still knows the port."""
        self._wake.set()
        self._doubt_datagram.set()

    async def keep(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Gather, serve, refresh; gather anew and report `changed` when the NAT sees us differently."""
        self.warm = await self._gather(self._patience)
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    serving = trio.CancelScope()
                    # Not waited for at its end: to give a port back to a router that is gone takes its time.
                    nursery.start_soon(self._serve_port, self.warm, serving)
                    await self._wait_until_unknown(self.warm)
                    fresh = await self._gather_again()
                    # Connections that are being authenticated end with the old port: their dialers try again.
                    serving.cancel()
                    self.warm = fresh
                    await self._changed()
        finally:
            self.warm.close()

    async def _wait_until_unknown(self, warm: WarmPort) -> None:
        while not self._elsewhere:
            self._wake = trio.Event()
            if self.servers:
                with trio.CancelScope() as self._gathering:
                    if not await warm.refresh():
                        return
            with trio.move_on_after(TCP_REFRESH_INTERVAL * self.pace):
                await self._wake.wait()

    async def _gather_again(self) -> WarmPort:
        is_elsewhere = False
        while True:
            is_elsewhere, self._elsewhere = is_elsewhere or self._elsewhere, False
            self._wake = trio.Event()
            fresh: WarmPort | None = None
            with suppress(OSError), trio.CancelScope() as self._gathering:
                fresh = await self._gather(STUN_DEADLINE)
            # Elsewhere the old candidates are worth nothing, so those of the own addresses are better.
            if fresh is not None and (fresh.stun_sockets or not self.servers or is_elsewhere):
                return fresh
            if fresh is not None:
                fresh.close()
            with trio.move_on_after(GATHER_RETRY):
                await self._wake.wait()

    async def _gather(self, patience: float) -> WarmPort:
        fresh = await gather(self.servers, patience=patience, udp=self._nursery is not None)
        if fresh.datagram is not None:
            fresh.datagram.port.dropped = self.dropped
        return fresh

    async def _serve_port(self, warm: WarmPort, scope: trio.CancelScope) -> None:
        try:
            with scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._accept, warm)
                    if self._nursery is not None and warm.datagram is not None:
                        self._nursery.start_soon(warm.datagram.port.run)
                        nursery.start_soon(self._keep_datagram, warm.datagram)
                    if self._mapper is not None and warm.needs_mapping:
                        nursery.start_soon(self._keep_mapped, self._mapper, warm)
        finally:
            warm.close()

    async def _keep_datagram(self, datagram: WarmDatagramPort) -> None:
        while True:
            self._doubt_datagram = trio.Event()
            with trio.move_on_after(refresh_interval(self.pace)):
                await self._doubt_datagram.wait()
            if not await datagram.refresh():
                await self._changed()

    async def _keep_mapped(self, mapper: PortMapper, warm: WarmPort) -> None:
        async def changed(mapping: Mapping | None) -> None:
            if warm.set_mapped(None if mapping is None else mapping.external):
                await self._changed()

        await mapper.keep(warm.port, changed)

    async def _accept(self, warm: WarmPort) -> None:
        async with trio.open_nursery() as nursery:
            for listener in warm.listeners:
                nursery.start_soon(
                    accept_connections, listener, lambda sock, _: nursery.start_soon(self._serve, sock)
                )
