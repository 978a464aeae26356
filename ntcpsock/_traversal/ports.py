"""The warm ports of a node: a pool for dialling, and the one that all listeners share."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence

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

    pace: of all kinds of ports, what the usual intervals between refreshes are multiplied by; inf: none. udp: whether
    they have one of UDP as well.
    """

    def __init__(self, servers: Sequence[Endpoint], size: int, pace: float = 1.0, udp: bool = True) -> None:
        self._servers = servers
        self._udp = udp
        self._pace = pace
        self._size = size
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
                    with trio.move_on_after(TCP_REFRESH_INTERVAL * self._pace) as idle:
                        await self._changed.wait()
                    if idle.cancelled_caught:
                        await self._refresh()
        finally:
            for port in self._ready:
                port.close()
            self._ready.clear()

    async def _gather(self) -> None:
        try:
            self._ready.append(await gather(self._servers, udp=self._udp))
        except OSError as error:
            self._failures += 1
            self._last_failure = error
            self._notify()
            await trio.sleep(GATHER_RETRY)
        finally:
            self._gathering -= 1
            self._notify()

    async def _refresh(self) -> None:
        """Drop what a NAT has forgotten or moved, and what no STUN server has seen."""
        if not self._servers:
            return
        for port in list(self._ready):
            if not await port.refresh() and port in self._ready:
                self._ready.remove(port)
                port.close()

    async def _keep_datagrams(self) -> None:
        """Keep the mappings for UDP; where one has changed the port goes on with the new one."""
        while True:
            await trio.sleep(refresh_interval(self._pace))
            for port in list(self._ready):
                if port.datagram is not None and port in self._ready:
                    await port.datagram.refresh()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class ListeningPort:
    """The port at which a node's listeners are reached. `keep` runs as a task from the first listener on.

    mapper: what asks the router for it; None: nobody does.
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
        self._servers = servers
        self._pace = pace
        self._serve = serve
        self._mapper = mapper
        self._patience = patience
        self._changed = changed
        self.warm: WarmPort | None = None

    async def keep(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Gather, serve, refresh; gather anew and report `changed` when the NAT sees us differently."""
        udp = self._nursery is not None
        self.warm = await gather(self._servers, patience=self._patience, udp=udp)
        task_status.started()
        try:
            while True:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._accept, self.warm)
                    if self._nursery is not None and self.warm.datagram is not None:
                        self._nursery.start_soon(self.warm.datagram.port.run)
                        nursery.start_soon(self._keep_datagram, self.warm.datagram)
                    if self._mapper is not None and self.warm.needs_mapping:
                        nursery.start_soon(self._keep_mapped, self._mapper, self.warm)
                    while not self._servers or await self.warm.refresh():
                        await trio.sleep(TCP_REFRESH_INTERVAL * self._pace)
                    fresh = await self._gather_again()
                    # Connections that are being authenticated end with the old port: their dialers try again.
                    nursery.cancel_scope.cancel()
                self.warm.close()
                self.warm = fresh
                await self._changed()
        finally:
            self.warm.close()

    async def _gather_again(self) -> WarmPort:
        while True:
            try:
                fresh = await gather(self._servers, udp=self._nursery is not None)
            except OSError:
                await trio.sleep(GATHER_RETRY)
                continue
            if fresh.stun_sockets or not self._servers:
                return fresh
            fresh.close()
            await trio.sleep(GATHER_RETRY)

    async def _keep_datagram(self, datagram: WarmDatagramPort) -> None:
        while True:
            await trio.sleep(refresh_interval(self._pace))
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
