"""A keep-alive in 41 octets, and its answer in 21: what comes most often costs a broker, and a radio, the least.

    request:  4 | session(8) | counter(8) | number(4) | relays(4) | proof(16)
    answer:   5 | number(4) | proof(16)

All numbers are in network order. Both proofs are of one BLAKE2s (RFC 7693), under the key that the node and its broker
share: over all of the request that precedes its proof, whose first half goes there and whose second half comes back. So
an answer fits one request alone, and neither can be made from the other.

It is for the plain case only: a session that stands, at the address that it has always had. A broker that sees anything
else says nothing, because a frame without the node's key is too short to be answered with a Challenge. The node, which
hears nothing, says it once more as a sealed KeepAlive (`message`).
"""

from __future__ import annotations

import struct
from hashlib import blake2s
from hmac import compare_digest
from typing import Final, NamedTuple

from ntcpsock._errors import BadMessage

SHORT_KEEP_ALIVE: Final = 4
SHORT_ACK: Final = 5

_PROOF_LENGTH: Final = 16
_REQUEST: Final = struct.Struct(">B8sQII")
_ACK_HEADER: Final = struct.Struct(">BI")
#: What is proved, how long the request is, and where its number stands.
PROVED_LENGTH: Final = _REQUEST.size
SHORT_KEEP_ALIVE_LENGTH: Final = PROVED_LENGTH + _PROOF_LENGTH
SHORT_ACK_LENGTH: Final = _ACK_HEADER.size + _PROOF_LENGTH
_NUMBER: Final = slice(17, 21)
#: The shared key seals boxes, too: another purpose, another function of it.
PURPOSE: Final = b"ntcpkeep"
_ACK_KIND: Final = bytes((SHORT_ACK,))


class ShortKeepAlive(NamedTuple):
    """What the request says: the session, a counter that rises with every frame of the node, the request's number, and
    the edition of the list of relays that the node has."""

    session: bytes
    counter: int
    number: int
    relays: int


def encode_short_keep_alive(request: ShortKeepAlive, shared: bytes) -> tuple[bytes, bytes]:
    """The request, and the one answer that fits it. shared: the 32 octets that boxes are sealed with."""
    proved = _REQUEST.pack(SHORT_KEEP_ALIVE, *request)
    proof = blake2s(proved, key=shared, person=PURPOSE).digest()
    return proved + proof[:_PROOF_LENGTH], _ack(proved, proof)


def decode_short_keep_alive_untrusted(data: bytes) -> ShortKeepAlive:
    """What it says; nothing is proved before `answer_to`. Raises BadMessage."""
    if len(data) != SHORT_KEEP_ALIVE_LENGTH or data[0] != SHORT_KEEP_ALIVE:
        raise BadMessage("not a short keep-alive")
    return ShortKeepAlive(*_REQUEST.unpack_from(data)[1:])


def answer_to(data: bytes, shared: bytes) -> bytes | None:
    """The answer to a request, or None: whoever made it does not have the key."""
    proved = data[:PROVED_LENGTH]
    proof = blake2s(proved, key=shared, person=PURPOSE).digest()
    return _ack(proved, proof) if compare_digest(proof[:_PROOF_LENGTH], data[PROVED_LENGTH:]) else None


def number_of_untrusted(data: bytes) -> int:
    """Which request an answer says that it answers. Raises BadMessage."""
    if len(data) != SHORT_ACK_LENGTH or data[0] != SHORT_ACK:
        raise BadMessage("not an answer to a short keep-alive")
    number: int = _ACK_HEADER.unpack_from(data)[1]
    return number


def _ack(proved: bytes, proof: bytes) -> bytes:
    return _ACK_KIND + proved[_NUMBER] + proof[_PROOF_LENGTH:]
