"""Which pairs of routers can be connected directly, over TCP or UDP, and why (pure).

What physics allows, whatever program punches: the yardstick of `ntcp lab matrix`.
"""

from __future__ import annotations

from enum import Enum

from ntcpsock.testing.natlab.kinds import NatKind, Translation
from ntcpsock.testing.natlab.presets import parse_kind
from ntcpsock.testing.natlab.router.behaviour import (
    Allocation,
    Behaviour,
    Filtering,
    Hairpin,
    Mapping,
    Outward,
    TcpBehaviour,
    UdpBehaviour,
)

WIDEST_BAND = 512
"""Ports of a block from which a NAT that changes its mappings may draw and still be foreseen."""


class Way(Enum):
    """Why a pair has a direct path."""

    REACHABLE = "one side can be reached"
    """It is public, or its mapping is endpoint-independent and lets in whoever comes from the right address."""
    STABLE = "both mappings are endpoint-independent"
    PREDICTABLE = "each side that changes its ports does so foreseeably"
    NEIGHBOURS = "both are on one network"
    """Behind one router, or one carrier's NAT that leads back in. As the next ones, never an answer of
    `expected_direct`."""
    IPV6 = "both have IPv6, which nobody translates"
    MAPPED = "a router maps a port when it is asked"
    """Whatever both NATs do: `port_mapper`."""
    RELAYED = "the broker has a relay"
    """Whatever lies between."""

    @property
    def predicts(self) -> bool:
        """Whether ports have to be foreseen."""
        return self is Way.PREDICTABLE


def expected_direct(
    nat_a: str | NatKind | Behaviour, nat_b: str | NatKind | Behaviour, *, udp: bool = False
) -> Way | None:
    """Why two hosts behind such routers have a direct TCP path, or None where none can be expected. udp: a UDP path
    instead.

    No carriers' NATs, no shared router, no IPv6, no port mapping. Raises ValueError for an unknown kind.
    """
    read = _udp if udp else _tcp
    sides = [read(parse_kind(nat)) for nat in (nat_a, nat_b)]
    if None in sides:
        return None
    words = [side for side in sides if side is not None]
    if any(_is_stable(side) and side.filtering is not _STRICTEST for side in words):
        return Way.REACHABLE
    if all(_is_stable(side) for side in words):
        return Way.STABLE
    if all(_is_stable(side) or _is_foreseeable(side) for side in words):
        return Way.PREDICTABLE
    return None


def hairpins(nat: str | NatKind | Behaviour) -> bool:
    """Whether two customers of a carrier with such a NAT meet at their public endpoints, over TCP or UDP. Raises
    ValueError for an unknown kind."""
    kind = parse_kind(nat)
    protocols = [_tcp(kind), _udp(kind)]
    return any(
        side is not None and side.hairpin is Hairpin.EXTERNAL and _is_stable(side) for side in protocols
    )


def gives_ports_sparingly(nat: str | NatKind | Behaviour) -> bool:
    """Whether each connection takes a port of a small block and keeps it for minutes, so that many connects in a row
    find none left. Raises ValueError for an unknown kind."""
    side = _tcp(parse_kind(nat))
    return (
        side is not None
        and not _is_stable(side)
        and side.allocation in (Allocation.BAND, Allocation.PER_SESSION)
        and side.band <= WIDEST_BAND
    )


_STRICTEST = Filtering.ADDRESS_AND_PORT_DEPENDENT


def _tcp(kind: NatKind | Behaviour) -> TcpBehaviour | None:
    """What a router does to TCP; None where it lets none out."""
    if isinstance(kind, Behaviour):
        if kind.outward not in (Outward.ALL, Outward.NO_UDP):
            return None
        # Without translation there is one mapping only: the address itself.
        return kind.tcp if kind.translates else TcpBehaviour(filtering=kind.tcp.filtering)
    if kind.translation in (Translation.RANDOM, Translation.FULLY_RANDOM):
        return TcpBehaviour(mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT, allocation=Allocation.RANDOM)
    open_to_all = kind.translation is Translation.NONE
    return TcpBehaviour(filtering=Filtering.ENDPOINT_INDEPENDENT if open_to_all else _STRICTEST)


def _udp(kind: NatKind | Behaviour) -> UdpBehaviour | None:
    """The same for UDP."""
    if isinstance(kind, Behaviour):
        if not kind.sends_udp:
            return None
        return kind.udp if kind.translates else UdpBehaviour(filtering=kind.udp.filtering)
    if kind.translation in (Translation.RANDOM, Translation.FULLY_RANDOM):
        return UdpBehaviour(mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT, allocation=Allocation.RANDOM)
    open_to_all = kind.translation is Translation.NONE
    return UdpBehaviour(filtering=Filtering.ENDPOINT_INDEPENDENT if open_to_all else _STRICTEST)


def _is_stable(side: TcpBehaviour | UdpBehaviour) -> bool:
    return side.mapping is Mapping.ENDPOINT_INDEPENDENT and side.allocation is not Allocation.PER_SESSION


def _is_foreseeable(side: TcpBehaviour | UdpBehaviour) -> bool:
    if side.allocation in (Allocation.BAND, Allocation.PER_SESSION):
        return side.band <= WIDEST_BAND
    return side.allocation in (Allocation.SEQUENTIAL, Allocation.PRESERVING)
