"""When what may be in flight may leave: a bucket that fills at the pacing rate (RFC 9002 section 7.7)."""

from __future__ import annotations

from typing import Final

# Bytes that may leave at once after any pause: RFC 9002 section 7.2.
INITIAL_BURST: Final = 10
# Sleeping is for milliseconds: so much of the rate is saved up while a sender sleeps or is kept from its processor.
SAVED: Final = 0.004
# Seconds of the rate that are worth waking up for.
QUANTUM: Final = 0.001
MOST_QUANTUM: Final = 64 * 1024


class Pacer:
    """rate: bytes a second."""

    def __init__(self, now: float, rate: float, datagram_size: int) -> None:
        self.datagram_size = datagram_size
        self._rate = rate
        self._tokens = float(INITIAL_BURST * datagram_size)
        self._filled_at = now

    def set_rate(self, now: float, rate: float) -> None:
        self._fill(now)
        self._rate = rate

    def budget(self, now: float) -> int:
        """Bytes that may leave now; negative where more has left already."""
        self._fill(now)
        return int(self._tokens)

    def spend(self, size: int) -> None:
        self._tokens -= size

    def ready_at(self) -> float:
        """When enough may leave to be worth it."""
        return self._filled_at + max(0.0, self.quantum - self._tokens) / self._rate

    @property
    def quantum(self) -> int:
        """Bytes that leave together."""
        return int(min(MOST_QUANTUM, max(2 * self.datagram_size, self._rate * QUANTUM)))

    def _fill(self, now: float) -> None:
        most = max(INITIAL_BURST * self.datagram_size, self._rate * SAVED)
        self._tokens = min(most, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
