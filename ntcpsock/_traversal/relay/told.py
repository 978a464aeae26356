"""A relay as the broker tells of it."""

from __future__ import annotations

from ntcpsock._address import Endpoint

#: Relays whose round trips a listener tells.
MAX_TIMES = 4


class ToldRelay(Endpoint):
    """Where this node reaches it. As an endpoint it is equal to the same one without the rest.

    told: how the broker spells it, to all nodes alike. load: percent, as the broker knows it.
    """

    told: str
    load: int = 0

    @classmethod
    def make(cls, host: str, port: int, told: str, load: int) -> ToldRelay:
        relay = cls(host, port)
        relay.told, relay.load = told, load
        return relay


def told_as(relay: Endpoint) -> str:
    """The word for a relay that both sides of a dial know."""
    return relay.told if isinstance(relay, ToldRelay) else str(relay)
