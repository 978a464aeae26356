"""Fragments: only the first of a datagram has its ports, and it need not come first (RFC 4787 REQ-14)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ntcpsock.testing.natlab.router.packet import Packet

LIFETIME = 30.0  # seconds; the reassembly timer of Linux
_DATAGRAMS = 256
_HELD_FRAGMENTS = 64

T = TypeVar("T")
_Key = tuple[int, int, int, int]


@dataclass(slots=True)
class _Datagram(Generic[T]):
    expires: float
    fate: T | None = None
    held: list[bytearray] = field(default_factory=list)


class FragmentTable(Generic[T]):
    """What became of the first fragment of each datagram, and the fragments that came before it."""

    def __init__(self) -> None:
        self._datagrams: dict[_Key, _Datagram[T]] = {}

    def __len__(self) -> int:
        return len(self._datagrams)

    def first(self, key: _Key, fate: T, now: float) -> list[bytearray]:
        """The first fragment passed with `fate`; the held ones that can follow it now."""
        datagram = self._find(key, now)
        datagram.fate = fate
        held, datagram.held = datagram.held, []
        return held

    def later(self, packet: Packet, key: _Key, now: float) -> T | None:
        """The fate of a later fragment's datagram; None where the fragment is held back (or lost: the room
        is bounded) until the first one comes."""
        datagram = self._find(key, now)
        if datagram.fate is None and len(datagram.held) < _HELD_FRAGMENTS:
            datagram.held.append(packet.data)
        return datagram.fate

    @staticmethod
    def key(packet: Packet) -> _Key:
        """What the fragments of one datagram have in common."""
        return packet.source[0], packet.target[0], packet.protocol, packet.identification

    def _find(self, key: _Key, now: float) -> _Datagram[T]:
        datagram = self._datagrams.get(key)
        if datagram is None or now >= datagram.expires:
            self._datagrams.pop(key, None)
            while len(self._datagrams) >= _DATAGRAMS:
                del self._datagrams[next(iter(self._datagrams))]
            datagram = self._datagrams[key] = _Datagram(now + LIFETIME)
        return datagram
