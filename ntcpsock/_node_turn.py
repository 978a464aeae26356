"""The TURN servers of a node: those of its settings, and those that its broker lets it use; and an allocation at one
of them that is ready, where a relay is likely to be needed."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

import trio

from ntcpsock._address import parse_turn
from ntcpsock._config import Config
from ntcpsock._errors import ConfigurationError
from ntcpsock._traversal.broker.message import TurnPlaces
from ntcpsock._traversal.turn.allocation import TurnAllocation
from ntcpsock._traversal.turn.credentials import TurnServer, configured_servers
from ntcpsock._traversal.turn.driver import run_allocation

# Seconds until the broker is asked again where it did not answer.
_RETRY = 30.0
# Credentials are replaced when this share of their time is over.
_RENEWED_AT = 0.5
# Seconds until a lost warm allocation is replaced, doubled with each failure.
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 300.0
# Seconds between two looks whether one is wanted.
_LOOK_INTERVAL = 5.0
# Seconds that one server has for an allocation.
_ALLOCATION_DEADLINE = 4.0


class TurnContext(Protocol):
    """What this needs of its node."""

    @property
    def config(self) -> Config: ...
    @property
    def techniques(self) -> Sequence[str]: ...
    @property
    def relay_is_likely(self) -> bool: ...


class TurnBroker(Protocol):
    """What it needs of the session with the broker."""

    async def wait_connected(self) -> None: ...
    async def turn_servers(self) -> TurnPlaces: ...


class NodeTurn:
    """on_change: called when the node has servers for the first time, or none any more."""

    def __init__(
        self,
        node: TurnContext,
        broker: TurnBroker,
        nursery: trio.Nursery,
        on_change: Callable[[], Awaitable[None]],
    ) -> None:
        self._node = node
        self._broker = broker
        self._nursery = nursery
        self._on_change = on_change
        self._configured = configured_servers(node.config)
        self._lent: tuple[TurnServer, ...] = ()
        self._warm: TurnAllocation | None = None
        self._wanted = trio.Event()

    @property
    def servers(self) -> tuple[TurnServer, ...]:
        """Best first: those of the settings, and then the broker's."""
        return (*self._configured, *self._lent) if "turn" in self._node.techniques else ()

    def start(self) -> None:
        """Start the tasks."""
        if "turn" in self._node.techniques and self._node.config.keep_alive != "lazy":
            self._nursery.start_soon(self._keep_lent)
            self._nursery.start_soon(self._keep_warm)

    def take_warm(self, *, ipv6: bool) -> TurnAllocation | None:
        """The allocation that is ready, which is the caller's from here on; None where there is none of the family.
        Another one is made."""
        warm = self._warm
        if warm is None or warm.error is not None or warm.relayed.is_ipv6 != ipv6:
            return None
        self._warm = None
        self._wanted.set()
        return warm

    async def _keep_lent(self) -> None:
        while True:
            await self._broker.wait_connected()
            try:
                told = await self._broker.turn_servers()
            except OSError:
                await trio.sleep(_RETRY)
                continue
            had = bool(self.servers)
            self._lent = self._usable(told)
            if bool(self.servers) != had:
                await self._on_change()
            await trio.sleep(told.seconds * _RENEWED_AT if self._lent else math.inf)

    def _usable(self, told: TurnPlaces) -> tuple[TurnServer, ...]:
        """A broker may know of servers that this version does not understand."""
        ca_file = self._node.config.ca_file
        found = []
        for uri, user, password in told.places:
            with suppress(ConfigurationError):
                address = parse_turn(uri)
                found.append(TurnServer(address, user, password, None, str(ca_file) if ca_file else None))
        return tuple(found)

    async def _keep_warm(self) -> None:
        """Have an allocation ready as long as a relay is likely; one that was lost, or taken, is replaced."""
        pause = _FIRST_PAUSE
        while True:
            if not (self.servers and self._node.relay_is_likely):
                await trio.sleep(_LOOK_INTERVAL)
                continue
            self._wanted = trio.Event()
            self._warm = await self._allocate()
            if self._warm is None:
                await trio.sleep(pause)
                pause = min(_LONGEST_PAUSE, 2 * pause)
                continue
            pause = _FIRST_PAUSE
            while self._is_ready and not self._wanted.is_set():
                with trio.move_on_after(_LOOK_INTERVAL):
                    await self._wanted.wait()
            await trio.sleep(pause)

    @property
    def _is_ready(self) -> bool:
        return self._warm is not None and self._warm.error is None

    async def _allocate(self) -> TurnAllocation | None:
        for server in self.servers:
            with suppress(OSError), trio.move_on_after(_ALLOCATION_DEADLINE):
                made: TurnAllocation = await self._nursery.start(partial(run_allocation, server))
                return made
        return None
