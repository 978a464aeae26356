"""When a stream on a relay looks for a direct path. Pure.

A direct path becomes possible without a word to either end: a firewall is told otherwise, a router comes back, a NAT
has ports again. Who wants to be on it at once has to try all the time. What a try costs (measured in the lab, both ends
behind NATs, nothing comes through): a full one, with everything that a connect does, 120 packets and 20 kB a second at
each end, and up to 508 entries in a NAT whose ports are to be foreseen; a light one, that only does what needs nothing
but the other side's candidates, 10 packets and 6 kB a second.

Where prediction was in vain a NAT may have few ports left, of which every try takes some; full ones find what light
ones do, and make the same burst again, so there are no light ones then.

So: full ones at first and then ever more seldom, since what was foreseen in vain fills NATs for minutes; light ones in
all the time between, for two minutes; and after that as long as the stream carries so much over the relay that they are
a tenth of it. A change of the network begins anew, at whichever end it happened.
"""

from __future__ import annotations

from typing import Final, Generic, Literal, NamedTuple, TypeVar

from ntcpsock._traversal.plan import JOINT_TECHNIQUES

#: Seconds that a try may take. A direct path that comes up meanwhile is found by it.
BUDGET: Final = 8.0
#: Seconds from the end of a full try to the begin of the next; the last one repeats where tries go on.
FULL_PAUSES: Final = (0.0, 0.5, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 300.0)
#: Seconds before a light one, and what is too short for one.
LIGHT_PAUSE: Final = 0.5
SHORTEST: Final = 1.0
#: Seconds for which tries follow each other whatever the stream does; and then the bytes that it must have carried,
#: both ways, for each.
EAGER: Final = 120.0
BYTES: Final = 512 * 1024
#: Seconds between two looks at that.
LOOK: Final = 1.0

#: What a light one leaves out.
LEFT_OUT: Final = frozenset(JOINT_TECHNIQUES)

#: Nodes to which paths are looked for at the same time. Of several streams to one node one looks for all.
MAX_SEEKERS: Final = 16

Kind = Literal["full", "light", "wait"]


class Step(NamedTuple):
    """What to do now: wait for `seconds`, or for a change of the network; or a try of at most so many."""

    kind: Kind
    seconds: float


class Climbing:
    """From one change of the network to the next. has_light: whether a light one can bring anything, for which it needs
    other techniques than it leaves out."""

    def __init__(self, now: float, carried: int, *, has_light: bool = True) -> None:
        self._began = now
        self._carried = carried
        self._has_light = has_light
        self._full = 0
        self._full_due = now + FULL_PAUSES[0]
        self._light_due = now

    def next(self, now: float, carried: int, *, short: bool = False) -> Step:
        """carried: bytes of the stream so far, both ways; short: whether a NAT has few ports left for either end."""
        if now - self._began >= EAGER and carried - self._carried < BYTES:
            return Step("wait", LOOK)
        if now >= self._full_due:
            return Step("full", BUDGET)
        left = self._full_due - now
        if short or not self._has_light or left < SHORTEST:
            return Step("wait", min(left, LOOK))
        if now < self._light_due:
            return Step("wait", min(left, self._light_due - now))
        return Step("light", min(BUDGET, left))

    def tried(self, kind: Kind, now: float, carried: int) -> None:
        """A try has ended."""
        if kind == "full":
            self._full = min(self._full + 1, len(FULL_PAUSES) - 1)
            self._full_due = now + FULL_PAUSES[self._full]
        self._light_due = now + LIGHT_PAUSE
        self._carried = carried


_S = TypeVar("_S")


class Seekers(Generic[_S]):
    """Whose tries are under way, of one node's streams."""

    def __init__(self) -> None:
        self._by_key: dict[bytes, _S] = {}

    def enter(self, key: bytes, seeker: _S) -> bool:
        """Whether `seeker` may look for a path to the node `key` now; `leave` when it has."""
        if key not in self._by_key and len(self._by_key) < MAX_SEEKERS:
            self._by_key[key] = seeker
        return self._by_key.get(key) is seeker

    def leave(self, key: bytes, seeker: _S) -> None:
        if self._by_key.get(key) is seeker:
            del self._by_key[key]
