"""Datagrams of the application (RFC 9221) on their way to the core and from it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from qh3._hazmat import QuicConnectionCore

# Datagrams received and not fetched; of more, the oldest are dropped.
MOST_DATAGRAMS: Final = 256
# Bytes of datagrams handed over that congestion control has not let go yet.
DATAGRAM_ROOM: Final = 256 * 1024

# DATAGRAM (RFC 9221) in a packet of its own: flags, connection id, packet number, tag, type, length.
DATAGRAM_OVERHEAD: Final = 1 + 20 + 4 + 16 + 1 + 2


class DatagramQueues:
    """dropped: received ones that nobody fetched in time."""

    def __init__(self) -> None:
        self.dropped = 0
        # None while empty, as nearly always: an empty deque takes 600 bytes.
        self._received: deque[bytes] | None = None
        self._outgoing: deque[bytes] | None = None
        self._outgoing_bytes = 0

    def receive(self, data: bytes) -> None:
        """Keep one that has arrived; where there are too many, the oldest makes room."""
        if self._received is None:
            self._received = deque(maxlen=MOST_DATAGRAMS)
        if len(self._received) == MOST_DATAGRAMS:
            self.dropped += 1
        self._received.append(data)

    def take(self) -> list[bytes]:
        """Those that have arrived, oldest first."""
        received, self._received = self._received, None
        return [] if received is None else list(received)

    @property
    def has_received(self) -> bool:
        return bool(self._received)

    def send(self, data: bytes) -> None:
        """Queue one; whether there is room is asked before."""
        if self._outgoing is None:
            self._outgoing = deque()
        self._outgoing.append(bytes(data))
        self._outgoing_bytes += len(data) + DATAGRAM_OVERHEAD

    @property
    def has_room(self) -> bool:
        return self._outgoing_bytes < DATAGRAM_ROOM

    @property
    def next_size(self) -> int:
        """Bytes of the packet of the first that waits, at most; 0 for none."""
        return len(self._outgoing[0]) + DATAGRAM_OVERHEAD if self._outgoing else 0

    @property
    def has_outgoing(self) -> bool:
        return bool(self._outgoing)

    def let_go(self, core: QuicConnectionCore, datagram_size: int, packets: int) -> int:
        """Give the core what fits into so many packets, for it asks no congestion control: how many that takes."""
        used, outgoing = 0, self._outgoing
        while outgoing and used < packets:
            data = outgoing.popleft()
            size = len(data) + DATAGRAM_OVERHEAD
            self._outgoing_bytes -= size
            if size <= datagram_size:  # else packets have become smaller since: lost
                core.send_datagram(data)
                used += 1
        if not outgoing:
            self._outgoing = None
        return used
