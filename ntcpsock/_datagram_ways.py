"""The nodes that datagrams go to and come from: under which label and which key, and who is forgotten when.

As a kernel's neighbour table: bounded, the one that was unused for longest makes room, and nobody stays for ever.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import trio

from ntcpsock._datagram_way import Way
from ntcpsock._session.datagram_frames import encode_close

#: Ways at once. Each has a UDP socket; the one that was unused for longest makes room.
MAX_WAYS: Final = 512
#: One that was used within so many seconds makes no room for a stranger's.
_RECENTLY: Final = 10.0
#: Seconds without a datagram after which a way ends: what RFC 4787 (REQ-5) recommends for a NAT's UDP mapping.
IDLE_DEADLINE: Final = 300.0


class Ways:
    """The table. A node has several labels, and a key as soon as that is known."""

    def __init__(self) -> None:
        self.by_label: dict[str, Way] = {}
        self.by_key: dict[bytes, Way] = {}

    def enter(self, way: Way, now: float) -> bool:
        """Remember a way; False where all places are taken by ways in use."""
        if len(self.by_key) + sum(1 for known in self.by_label.values() if known.key is None) >= MAX_WAYS:
            oldest = min(self.by_label.values(), key=lambda known: known.used)
            if now - oldest.used < _RECENTLY:
                return False
            self.end(oldest)
        self.by_label[way.label] = way
        if way.key is not None:
            self.by_key[way.key] = way
        return True

    def identify(self, way: Way, key: bytes) -> None:
        """Whose way it is has been looked up, and nobody else's is known to be the same node's."""
        way.key = key
        self.by_key[key] = way

    def call(self, way: Way, label: str) -> None:
        """It may be addressed by that label too, unless another one is."""
        way.labels.add(label)
        self.by_label.setdefault(label, way)

    def join(self, way: Way, known: Way) -> None:
        """Two labels turn out to be one node: `known` has them both from now on."""
        known.labels |= way.labels
        for label in way.labels:
            self.by_label[label] = known

    def holds(self, way: Way) -> bool:
        """Whether it is still the way to its node."""
        return way.key is not None and self.by_key.get(way.key) is way

    def forget(self, way: Way) -> None:
        """Take it out, with all its labels; its roads are left alone."""
        for label in way.labels:
            if self.by_label.get(label) is way:
                del self.by_label[label]
        if way.key is not None and self.by_key.get(way.key) is way:
            del self.by_key[way.key]

    def end(self, way: Way) -> None:
        """Forget a node, and close its roads. The next datagram dials again."""
        self.forget(way)
        for road in tuple(way.roads):
            with suppress(OSError, trio.ClosedResourceError):
                road.try_send_datagram(encode_close())
            way.lose(road)
            road.close()

    def end_idle(self, now: float) -> None:
        """End those that nothing has used for a while."""
        for way in set(self.by_label.values()):
            if now - way.used >= IDLE_DEADLINE and not way.is_opening:
                self.end(way)

    def end_all(self) -> None:
        for way in {*self.by_label.values(), *self.by_key.values()}:
            self.end(way)
