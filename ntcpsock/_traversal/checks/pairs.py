"""The records of the check list (RFC 8445 section 6.1.2): pairs, and what comes of their checks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from ntcpsock._address import Endpoint

#: Where a pair's checks go out, and where to: the number of one of our sockets, and an endpoint of the other side.
Way = tuple[int, Endpoint]


class Outgoing(NamedTuple):
    """A datagram to send. ttl: None for the usual one."""

    base: int
    remote: Endpoint
    data: bytes
    ttl: int | None = None


@dataclass(frozen=True, slots=True)
class Heard:
    """The other side is at `remote`: the first check from there that proved itself. It says nothing of the way back."""

    base: int
    remote: Endpoint


@dataclass(frozen=True, slots=True)
class Valid:
    """A check was answered: the pair works both ways. rtt: in seconds; mapped: our address as the other side sees
    it."""

    base: int
    remote: Endpoint
    rtt: float
    mapped: Endpoint


@dataclass(frozen=True, slots=True)
class Nominated:
    """The pair to use from now on; again where the other side's address has changed."""

    base: int
    remote: Endpoint


@dataclass(frozen=True, slots=True)
class Lost:
    """The nominated pair has not been answered for as long as RFC 7675 lets one go on sending."""


Event = Heard | Valid | Nominated | Lost


@dataclass(slots=True)
class Pair:
    """One pair. tries: checks that may be sent in all; due: when the next is, inf for never; low_until: until then
    they carry the low TTL."""

    base: int
    remote: Endpoint
    priority: int
    check_priority: int
    tries: int
    due: float
    low_until: float = -math.inf
    sent: int = 0
    wait: float = 0.0
    heard: bool = False
    valid: bool = False
    #: The other side has nominated it, perhaps before it was valid.
    wanted: bool = False
    answered: float = -math.inf
    triggered: float = -math.inf
    #: Transactions under way, the oldest first: when each was sent, and in which role.
    transactions: dict[bytes, tuple[float, bool]] = field(default_factory=dict)
    #: Those of them that nominate: an answer to any of them will do.
    nominating: set[bytes] = field(default_factory=set)

    @property
    def way(self) -> Way:
        return self.base, self.remote
