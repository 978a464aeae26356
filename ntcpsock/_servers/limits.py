"""How often a stranger may do what costs us something: token buckets, in a bounded table."""

from __future__ import annotations

from ntcpsock._address import site_of

_MOST_BUCKETS = 65536


class RateLimit:
    """`rate` a second for each source, `burst` at once.

    A source is an IPv4 address or an IPv6 /64 (one customer has them all). The table is bounded: the
    bucket that was touched least recently goes, which forgives somebody who was silent for long.
    """

    def __init__(self, rate: float, burst: float, *, size: int = _MOST_BUCKETS) -> None:
        self._rate = rate
        self._burst = burst
        self._size = size
        self._half = size // 2
        # source -> (tokens, when they were counted)
        self._buckets: dict[str, tuple[float, float]] = {}

    def is_exhausted(self, host: str, now: float) -> bool:
        """Whether `take` would say no; takes nothing."""
        bucket = self._buckets.get(host if ":" not in host else site_of(host))
        return bucket is not None and min(self._burst, bucket[0] + (now - bucket[1]) * self._rate) < 1.0

    def take(self, host: str, now: float) -> bool:
        """Whether `host` may once more."""
        source = host if ":" not in host else site_of(host)
        # The order matters only where some will have to go.
        bucket = self._buckets.get(source)
        if bucket is None:
            tokens, then = self._burst, now
        else:
            tokens, then = bucket
            if len(self._buckets) > self._half:
                del self._buckets[source]
        tokens += (now - then) * self._rate
        if tokens > self._burst:
            tokens = self._burst
        allowed = tokens >= 1.0
        self._buckets[source] = (tokens - 1.0 if allowed else tokens, now)
        if len(self._buckets) > self._size:
            del self._buckets[next(iter(self._buckets))]
        return allowed
