"""Whether the application's large datagrams still arrive (RFC 8899 section 4.3, pure).

Nothing sends a lost DATAGRAM again, and the probes that follow its loss are small and come through; so probe time-outs,
which tell it of a stream, never add up. Now and then a PING rides in the packet of a large one, and its answer says
that packets of that size arrive.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from ntcpsock._session.quic.configuration import SMALLEST_INITIAL

if TYPE_CHECKING:
    from qh3._hazmat import QuicConnectionCore

#: Large ones in a row, of those that are looked at, that must be missing while smaller ones arrive.
MISSING: Final = 5
# Seconds, and round trips, for an answer.
PATIENCE: Final = 0.1
PATIENCE_ROUND_TRIPS: Final = 3.0

# Beyond the numbers of the machine's own PINGs and those of `core_window`.
_FIRST_PING: Final = 1 << 48


class SizeCheck:
    """One is looked at a time. is_failed: whether packets above 1200 bytes seem to get lost for their size."""

    def __init__(self) -> None:
        self.is_failed = False
        self._ping = _FIRST_PING
        self._sent_at = math.inf
        self._missing = 0

    def join(
        self, core: QuicConnectionCore, size: int, now: float, heard_at: float, round_trip: float
    ) -> bool:
        """Before the core makes the next packet, of about `size` bytes: whether a PING rides in it.

        heard_at: when something of the peer arrived last; round_trip: seconds."""
        if size <= SMALLEST_INITIAL or self.is_failed:
            return False
        if self._sent_at < math.inf:
            if now < self._sent_at + PATIENCE + PATIENCE_ROUND_TRIPS * round_trip:
                return False
            # Where nothing at all arrives, size is not why.
            if heard_at > self._sent_at + round_trip / 2:
                self._missing += 1
                self.is_failed = self._missing >= MISSING
        self._ping += 1
        self._sent_at = now
        core.send_ping(self._ping)
        return True

    def left(self, size: int) -> None:
        """How large the packet with the PING has become: with something small it tells nothing."""
        if size <= SMALLEST_INITIAL:
            self._sent_at = math.inf
            self._ping += 1

    def answered(self, ping: int) -> None:
        """The peer has got the packet in which a PING rode."""
        if ping == self._ping:
            self._sent_at = math.inf
            self._missing = 0
