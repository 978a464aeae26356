"""The last half hour of a server, in a few numbers every few seconds. Pure: `now` comes in."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

#: Seconds between two samples, and how many are kept.
INTERVAL: Final = 5.0
LENGTH: Final = 360


class History:
    """gauges: what is kept as it is; the others count upwards, and are kept as rates per second."""

    def __init__(self, gauges: frozenset[str], *, interval: float = INTERVAL, length: int = LENGTH) -> None:
        self.interval = interval
        self._gauges = gauges
        self._samples: deque[Mapping[str, float]] = deque(maxlen=length)
        self._last: tuple[float, Mapping[str, float]] | None = None

    def add(self, numbers: Mapping[str, float], now: float) -> None:
        """What there is now. The first one has no rates."""
        if self._last is not None and now > self._last[0]:
            then, before = self._last
            self._samples.append(
                {
                    name: value
                    if name in self._gauges
                    else max(0.0, (value - before.get(name, value)) / (now - then))
                    for name, value in numbers.items()
                }
            )
        self._last = now, dict(numbers)

    def rows(self) -> dict[str, list[float]]:
        """By name, oldest first."""
        names = self._samples[-1] if self._samples else {}
        return {name: [round(sample.get(name, 0.0), 3) for sample in self._samples] for name in names}
