"""The round trip to the broker, and how long to wait for an answer before sending again."""

from __future__ import annotations

#: Seconds before the first retransmission while no round trip has been measured; doubles each time, up to a second.
INITIAL_RTO = 0.25
_MIN_RTO = 0.1
_MAX_RTO = 0.5


class RoundTrip:
    """seconds: the latest measured round trip; 0.0 before the first."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def measure(self, seconds: float) -> None:
        # A clock that stands still (tests) would make 0.0, which means "not measured".
        self.seconds = max(seconds, 1e-6)

    @property
    def rto(self) -> float:
        """Seconds to wait for an answer before the first retransmission."""
        if not self.seconds:
            return INITIAL_RTO
        return min(_MAX_RTO, max(_MIN_RTO, 2 * self.seconds + 0.05))
