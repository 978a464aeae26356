"""How dials end, as nodes tell it: a bounded table of words and numbers, in which nobody has a name.

Whoever has a session can lie here. It is a statistic for the operator, and nothing is decided by it.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from ntcpsock._config import TECHNIQUES
from ntcpsock._traversal.broker.operation import Outcome

#: Upper bounds of the histogram's buckets, in seconds; one more bucket takes the rest.
BOUNDS: Final = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)
#: What connects without the dialer's doing.
_KNOWN: Final = frozenset((*TECHNIQUES, "incoming"))


class Outcomes:
    """Since the start of the broker."""

    def __init__(self) -> None:
        #: By (technique, kind of path) of dials that have connected.
        self.connected: Counter[tuple[str, str]] = Counter()
        self.failed = 0
        #: By (the dialer's NAT, the listener's): [connected directly, over a relay, failed].
        self.by_pair: dict[tuple[str, str], list[int]] = {}
        #: Of dials that have connected: of each bucket, and all together, in seconds.
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def note(self, outcome: Outcome) -> None:
        """One dial has ended."""
        pair = self.by_pair.setdefault((outcome.dialer, outcome.listener), [0, 0, 0])
        if not outcome.technique or not outcome.kind:
            self.failed += 1
            pair[2] += 1
            return
        technique = outcome.technique if outcome.technique in _KNOWN else "other"
        self.connected[technique, outcome.kind] += 1
        pair[1 if outcome.kind == "relay" else 0] += 1
        seconds = outcome.milliseconds / 1000
        self.sum += seconds
        self.counts[next((i for i, bound in enumerate(BOUNDS) if seconds <= bound), len(BOUNDS))] += 1
