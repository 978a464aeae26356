"""What either side of a dial needs of its node."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import trio

from ntcpsock._address import Endpoint
from ntcpsock._config import Encryption
from ntcpsock._traversal.bursts import Bursts
from ntcpsock._traversal.introductions import Introductions
from ntcpsock._traversal.pairs import Pairs
from ntcpsock._traversal.punch.message import Transport
from ntcpsock._traversal.surroundings import Surroundings
from ntcpsock._traversal.turn.allocation import TurnAllocation
from ntcpsock._traversal.turn.credentials import TurnServer


class SideContext(Protocol):
    """`course.DialContext` and `offered.OfferedContext` say what only one of them needs."""

    @property
    def techniques(self) -> Sequence[str]: ...
    @property
    def datagram_techniques(self) -> Sequence[str]: ...
    @property
    def encryption(self) -> Encryption: ...
    def mapped_ports(self, transport: Transport) -> Collection[int]:
        """Ports that our NAT holds for us already, or may hold still."""

    def note_mapped(self, transport: Transport, ports: Collection[int]) -> None:
        """Our NAT was seen to give us these."""

    @property
    def bursts(self) -> Bursts:
        """What prediction has cost our NAT."""
        ...

    @property
    def stun_servers(self) -> Sequence[Endpoint]: ...
    @property
    def relays(self) -> Sequence[Endpoint]: ...
    @property
    def relay_times(self) -> Mapping[str, float]: ...
    @property
    def turn_servers(self) -> Sequence[TurnServer]: ...
    def take_turn_allocation(self, *, ipv6: bool) -> TurnAllocation | None:
        """One that is ready, for an attempt to have."""

    @property
    def broker_rtt(self) -> float: ...
    @property
    def surroundings(self) -> Surroundings: ...
    @property
    def pairs(self) -> Pairs: ...
    @property
    def introductions(self) -> Introductions: ...
    @property
    def nursery(self) -> trio.Nursery: ...
    @property
    def consent_interval(self) -> float: ...
    @property
    def hidden(self) -> bool: ...
    @property
    def birthday_sockets(self) -> int: ...
    @property
    def birthday_rate(self) -> float: ...
