"""Local ports that no NAT knows: none is drawn again soon."""

from __future__ import annotations

import random
from typing import Final

#: Below Linux's and IANA's ephemeral ranges (32768, 49152), so that no automatic port meets ours.
PORT_RANGE: Final = (20000, 32767)

#: So many of the last ones at least are not drawn again. A NAT keeps the mapping of a closed socket for minutes: a look
#: from such a port would show where the mapping was then.
AVOIDED: Final = 2048


class FreshPorts:
    """Of one transport of this process. It may be used by several threads."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.SystemRandom()
        self._last: set[int] = set()
        self._before: set[int] = set()

    def draw(self) -> int:
        """A port of PORT_RANGE at random. Whether it is free the caller has to see."""
        while (port := self._rng.randint(*PORT_RANGE)) in self._last or port in self._before:
            pass
        self._last.add(port)
        if len(self._last) >= AVOIDED:
            self._before, self._last = self._last, set()
        return port
