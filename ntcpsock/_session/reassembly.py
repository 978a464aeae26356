"""Fragments back into datagrams: what RFC 791 section 3.2 asks of a host, with bounds.

A datagram of which a fragment is lost is lost; the room that it took is free after a while, or when newer ones need
it. Fragments of two datagrams are never mixed: their sender numbers them, and says how many there are.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from ntcpsock._session.datagram_frames import MAX_PAYLOAD, Datagram, Fragment

#: Seconds for which an incomplete datagram waits. Its fragments are sent at once.
PATIENCE: Final = 5.0
#: Incomplete datagrams of one road, and their bytes together.
MAX_INCOMPLETE: Final = 64
MAX_BYTES: Final = 8 * MAX_PAYLOAD

_Key = tuple[int, int, int]


class _Parts:
    __slots__ = ("begun", "count", "payloads", "size")

    def __init__(self, count: int, now: float) -> None:
        self.count = count
        self.begun = now
        self.payloads: dict[int, bytes] = {}
        self.size = 0


class Reassembly:
    """The incomplete datagrams of one road.

    lost: how many never became complete.
    """

    def __init__(self) -> None:
        self.lost = 0
        self._parts: OrderedDict[_Key, _Parts] = OrderedDict()
        self._bytes = 0

    @property
    def waiting(self) -> int:
        """Bytes held."""
        return self._bytes

    def add_untrusted(self, fragment: Fragment, now: float) -> Datagram | None:
        """Take a fragment in; the datagram, where it was the last that was missing. A fragment that contradicts the
        ones before ends its datagram."""
        self._expire(now)
        key = (fragment.source, fragment.destination, fragment.number)
        parts = self._parts.get(key)
        if parts is None:
            parts = self._parts[key] = _Parts(fragment.count, now)
        if fragment.index in parts.payloads:
            return None  # a network may deliver twice
        size = parts.size + len(fragment.payload)
        if fragment.count != parts.count or size > MAX_PAYLOAD:
            self._drop(key)
            return None
        parts.payloads[fragment.index] = fragment.payload
        parts.size = size
        self._bytes += len(fragment.payload)
        if len(parts.payloads) == parts.count:
            payload = b"".join(parts.payloads[index] for index in range(parts.count))
            self._forget(key)
            return Datagram(fragment.source, fragment.destination, payload)
        while len(self._parts) > MAX_INCOMPLETE or self._bytes > MAX_BYTES:
            self._drop(next(iter(self._parts)))
        return None

    def _expire(self, now: float) -> None:
        while self._parts:
            key, oldest = next(iter(self._parts.items()))
            if now - oldest.begun < PATIENCE:
                return
            self._drop(key)

    def _drop(self, key: _Key) -> None:
        self._forget(key)
        self.lost += 1

    def _forget(self, key: _Key) -> None:
        self._bytes -= self._parts.pop(key).size
