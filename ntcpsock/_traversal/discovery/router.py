"""What the router's own word adds to a discovery: whether it maps ports, and whether another NAT follows (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ntcpsock._diagnosis import Discovery
from ntcpsock._traversal.discovery.finding import no, undecided, yes


def with_router(
    discovery: Discovery, external: Mapping[str, str | None], failures: Mapping[str, str], reason: str | None
) -> Discovery:
    """The discovery with its `port_mapping`, and a `double_nat` that the router decides where it can.

    external: by protocol that it speaks the router's address outside, None where that comes with a mapping only;
    failures: why each other protocol cannot be used; reason: why no router could be asked at all.
    """
    if reason is not None:
        return replace(discovery, port_mapping=undecided(f"no router could be asked: {reason}"))
    if not external:
        why = ", ".join(f"{protocol} {failure}" for protocol, failure in sorted(failures.items()))
        return replace(discovery, port_mapping=no(why))
    spoken = ", ".join(sorted(external))
    address = next(filter(None, external.values()), None)
    public = discovery.tcp.public or discovery.udp.public
    if address is None or not public:
        return replace(discovery, port_mapping=yes(spoken))
    found = replace(discovery, port_mapping=yes(f"{spoken}; its address outside is {address}"))
    if address in public:
        return replace(found, double_nat=no(f"the router has the public address {address} itself"))
    second = yes(f"the router's own address outside is {address}, the world sees {public[0]}")
    return replace(found, double_nat=second)
