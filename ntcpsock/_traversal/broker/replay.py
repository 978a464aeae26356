"""Which counters of a sender have been seen: a sliding window, as RFC 4303 section 3.4.3 describes it."""

from __future__ import annotations

WINDOW = 128


class ReplayWindow:
    """Accepts each counter once, in any order, as long as it is less than 128 behind the highest seen."""

    __slots__ = ("_seen", "highest")

    def __init__(self) -> None:
        self.highest = 0
        # Bit n stands for `highest - n`. Counters begin at 1: 0 is never accepted.
        self._seen = 1

    def accept(self, counter: int) -> bool:
        """Whether `counter` is new; from then on it is old. Call it for authenticated frames only."""
        ahead = counter - self.highest
        if ahead > 0:
            # Shifting by a stranger's number would fill the memory: beyond the window nothing is left.
            self._seen = ((self._seen << ahead) | 1) & ((1 << WINDOW) - 1) if ahead < WINDOW else 1
            self.highest = counter
            return True
        if -ahead >= WINDOW:
            return False
        bit = 1 << -ahead
        if self._seen & bit:
            return False
        self._seen |= bit
        return True
