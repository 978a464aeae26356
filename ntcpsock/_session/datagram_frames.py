"""What travels between two nodes in one QUIC DATAGRAM (RFC 9221), or in one UDP payload where nothing is encrypted.

All sockets of both nodes share a road, so each datagram says from which port it comes and to which it goes, as in
UDP (RFC 768). One that does not fit into the road's datagrams is sent in fragments, as IP would send it.

    kind(1) | source port(2) | destination port(2) | rest, in network byte order

The kinds lie among QUIC's first bytes (RFC 9443), which they stand for on a bare path: whoever tells STUN and TURN
from QUIC there tells them from these.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from ntcpsock._errors import BadMessage

#: The most that UDP over IPv4 carries: 65535 less 20 bytes of IP and 8 of UDP (RFC 768).
MAX_PAYLOAD: Final = 65507

DATAGRAM_KIND: Final = 0x70
FRAGMENT_KIND: Final = 0x71
REFUSED_KIND: Final = 0x72
CLOSE_KIND: Final = 0x73
OPEN_KIND: Final = 0x74
OPENED_KIND: Final = 0x75

_HEADER = struct.Struct("!BHH")
_FRAGMENT_HEADER = struct.Struct("!BHHIBB")  # ..., datagram's number, index, count

HEADER_LENGTH: Final = _HEADER.size
FRAGMENT_HEADER_LENGTH: Final = _FRAGMENT_HEADER.size

# Of the words that open a road over a bare path: the dial's id, and a proof of its token.
_DIAL_ID_LENGTH = 16
_PROOF_LENGTH = 32

# A road's datagrams hold at least this much, so the number of fragments fits into a byte.
SMALLEST_ROAD: Final = 512


@dataclass(frozen=True, slots=True)
class Datagram:
    """source, destination: ports at the sender and at the receiver."""

    source: int
    destination: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Fragment:
    """The `index`th of `count` parts of the datagram that its sender gave `number`."""

    source: int
    destination: int
    number: int
    index: int
    count: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """Nobody is at the port `destination` of whoever sends this, to which `source` of the other one has sent: what
    ICMP calls port unreachable."""

    source: int
    destination: int


@dataclass(frozen=True, slots=True)
class Close:
    """Whoever sends this forgets the road."""


Frame = Datagram | Fragment | Refused | Close


def encode_datagram(source: int, destination: int, payload: bytes, limit: int, number: int) -> list[bytes]:
    """One datagram in frames of at most `limit` bytes each: a single one, or fragments.

    number: of this datagram, for the fragments; the sender counts, modulo 2**32. Raises ValueError for a payload
    above MAX_PAYLOAD and for a limit below SMALLEST_ROAD.
    """
    if len(payload) + HEADER_LENGTH <= limit:
        return [_HEADER.pack(DATAGRAM_KIND, source, destination) + payload]
    if len(payload) > MAX_PAYLOAD or limit < SMALLEST_ROAD:
        raise ValueError(f"{len(payload)} bytes do not go over a road of {limit} bytes a frame")
    room = limit - FRAGMENT_HEADER_LENGTH
    parts = [payload[start : start + room] for start in range(0, len(payload), room)]
    return [
        _FRAGMENT_HEADER.pack(FRAGMENT_KIND, source, destination, number & 0xFFFFFFFF, index, len(parts))
        + part
        for index, part in enumerate(parts)
    ]


def encode_refused(refused: Refused) -> bytes:
    return _HEADER.pack(REFUSED_KIND, refused.source, refused.destination)


def encode_close() -> bytes:
    return bytes([CLOSE_KIND])


def encode_open(dial_id: bytes, proof: bytes) -> bytes:
    """The dialler's first word on a bare path, which it thereby chooses."""
    return bytes([OPEN_KIND]) + dial_id + proof


def encode_opened(proof: bytes) -> bytes:
    """The listener's answer."""
    return bytes([OPENED_KIND]) + proof


def decode_open_untrusted(data: bytes) -> tuple[bytes, bytes] | None:
    """Dial id and proof, where `data` is the word that opens a bare path."""
    if data[:1] != bytes([OPEN_KIND]) or len(data) != 1 + _DIAL_ID_LENGTH + _PROOF_LENGTH:
        return None
    return data[1 : 1 + _DIAL_ID_LENGTH], data[1 + _DIAL_ID_LENGTH :]


def decode_frame_untrusted(data: bytes) -> Frame:
    """The frame that is all of `data`. Raises BadMessage."""
    if data[:1] == bytes([CLOSE_KIND]) and len(data) == 1:
        return Close()
    if len(data) < HEADER_LENGTH:
        raise BadMessage("datagram: shorter than its header")
    kind, source, destination = _HEADER.unpack_from(data)
    if not source or not destination:
        raise BadMessage("datagram: port 0")
    if kind == DATAGRAM_KIND:
        payload = data[HEADER_LENGTH:]
        if len(payload) > MAX_PAYLOAD:
            raise BadMessage("datagram: larger than UDP's")
        return Datagram(source, destination, payload)
    if kind == REFUSED_KIND and len(data) == HEADER_LENGTH:
        return Refused(source, destination)
    if kind != FRAGMENT_KIND or len(data) < FRAGMENT_HEADER_LENGTH:
        raise BadMessage(f"datagram: kind {kind:#x} with {len(data)} bytes")
    _, _, _, number, index, count = _FRAGMENT_HEADER.unpack_from(data)
    if count < 2 or index >= count:
        raise BadMessage(f"datagram: fragment {index} of {count}")
    payload = data[FRAGMENT_HEADER_LENGTH:]
    if not payload or len(payload) > MAX_PAYLOAD:
        raise BadMessage(f"datagram: a fragment of {len(payload)} bytes")
    return Fragment(source, destination, number, index, count, payload)
