"""How long the round trips of nodes to the broker are: from a Challenge to the hello with its cookie.

The broker keeps no state of strangers; this is a bounded table of the latest, good for a statistic and nothing else.
"""

from __future__ import annotations

from typing import Final

from ntcpsock._servers.sources import Source

#: Upper bounds of the histogram's buckets, in seconds; one more bucket takes the rest.
BOUNDS: Final = (0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_MOST_REMEMBERED: Final = 4096


class RoundTrips:
    """counts: of each bucket; sum: of all, in seconds."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0
        self._challenged: dict[Source, float] = {}

    def challenged(self, source: Source, now: float) -> None:
        """A Challenge leaves."""
        self._challenged.pop(source, None)
        self._challenged[source] = now
        if len(self._challenged) > _MOST_REMEMBERED:
            del self._challenged[next(iter(self._challenged))]

    def answered(self, source: Source, now: float) -> None:
        """The hello with its cookie has come."""
        then = self._challenged.pop(source, None)
        if then is not None:
            seconds = now - then
            self.sum += seconds
            self.counts[next((i for i, bound in enumerate(BOUNDS) if seconds <= bound), len(BOUNDS))] += 1
