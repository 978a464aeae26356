"""The network of a node, and who wants to know when it changes: `node.network`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from ntcpsock._traversal.network.clocks import read_clocks
from ntcpsock._traversal.network.driver import NetworkWatcher, Source, open_source
from ntcpsock._traversal.network.machine import NetworkChange

__all__ = ["NetworkChange", "NodeNetwork"]

# Seconds between two checks that others ask for: many sessions notice one dead path at the same time.
_SHORTEST_PAUSE = 1.0


class NodeNetwork:
    """One node's; for its trio thread only.

    first: called with each change before all subscribers, where the node's own connections are renewed. check: has
    them looked after. destinations: numeric addresses to which the ways matter.
    """

    #: Replaced by tests, before the node is started.
    open_source: Callable[[], Source] = staticmethod(open_source)
    clocks: Callable[[], tuple[float, float]] = staticmethod(read_clocks)

    def __init__(
        self,
        first: Callable[[NetworkChange], None],
        check: Callable[[], None],
        destinations: Callable[[], Sequence[str]],
    ) -> None:
        self._first = first
        self._check = check
        self._destinations = destinations
        self._subscribers: dict[object, Callable[[NetworkChange], None]] = {}
        self._changed = trio.Event()
        self._last: NetworkChange | None = None
        self._checked = float("-inf")
        #: How many changes there were.
        self.changes = 0

    def subscribe(self, callback: Callable[[NetworkChange], None]) -> Callable[[], None]:
        """Have `callback` called with each change from now on, when the node has begun to renew its connection to the
        broker and its ports. It runs in the node's trio thread, must not wait, and what it raises ends the node.

        Returns what ends the subscription; calling that twice is harmless.
        """
        ticket = object()
        self._subscribers[ticket] = callback
        return lambda: self._subscribers.pop(ticket, None) and None

    async def wait_change(self) -> NetworkChange:
        """The next change; of several at once the last one. Cancelling is harmless."""
        await self._changed.wait()
        assert self._last is not None
        return self._last

    def suspect(self) -> None:
        """A path has fallen silent, and nobody knows why: look whether the broker still answers and the ports are
        seen as before. If not, a change is reported. Repeated soon it does nothing."""
        now = trio.current_time()
        if now - self._checked >= _SHORTEST_PAUSE:
            self._checked = now
            self._check()

    def report(self, change: NetworkChange) -> None:
        """Tell everybody of a change, also of one that the machine itself does not know of: the world may see us
        elsewhere though nothing has changed here."""
        self.changes += 1
        self._checked = trio.current_time()
        self._last = change
        self._first(change)
        for callback in list(self._subscribers.values()):
            callback(change)
        self._changed.set()
        self._changed = trio.Event()

    async def run(self) -> None:
        """Watch, until cancelled."""
        watcher = NetworkWatcher(
            self.report, self._destinations, open_source=self.open_source, clocks=self.clocks
        )
        await watcher.run()
