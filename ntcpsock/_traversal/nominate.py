"""Who decides which connection counts (pure).

A race at each end can end with two different winners. So roles are fixed before it: the dialer leads, it
selects the first connection that it has authenticated; the listener follows, it takes the connection on which
the leader presents the dial's token (as ICE's controlling agent nominates, RFC 8445 section 8.1.1).
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

T = TypeVar("T")

Role = Literal["leader", "follower"]


class Nomination(Generic[T]):
    """The leader's side: the first authenticated connection is nominated, all others are losers."""

    def __init__(self) -> None:
        self.nominated: T | None = None

    def propose(self, connection: T) -> bool:
        """Whether `connection` is nominated."""
        if self.nominated is not None:
            return False
        self.nominated = connection
        return True


@dataclass(slots=True)
class OneTimeToken:
    """The follower's side: the token of one dial, good for one connection."""

    token: bytes
    spent: bool = False

    def redeem(self, presented: bytes) -> bool:
        """Whether `presented` is the token, and it is the first time."""
        if self.spent or not hmac.compare_digest(self.token, presented):
            return False
        self.spent = True
        return True
