"""The time that the core is told: ours, but for pauses.

The core has a congestion control of its own, which we have outgrown (`connection`), and which forgets its window when it
sends two seconds after the last acknowledgement, or when all that it sent over three probe time-outs got lost
(persistent congestion, RFC 9002 section 7.6). By this clock neither ever happens: it leaves out the time in which a
connection is idle, and while nothing is acknowledged, every packet after the first ones is sent at the same moment of it.
"""

from __future__ import annotations

import math
from typing import Final

# Seconds of idleness that the clock tells.
IDLE: Final = 0.1
# Seconds of sending without an acknowledgement that it tells: a good round trip, and never near two seconds.
PATIENCE: Final = 0.05
ROUND_TRIPS: Final = 1.25
MOST_PATIENCE: Final = 1.6


class CoreClock:
    def __init__(self) -> None:
        self._behind = 0.0
        self._acknowledged_at = (
            math.inf
        )  # by this clock; nothing is forgotten before there was an acknowledgement
        self._busy_since = 0.0

    def time(self, now: float) -> float:
        return now - self._behind

    def our_time(self, core_time: float) -> float:
        """When a timer of the core is due."""
        return core_time + self._behind

    def time_of_sending(self, now: float, in_flight: int, round_trip: float) -> float:
        """What time it is for what is sent now; in_flight: bytes on their way already; round_trip: in seconds."""
        if in_flight:
            patience = min(MOST_PATIENCE, ROUND_TRIPS * round_trip + PATIENCE)
            latest = max(self._busy_since, self._acknowledged_at) + patience
        else:
            latest = self._acknowledged_at + IDLE
        return min(now - self._behind, latest)

    def sent(self, now: float, time: float, in_flight_before: int) -> None:
        """Something that will be acknowledged has left at `time`: it is so late now."""
        self._behind = now - time
        if not in_flight_before:
            self._busy_since = time

    def acknowledged(self, now: float) -> None:
        """Something of ours has arrived."""
        self._acknowledged_at = now - self._behind
