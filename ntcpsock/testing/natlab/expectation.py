"""Which pairs of routers can be connected directly over TCP, and why (pure).

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
    Mapping,
    Outward,
    TcpBehaviour,
)

WIDEST_BAND = 512
"""Ports of a block from which a NAT that changes its mappings may draw and still be foreseen."""


class Way(Enum):
    """Why a pair has a direct path."""

    REACHABLE = "one side can be reached"
    """It is public, or its mapping is endpoint-independent and lets in whoever comes from the right address."""
    STABLE = "both mappings are endpoint-independent"
    PREDICTABLE = "each side that changes its ports does so foreseeably"
    MAPPED = "a router maps a port when it is asked"
    """Whatever both NATs do: `port_mapper`. Never what `expected_direct` answers."""
    RELAYED = "the broker has a relay"
    """Whatever lies between: as little an answer of `expected_direct`."""

    @property
    def predicts(self) -> bool:
        """Whether ports have to be foreseen."""
        return self is Way.PREDICTABLE


def expected_direct(nat_a: str | NatKind | Behaviour, nat_b: str | NatKind | Behaviour) -> Way | None:
    """Why two hosts behind such routers have a direct TCP path, or None where none can be expected.

    No carriers' NATs, no shared router, no IPv6, no port mapping. Raises ValueError for an unknown kind.
    """
    sides = [_tcp(parse_kind(nat)) for nat in (nat_a, nat_b)]
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


def _is_stable(side: TcpBehaviour) -> bool:
    return side.mapping is Mapping.ENDPOINT_INDEPENDENT and side.allocation is not Allocation.PER_SESSION


def _is_foreseeable(side: TcpBehaviour) -> bool:
    if side.allocation in (Allocation.BAND, Allocation.PER_SESSION):
        return side.band <= WIDEST_BAND
    return side.allocation in (Allocation.SEQUENTIAL, Allocation.PRESERVING)
