"""Which counters of a sender have been seen: a sliding window, as RFC 4303 section 3.4.3 describes it."""

from __future__ import annotations

WINDOW = 128
#: The window of somebody of whom nothing has been seen. Bit n stands for `highest - n`. Counters begin at 1: 0 is
#: never accepted.
NOTHING_SEEN = 1
_MASK = (1 << WINDOW) - 1


def advance(highest: int, seen: int, counter: int) -> tuple[int, int] | None:
    """The window after `counter`, as `highest` and `seen`; None where that is not new, or too old to tell."""
    ahead = counter - highest
    if ahead > 0:
        # Shifting by a stranger's number would fill the memory: beyond the window nothing is left.
        return counter, ((seen << ahead) | 1) & _MASK if ahead < WINDOW else 1
    if -ahead >= WINDOW or seen & (1 << -ahead):
        return None
    return highest, seen | (1 << -ahead)


class ReplayWindow:
    """Accepts each counter once, in any order, as long as it is less than 128 behind the highest seen."""

    __slots__ = ("_seen", "highest")

    def __init__(self) -> None:
        self.highest = 0
        self._seen = NOTHING_SEEN

    def accept(self, counter: int) -> bool:
        """Whether `counter` is new; from then on it is old. Call it for authenticated frames only."""
        window = advance(self.highest, self._seen, counter)
        if window is None:
            return False
        self.highest, self._seen = window
        return True
