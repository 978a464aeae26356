"""Which relay a dial takes first: a pure function of round trips and loads."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from ntcpsock._address import Endpoint
from ntcpsock._traversal.relay.told import ToldRelay, told_as

# What a full relay costs, in seconds of round trip: bytes wait there, and a seat may be refused.
_FULL_COST = 0.2
# Of one whose round trip is not known, for a side: a continent away.
_UNKNOWN_COST = 0.3
# Differences below this are no reason: nodes that are equally far shall not all take the same one.
_SAME = 0.01


def order_relays(
    relays: Sequence[Endpoint],
    ours: Mapping[str, float],
    theirs: Mapping[str, float],
    chance: random.Random,
    lost: Endpoint | None = None,
) -> tuple[Endpoint, ...]:
    """The best first. ours, theirs: round trips in seconds of both sides, by the relays' words (`told_as`); lost: the
    one by which the last path went, and failed: it may be gone, and say so to nobody."""
    if len(relays) < 2:
        return tuple(relays)

    def cost(relay: Endpoint) -> float:
        word = told_as(relay)
        load = relay.load if isinstance(relay, ToldRelay) else 0
        ways = [side.get(word, _UNKNOWN_COST) for side in (ours, theirs) if side]
        return sum(ways) + _FULL_COST * (load / 100) ** 2

    costs = {relay: int(cost(relay) / _SAME) for relay in relays}
    shuffled = chance.sample(list(relays), len(relays)) if ours else list(relays)
    return tuple(sorted(shuffled, key=lambda relay: (relay == lost, costs[relay])))
