"""When the broker is to hear from a node again, for its NAT and for the broker, which both forget who is silent."""

from __future__ import annotations

import math

#: A keep-alive, and whatever else asks where there is a reason to doubt the way, has failed after four round trips, and
#: so many seconds at least. Nobody waits for it, and the way to the broker is another one where it fails.
PROBE_TIMEOUT = 1.0

#: A keep-alive leaves so many seconds before its interval has passed, or a tenth of that: then whoever has lost its
#: broker is registered at another one within the interval.
KEEP_ALIVE_LEAD = 2.0


class KeepAlives:
    """The schedule. interval: seconds; infinite where none are sent.

    due: when the next one is; request: the number of the latest one.
    """

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.due = 0.0
        self.request = 0

    @property
    def is_lazy(self) -> bool:
        """Whether none are sent."""
        return self.interval == math.inf

    @property
    def pause(self) -> float:
        """Seconds from an answer to the next one."""
        lead = min(KEEP_ALIVE_LEAD, self.interval / 10)
        return self.interval if self.is_lazy else self.interval - lead

    def restart(self, now: float) -> None:
        """The broker has just heard from us."""
        self.due = now + self.pause


def patience(rtt: float) -> float:
    """Seconds within which a keep-alive is answered, or the way is dead."""
    return max(PROBE_TIMEOUT, 4 * rtt)
