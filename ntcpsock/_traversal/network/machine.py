"""When the network has changed, without I/O: snapshots, clocks and `now` in, changes out.

News from the kernel come in bursts, and halves of them mislead (an address is taken away before the next one is
there): so a snapshot is wanted when they have ended for a moment, and what counts is how it differs from the last one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ntcpsock._traversal.network.snapshot import Snapshot

#: Seconds of silence after which a burst of news is over, and for which one is waited for at most.
SETTLE = 0.1
LONGEST_BURST = 0.5

#: Seconds for which a device may be without a carrier: a station that changes between access points is.
DARK_GRACE = 1.0

#: Seconds until the next try where no snapshot could be taken.
RETRY = 1.0

#: Seconds of sleep after which paths are to be looked after.
SHORTEST_SLEEP = 5.0


@dataclass(frozen=True, slots=True)
class NetworkChange:
    """What is other than before.

    gone, new: own addresses, numeric, of both families; neither loopback nor link-local ones, nor those of bridges of
    containers. route_changed: what leaves takes another device, gateway or own address, a link on its way was down
    meanwhile, or the world sees us elsewhere. slept: this machine did. at: seconds of trio's clock.
    """

    gone: frozenset[str]
    new: frozenset[str]
    route_changed: bool
    slept: bool
    at: float

    @property
    def moved(self) -> bool:
        """Whether paths may be broken because we are elsewhere, and not only because time has passed."""
        return bool(self.gone or self.new or self.route_changed)


class NetworkMachine:
    """snapshot: how things are at the beginning; poll_interval: seconds between two looks where nobody tells news."""

    def __init__(self, snapshot: Snapshot, now: float, *, poll_interval: float = math.inf) -> None:
        self._known = replace(snapshot, addresses=snapshot.addresses - snapshot.dark)
        self._poll_interval = poll_interval
        self._last_look = now
        self._burst_began: float | None = None
        self._settled = math.inf
        # Since when addresses are without a carrier.
        self._dark = dict.fromkeys(snapshot.dark, -math.inf)
        self._drift: float | None = None
        self._slept = False
        self._changes: list[NetworkChange] = []

    def noticed(self, now: float) -> None:
        """There may be something new."""
        if self._burst_began is None:
            self._burst_began = now
        self._settled = min(now + SETTLE, self._burst_began + LONGEST_BURST)

    def look_at_once(self, now: float) -> None:
        """There is something new."""
        self._settled = now

    def take_clocks(self, awake: float, total: float, now: float) -> None:
        """Seconds of a clock that stands still while the machine sleeps, and of one that goes on."""
        drift = total - awake
        if self._drift is not None and drift - self._drift >= SHORTEST_SLEEP:
            self._slept = True
            self._settled = now
        self._drift = drift

    def poll_every(self, interval: float) -> None:
        """From now on nobody tells news."""
        self._poll_interval = interval

    def next_timer(self) -> float:
        """When the next snapshot is wanted; inf for never."""
        recheck = min(
            (since + DARK_GRACE for since in self._dark.values() if since > -math.inf), default=math.inf
        )
        return min(self._settled, recheck, self._last_look + self._poll_interval)

    def wants_snapshot(self, now: float) -> bool:
        return now >= self.next_timer()

    def look_failed(self, now: float) -> None:
        """There was no snapshot to be had: try again soon."""
        self._last_look = now
        self._burst_began, self._settled = None, now + RETRY

    def take_snapshot(self, snapshot: Snapshot, now: float) -> None:
        """What there is now."""
        self._last_look = now
        self._burst_began, self._settled = None, math.inf
        before = self._known
        present = snapshot.addresses - self._lost_carrier(snapshot, now)
        gone = before.addresses - present
        new = (present - snapshot.fading) - (before.addresses - before.fading)
        changed = self._came_up(before, snapshot) or before.ways != snapshot.ways
        self._known = replace(snapshot, addresses=present)
        if gone or new or changed or self._slept:
            self._changes.append(NetworkChange(gone, new, changed, self._slept, now))
        self._slept = False

    def changes(self) -> list[NetworkChange]:
        """What has been found since the last call."""
        found, self._changes = self._changes, []
        return found

    def _lost_carrier(self, snapshot: Snapshot, now: float) -> frozenset[str]:
        """The addresses that have been without a carrier for too long."""
        for host in snapshot.dark:
            # One that was not there before is not there before its device is.
            self._dark.setdefault(host, now if host in self._known.addresses else -math.inf)
        for host in list(self._dark):
            if host not in snapshot.dark:
                del self._dark[host]
            elif now - self._dark[host] >= DARK_GRACE:
                self._dark[host] = -math.inf
        return frozenset(host for host, since in self._dark.items() if since == -math.inf)

    @staticmethod
    def _came_up(before: Snapshot, after: Snapshot) -> bool:
        earlier = dict(before.links)
        return any(carriers > earlier.get(name, carriers) for name, carriers in after.links)
