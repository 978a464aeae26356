"""How long a connection that is ready waits for a better one that is still under way.

The relay waits for everything direct. Of TCP and UDP the one that is not preferred waits for the other, half a round
trip: neither replaces the other, and where the preferred one cannot connect nobody waits for long. Where the first one
shall win, the stream moves to a better one afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Literal

import trio

from ntcpsock._config import Prefer

#: "incoming": TCP connections from outside, which may be strangers'. They are worth waiting for, but a race in which
#: nothing else is under way has failed.
Group = Literal["tcp", "udp", "relay", "incoming"]

# The preferred one has its head start (`head_start_of_tcp`; QUIC needs a round trip less by nature): this is for what
# is just behind.
GRACE_RTTS = 0.5
SHORTEST_GRACE = 0.05
LONGEST_GRACE = 0.2


def group_of(technique: str) -> Group:
    if technique in ("relay", "turn"):
        return "relay"
    return "udp" if technique.startswith("udp-") else "tcp"


class Patience:
    """The attempts of one race that are under way.

    prefer: the transport that is waited for; rtt: of the path, in seconds.
    """

    def __init__(self, prefer: Prefer, rtt: float) -> None:
        self._prefer = prefer
        self.grace = min(LONGEST_GRACE, max(SHORTEST_GRACE, GRACE_RTTS * rtt))
        #: From when on a relayed connection may win.
        self.use_relay = 0.0
        self._running: Counter[Group] = Counter()
        # Replaced when an attempt ends.
        self._ended = trio.Event()

    def begin(self, group: Group) -> None:
        self._running[group] += 1

    def end(self, group: Group) -> None:
        self._running[group] -= 1
        self._ended.set()
        self._ended = trio.Event()

    @property
    def is_idle(self) -> bool:
        """Whether no attempt of ours is under way."""
        return not any(count for group, count in self._running.items() if group != "incoming")

    async def wait_for_better(self, group: Group) -> None:
        """Before a connection of `group` is proposed: until nothing better is under way, or its time is over."""
        if group == "relay":
            await self._wait_while_running(("tcp", "udp", "incoming"), self.use_relay)
        elif self._prefer != "first" and (group == "udp") != (self._prefer == "udp"):
            better: tuple[Group, ...] = ("udp",) if self._prefer == "udp" else ("tcp", "incoming")
            await self._wait_while_running(better, trio.current_time() + self.grace)

    async def _wait_while_running(self, groups: Collection[Group], deadline: float) -> None:
        with trio.move_on_at(deadline):
            while any(self._running[group] for group in groups):
                await self._ended.wait()
