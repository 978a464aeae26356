"""Tickets to a relay: who may enter which session there, once, until when.

The broker issues a pair of them with each introduction, one for each side; a relay that shares its secret can
check them, and needs neither the broker nor a memory of nodes for it:

    session(16) | expires(4) | seat(1) | node(8) | MAC(16)

`expires` is in seconds of Unix time, `node` stands for the key of whom it was issued to, the MAC is a keyed BLAKE2b
(RFC 7693 section 2.9) over all before it. A ticket opens a seat, and no data: what the peers say there is TLS
from end to end.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from ntcpsock._errors import BadMessage

SECRET_LENGTH: Final = 32
SESSION_LENGTH: Final = 16
NODE_LENGTH: Final = 8
#: Seconds that a ticket is good for: a dial, and clocks that differ a little.
LIFETIME: Final = 90

_FIELDS: Final = struct.Struct(f">{SESSION_LENGTH}sIB{NODE_LENGTH}s")
_MAC_LENGTH: Final = 16
TICKET_LENGTH: Final = _FIELDS.size + _MAC_LENGTH

#: Of `relay_proof`.
PROOF_LENGTH: Final = 16

#: What the upgrade of `GET /relay` asks for, and the header with the ticket.
UPGRADE: Final = "ntcp-relay/1"
TICKET_HEADER: Final = "ntcp-ticket"


class Seat(IntEnum):
    """The two ends of a relayed connection."""

    DIALER = 0
    LISTENER = 1


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a relay reads out of one."""

    session: bytes
    expires: int
    seat: Seat
    node: bytes


def issue_pair(
    secret: bytes, session: bytes, dialer: bytes, listener: bytes, now: float
) -> tuple[bytes, bytes]:
    """The tickets of both sides to one session; `dialer` and `listener` are their keys, `now` is Unix time."""
    return _issue(secret, session, Seat.DIALER, dialer, now), _issue(
        secret, session, Seat.LISTENER, listener, now
    )


def _issue(secret: bytes, session: bytes, seat: Seat, key: bytes, now: float) -> bytes:
    fields = _FIELDS.pack(session, int(now) + LIFETIME, seat, node_tag(key))
    return fields + _mac(secret, fields)


def node_tag(key: bytes) -> bytes:
    """What stands for a node's key in its tickets."""
    return hashlib.blake2b(key, digest_size=NODE_LENGTH).digest()


def _mac(secret: bytes, fields: bytes) -> bytes:
    return hashlib.blake2b(fields, key=secret, digest_size=_MAC_LENGTH, person=b"ntcp ticket").digest()


def verify_untrusted(secret: bytes, data: bytes, now: float) -> Ticket:
    """The ticket in `data`. Raises BadMessage where the broker has not issued it, or its time is over."""
    if len(data) != TICKET_LENGTH:
        raise BadMessage("not a ticket")
    fields, mac = data[: _FIELDS.size], data[_FIELDS.size :]
    if not hmac.compare_digest(mac, _mac(secret, fields)):
        raise BadMessage("ticket of another issuer")
    session, expires, seat, node = _FIELDS.unpack(fields)
    if now > expires:
        raise BadMessage("ticket is too old")
    return Ticket(session, expires, Seat(seat), node)


def relay_proof(secret: bytes, broker: bytes, relay: bytes) -> bytes:
    """That a relay shares `secret` with a broker, for its own key at that broker's; both are public keys."""
    return hashlib.blake2b(
        broker + relay, key=secret, digest_size=PROOF_LENGTH, person=b"ntcp relay"
    ).digest()


def to_header(ticket: bytes) -> bytes:
    """A ticket as a value of `TICKET_HEADER` (base64url, RFC 4648 section 5)."""
    return base64.urlsafe_b64encode(ticket)


def from_header_untrusted(value: bytes) -> bytes:
    """Raises BadMessage."""
    try:
        return base64.b64decode(value, b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise BadMessage("ticket is not base64url") from None
