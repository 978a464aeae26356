"""The age of a dialled stream's path: what its end teaches, and from when on it should have a successor.

Some NATs drop a mapping at an age, however much it is used (`ntcpsock._path_ages` learns at which). What such a death
looks like from here: the path falls silent while the stream is at work, and the peer is found again at once, where it
was, from where we were. Whatever else ends a path explains itself: a reset, a peer that is elsewhere or stays away, an
address or a route that changed, a machine that slept (`Surroundings.disturbed`).

Only the dialer learns of deaths: its port is its own, and its mapping as old as it says, while all that a listener
accepts came by one port.
"""

from __future__ import annotations

import errno
import math
from typing import Protocol

from ntcpsock._path_ages import MOVE_AT, PathTransport
from ntcpsock._report import PathInfo

#: Seconds of silence up to which the last sign of life says when the path died. An idle stream notices late.
LONGEST_SILENCE = 10.0
#: Seconds within which the peer is found again where only the path was lost; later there was an outage.
LONGEST_SEARCH = 10.0

#: Where no successor is found in time: how long until the next try, and until the last, as parts of the expected
#: lifetime.
RETRY_AFTER = 0.1
GIVE_UP_AT = 1.5


class PathMemory(Protocol):
    """What is known of the ages of paths: `ntcpsock._traversal.surroundings`."""

    def path_died(self, transport: PathTransport, key: bytes, age: float) -> None: ...
    def path_survived(self, transport: PathTransport, key: bytes, age: float) -> None: ...
    def expected_lifetime(self, transport: PathTransport, key: bytes) -> float | None: ...


def transport_of(path: PathInfo) -> PathTransport:
    return "udp" if path.technique.startswith("udp-") or path.technique == "turn" else "tcp"


class PathAge:
    """Of the path that a stream takes now. key: of the node at its other end; since: when the NAT began to know it, as
    far as that can be said; `now` and it: seconds of trio's clock."""

    def __init__(self, memory: PathMemory, key: bytes, path: PathInfo, since: float) -> None:
        self._memory = memory
        self._key = key
        self._path = path
        self._since = since
        self._died_at: float | None = None
        self._lost_at = -math.inf
        self._next_try = -math.inf

    def lost(self, now: float, error: OSError, silence: float | None) -> None:
        """The path is of no use any more. silence: seconds since its last sign of life, None where nobody knows."""
        if silence is None:
            return
        if error.errno == errno.ETIMEDOUT and silence <= LONGEST_SILENCE:
            self._died_at, self._lost_at = now - silence, now
        else:
            self._survived(now - silence)

    def replaced(self, path: PathInfo, since: float, now: float, silence: float | None) -> None:
        """The stream goes on by `path`. silence: of the one before, where it was not lost."""
        if self._died_at is not None:
            if now - self._lost_at <= LONGEST_SEARCH and self._is_where_it_was(path):
                self._memory.path_died(transport_of(self._path), self._key, self._died_at - self._since)
        elif silence is not None:
            self._survived(now - silence)
        self._path, self._since = path, since
        self._died_at, self._next_try = None, -math.inf

    def ended(self, now: float, silence: float | None) -> None:
        """The stream is over."""
        if self._died_at is None and silence is not None:
            self._survived(now - silence)

    def wants_successor(self, now: float, silence: float | None) -> bool:
        """Whether it is time to look for another path, now: the caller does so then."""
        if self._path.kind == "lan" or now < self._next_try:
            return False
        expected = self._memory.expected_lifetime(transport_of(self._path), self._key)
        if expected is None:
            return False
        age = now - self._since
        if age > expected and silence is not None:
            self._survived(now - silence)  # perhaps there is no such rule any more
        if not MOVE_AT * expected <= age <= GIVE_UP_AT * expected:
            return False
        self._next_try = now + RETRY_AFTER * expected
        return True

    def _survived(self, at: float) -> None:
        if self._path.kind != "lan":
            self._memory.path_survived(transport_of(self._path), self._key, at - self._since)

    def _is_where_it_was(self, path: PathInfo) -> bool:
        before = self._path
        if before.kind == "lan" or before.local[0] != path.local[0]:
            return False
        return "relay" in (before.kind, path.kind) or before.remote[0] == path.remote[0]
