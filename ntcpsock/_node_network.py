"""The network of a node: what is renewed when it changes, and who else wants to know. It is `node.network`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from ntcpsock._address import Endpoint
from ntcpsock._config import Config
from ntcpsock._lifetimes import USUAL_INTERVAL, Lifetimes, keep_alive_interval
from ntcpsock._node_ports import NodePorts
from ntcpsock._traversal.broker.driver import BrokerSession
from ntcpsock._traversal.broker.observed import Difference
from ntcpsock._traversal.network.clocks import read_clocks
from ntcpsock._traversal.network.driver import NetworkWatcher, Source, open_source
from ntcpsock._traversal.network.machine import NetworkChange
from ntcpsock._traversal.surroundings import Surroundings

__all__ = ["NetworkChange", "NodeNetwork"]

# Seconds between two checks that others ask for: many sessions notice one dead path at the same time.
_SHORTEST_PAUSE = 1.0

# A mapping that is lost again after less than so many seconds was not lost to a restart.
_LIVES_SHORTLY = 120.0


class NetworkContext(Protocol):
    """What depends on the network in the node itself."""

    @property
    def config(self) -> Config: ...

    stun_servers: tuple[Endpoint, ...]

    def set_pace(self, pace: float) -> None:
        """Keep what is the node's own alive so much less often."""
        ...


class NodeNetwork:
    """One node's; for its trio thread only."""

    #: Where it comes from, and the clocks that tell a sleep: replaced by tests, before the node is started.
    open_source: Callable[[], Source] = staticmethod(open_source)
    clocks: Callable[[], tuple[float, float]] = staticmethod(read_clocks)

    def __init__(
        self, node: NetworkContext, session: BrokerSession, ports: NodePorts, surroundings: Surroundings
    ) -> None:
        self._node = node
        self._session = session
        self._ports = ports
        self._surroundings = surroundings
        self._subscribers: dict[object, Callable[[NetworkChange], None]] = {}
        self._changed = trio.Event()
        self._last: NetworkChange | None = None
        self._checked = self._lost_mapping = float("-inf")
        self._public_host = session.welcome.observed.host
        self._announced = session.welcome.stun
        session.on_seen = self._seen_by_broker
        ports.on_stale = self.look
        self._watcher: NetworkWatcher | None = None
        #: How many changes there were.
        self.changes = 0

    def subscribe(self, callback: Callable[[NetworkChange], None]) -> Callable[[], None]:
        """Have `callback` called with each change from now on, when the node has begun to renew its connection to the
        broker and its ports. It runs in the node's trio thread, must not wait, and what it raises ends the node.

        Returns what ends the subscription; calling that twice is harmless.
        """
        ticket = object()
        self._subscribers[ticket] = callback

        def unsubscribe() -> None:
            self._subscribers.pop(ticket, None)

        return unsubscribe

    async def wait_change(self) -> NetworkChange:
        """The next change; of several at once the last one. Cancelling is harmless."""
        await self._changed.wait()
        assert self._last is not None
        return self._last

    def suspect(self) -> None:
        """A path has fallen silent, and nobody knows why: see whether the broker still answers and the ports are seen
        as before. Where they are not, a change is reported. Repeated within a second it does nothing."""
        now = trio.current_time()
        if now - self._checked >= _SHORTEST_PAUSE:
            self._checked = now
            self._session.renew(moved=False)
            self._ports.check()

    def look(self) -> None:
        """Look at once at the addresses and routes: somebody has reason to believe that they have changed."""
        if self._watcher is not None:
            self._watcher.look()

    async def run(self) -> None:
        """Watch, until cancelled."""
        self._watcher = NetworkWatcher(
            self._system_tells, self._watched, open_source=self.open_source, clocks=self.clocks
        )
        await self._watcher.run()

    def _watched(self) -> Sequence[str]:
        return self._session.broker_host, *(server.host for server in self._node.stun_servers)

    def _system_tells(self, change: NetworkChange) -> None:
        # First of all: by the broker others find us, and tell us where they are.
        self._session.renew(moved=change.moved)
        if change.moved:
            self._surroundings.moved()
        else:
            self._surroundings.disturbed()
        self._take(change)

    def _seen_by_broker(self, difference: Difference | None) -> None:
        self._take_welcome()
        if difference is None:
            return
        now = trio.current_time()
        last, self._lost_mapping = self._lost_mapping, now
        if difference == "port" and now - last < _LIVES_SHORTLY:
            # No router is restarted so often: it forgets sooner than we keep alive, and paths do better.
            self._ports.check()
            return
        if difference != "port":  # paths of one age may take the broker's mapping with them
            self._surroundings.disturbed()
        # Nothing has changed here: the router was restarted, or has another address.
        self._take(NetworkChange(frozenset(), frozenset(), True, False, now))

    def _take(self, change: NetworkChange) -> None:
        self.changes += 1
        self._checked = change.at
        self._surroundings.look_again()
        if change.moved:
            self._ports.renew()
        else:
            self._ports.check()
        self._last = change
        for callback in list(self._subscribers.values()):
            callback(change)
        self._changed.set()
        self._changed = trio.Event()

    def _take_welcome(self) -> None:
        """What the broker says of us and of its servers."""
        welcome, config = self._session.welcome, self._node.config
        if welcome.observed.host != self._public_host:
            self._public_host = welcome.observed.host
            self._surroundings.look_again()
            if config.keep_alive == "auto":
                self._keep_alive_for(self._public_host)
        if welcome.stun != self._announced:
            self._announced = welcome.stun
            if not config.stun and config.relay != "only":
                self._node.stun_servers = welcome.stun
                self._ports.set_servers(welcome.stun)
                self._surroundings.set_servers(welcome.stun)

    def _keep_alive_for(self, public_host: str) -> None:
        """As often as the NAT there needs it, where that was measured."""
        config = self._node.config
        measured = Lifetimes(config.state_dir).get(public_host)
        interval = config.keep_alive_interval if measured is None else keep_alive_interval(measured)
        self._session.keep_alive_every(interval)
        pace = 1.0 if measured is None else interval / USUAL_INTERVAL
        self._ports.set_pace(pace)
        self._node.set_pace(pace)
