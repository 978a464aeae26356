"""The relays that a broker tells nodes of: those of its settings, its own, and those that have registered with it.

Pure: `now` comes in. Which of them two nodes take is the dialer's choice, by its round trips and by what is told here
of their load; a relay that is silent, full or about to end is told no more.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from ntcpsock._traversal.broker.fields import MAX_RELAYS, RelayPlace
from ntcpsock._traversal.broker.operation import OfferRelay
from ntcpsock._traversal.relay.message import relay_proof

#: A relay says every `OFFER_INTERVAL` seconds that it is there; after so many without a word it is gone.
OFFER_INTERVAL: Final = 10.0
OFFER_LIFETIME: Final = 3 * OFFER_INTERVAL
#: Relays of one broker; nodes are told the `MAX_RELAYS` least loaded.
MOST_OFFERED: Final = 64
#: Load in percent from which on a relay gets no more nodes while there are others.
FULL: Final = 95
# A list that is told anew at each change of a load by one would be told all the time.
_LOAD_STEP: Final = 10


@dataclass(slots=True)
class OfferedRelay:
    """key: of the relay's session; until: when it is forgotten."""

    key: bytes
    place: RelayPlace
    until: float


class RelayBook:
    """static: those of the settings; one with port 0 is the relay in this process. secret: that of tickets, None: there
    are none; trusted: keys of relays that need not have it."""

    def __init__(
        self,
        static: Sequence[RelayPlace] = (),
        *,
        secret: bytes | None = None,
        broker_key: bytes = b"",
        trusted: Collection[bytes] = (),
        edition: int = 1,
    ) -> None:
        self.static = tuple(static)
        self.trusted = frozenset(trusted)
        #: Percent, of the relay in this process; None: there are no seats any more.
        self.own_load: Callable[[], int | None] = lambda: 0
        self._secret = secret
        self._broker_key = broker_key
        self._offered: dict[bytes, OfferedRelay] = {}
        self._edition = edition
        self._told: tuple[RelayPlace, ...] | None = None
        self._when = 0.0

    def offered(self, now: float) -> list[OfferedRelay]:
        """Those that have registered and are there."""
        return [relay for relay in self._offered.values() if relay.until > now]

    def offer(self, key: bytes, offer: OfferRelay, host: str, now: float) -> bytes | None:
        """A relay says that it is there. The secret that it needs, empty where it has it; None: it is not believed.

        key, host: of its session.
        """
        by_key = key in self.trusted
        if self._secret is None or not (by_key or self._is_proved(key, offer.proof)):
            return None
        if key not in self._offered and len(self.offered(now)) >= MOST_OFFERED:
            return None
        place = offer.place
        if place.host in ("0.0.0.0", "::"):
            place = place._replace(host=host)
        if not place.port:
            return None
        self._offered[key] = OfferedRelay(key, place, now + OFFER_LIFETIME)
        self._when = now - 1.0
        return self._secret if by_key else b""

    def _is_proved(self, key: bytes, proof: bytes) -> bool:
        assert self._secret is not None
        return hmac.compare_digest(proof, relay_proof(self._secret, self._broker_key, key))

    def withdraw(self, key: bytes) -> bool:
        """A relay takes no more; whether it was here."""
        self._when = 0.0
        return self._offered.pop(key, None) is not None

    def told(self, now: float) -> tuple[int, tuple[RelayPlace, ...]]:
        """What nodes are told: the edition of the list, 0 of an empty one, and the list, the least loaded first. It may
        be a second old: each keep-alive of each node asks."""
        if self._told is None or not 0 <= now - self._when < 1.0:
            self._when = now
            self._tell(now)
        assert self._told is not None
        return self._edition if self._told else 0, self._told

    def _tell(self, now: float) -> None:
        self._offered = {relay.key: relay for relay in self.offered(now)}
        places = [place for place in map(self._with_load, self.static) if place is not None]
        places += [relay.place for relay in self._offered.values()]
        if any(place.load < FULL for place in places):
            places = [place for place in places if place.load < FULL]
        steps = [place._replace(load=place.load // _LOAD_STEP * _LOAD_STEP) for place in places]
        fresh = tuple(sorted(steps, key=lambda place: place.load)[:MAX_RELAYS])
        if fresh != self._told:
            if self._told is not None:
                self._edition = self._edition % (2**32 - 1) + 1
            self._told = fresh

    def _with_load(self, place: RelayPlace) -> RelayPlace | None:
        if place.port:
            return place
        load = self.own_load()
        return None if load is None else place._replace(load=load)
