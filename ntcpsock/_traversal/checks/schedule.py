"""When each pair is checked: first checks one after the other (RFC 8445 section 6.1.4), repetitions in their time."""

from __future__ import annotations

import heapq
import math

from ntcpsock._traversal.checks.pairs import Pair

# Seconds by which a busy machine may be late and make up for it: so much of the schedule goes out at once then.
LONGEST_CATCH_UP = 0.05


class Schedule:
    """The checks to come, the earliest first.

    pace: seconds between the first checks of two pairs (Ta). Times are the caller's clock.
    """

    def __init__(self, now: float, pace: float) -> None:
        self._pace = pace
        self._next_slot = now
        # (due, number, pair); entries whose pair has another time by now are skipped.
        self._entries: list[tuple[float, int, Pair]] = []
        self._number = 0

    def set(self, pair: Pair, due: float) -> None:
        """Check `pair` at `due`, in place of when it was to be; inf: not at all."""
        pair.due = due
        if due < math.inf:
            self._number += 1
            heapq.heappush(self._entries, (due, self._number, pair))

    def take(self, now: float) -> Pair | None:
        """A pair whose time has come, each once; None for none now."""
        if self.next_due() > now:
            return None
        _, _, pair = heapq.heappop(self._entries)
        if not pair.sent:
            # From the slot that was due: a late call must not stretch the schedule, nor make up for all that it missed.
            self._next_slot = max(self._next_slot + self._pace, now - LONGEST_CATCH_UP)
        return pair

    def next_due(self) -> float:
        """When `take` gives the next pair; inf for never."""
        while self._entries and self._entries[0][2].due != self._entries[0][0]:
            heapq.heappop(self._entries)
        if not self._entries:
            return math.inf
        due, _, pair = self._entries[0]
        return due if pair.sent else max(due, self._next_slot)

    def clear(self) -> None:
        for _, _, pair in self._entries:
            pair.due = math.inf
        self._entries.clear()
