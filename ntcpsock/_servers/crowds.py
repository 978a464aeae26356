"""Who sends more than a share, where more comes than can be answered: that is dropped first, before it costs anything.

Only asked while a server is behind (whole batches come one after the other). Sources are counted over moments of a
tenth of a second, all of a batch by one call, so that a flood leaves time for everybody else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Final, Generic, TypeVar

_MOMENT: Final = 0.1
# Sources of one moment: those that are invented fill no more memory than this.
_MOST_SOURCES: Final = 16384

_Source = TypeVar("_Source", bound=Hashable)


class Crowds(Generic[_Source]):
    """rate: what each source may send a second; infinite: as much as it likes."""

    def __init__(self, rate: float) -> None:
        self._most = rate * _MOMENT
        self._counts: Counter[_Source] = Counter()
        self._ends = 0.0

    def excessive(self, sources: Sequence[_Source], now: float) -> set[_Source]:
        """Of those that a batch came from, one for each datagram: the sources that have sent too much."""
        counts = self._counts
        if now >= self._ends or len(counts) > _MOST_SOURCES:
            counts.clear()
            self._ends = now + _MOMENT
        counts.update(sources)
        most = self._most
        return {source for source in set(sources) if counts[source] > most}
