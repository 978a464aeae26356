"""How much one node and one address may do at a broker, beyond the limits that protect the broker itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from ntcpsock._address import site_of
from ntcpsock._errors import ConfigurationError

_MOST_BUCKETS: Final = 65536
# What may come at once, as a multiple of what may come in a second.
_BURST: Final = 10.0


@dataclass(frozen=True, slots=True)
class Quotas:
    """Per second; None: no quota. An address is an IPv4 address, or an IPv6 /64."""

    registrations_of_a_node: float | None = None
    registrations_of_an_address: float | None = None
    introductions_of_a_node: float | None = None
    introductions_of_an_address: float | None = None


def read_quotas(settings: Mapping[str, Any]) -> Quotas:
    """What the settings of these names say. Raises ConfigurationError."""
    values = {entry.name: settings.get(entry.name) for entry in fields(Quotas)}
    for name, value in values.items():
        if value is not None and value <= 0:
            raise ConfigurationError(
                f"{name}: must be above 0; leave it out for no quota, or ban who shall do nothing"
            )
    return Quotas(**values)


class Buckets:
    """Token buckets by key: `rate` a second, ten times as many at once, at least one. Bounded: who was silent for
    longest is forgiven first."""

    def __init__(self, rate: float | None, *, size: int = _MOST_BUCKETS) -> None:
        self._rate = rate
        self._burst = max(1.0, (rate or 0.0) * _BURST)
        self._size = size
        self._buckets: dict[bytes | str, tuple[float, float]] = {}

    def take(self, key: bytes | str, now: float) -> bool:
        """Whether `key` may once more."""
        if self._rate is None:
            return True
        tokens, then = self._buckets.pop(key, (self._burst, now))
        tokens = min(self._burst, tokens + (now - then) * self._rate)
        allowed = tokens >= 1.0
        self._buckets[key] = (tokens - 1.0 if allowed else tokens, now)
        if len(self._buckets) > self._size:
            del self._buckets[next(iter(self._buckets))]
        return allowed


class Meters:
    """The buckets of a set of quotas."""

    def __init__(self, quotas: Quotas) -> None:
        self._register = (
            Buckets(quotas.registrations_of_a_node),
            Buckets(quotas.registrations_of_an_address),
        )
        self._introduce = (
            Buckets(quotas.introductions_of_a_node),
            Buckets(quotas.introductions_of_an_address),
        )
        self._has_register = bool(quotas.registrations_of_a_node or quotas.registrations_of_an_address)
        #: Whether there is a quota for introductions.
        self.has_introduce = bool(quotas.introductions_of_a_node or quotas.introductions_of_an_address)

    def may_register(self, key: bytes, host: str, now: float) -> bool:
        """Whether a node may register once more."""
        return not self._has_register or _take(self._register, key, host, now)

    def may_introduce(self, key: bytes, host: str, now: float) -> bool:
        """Whether a node may ask for one more introduction."""
        return not self.has_introduce or _take(self._introduce, key, host, now)


def _take(buckets: tuple[Buckets, Buckets], key: bytes, host: str, now: float) -> bool:
    by_node, by_address = buckets
    return by_node.take(key, now) and by_address.take(site_of(host), now)
