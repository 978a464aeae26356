"""Numbers of STUN, as the IANA registry "STUN Parameters" has them.

https://www.iana.org/assignments/stun-parameters. Unknown numbers are normal in STUN (a receiver skips
what it need not understand), so fields hold plain ints and these enums only name the known ones.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

#: RFC 8489 section 5: tells STUN from other protocols, and from RFC 3489, on the same port.
MAGIC_COOKIE: Final = b"\x21\x12\xa4\x42"

#: RFC 8489 section 5: type, length, cookie, transaction id.
HEADER_LENGTH: Final = 20

TRANSACTION_ID_LENGTH: Final = 12

#: RFC 8489 section 14: types from here up may be skipped by who does not know them.
FIRST_COMPREHENSION_OPTIONAL: Final = 0x8000


class MessageClass(IntEnum):
    """RFC 8489 section 5: the two class bits of a message type."""

    REQUEST = 0b00
    INDICATION = 0b01
    SUCCESS_RESPONSE = 0b10
    ERROR_RESPONSE = 0b11


class Method(IntEnum):
    """RFC 8489 section 18.2. The methods of TURN (RFC 8656) belong to the TURN codec."""

    BINDING = 0x001


class AttributeType(IntEnum):
    """RFC 8489 section 18.3; each member has the name of the registry with `_` for `-`."""

    MAPPED_ADDRESS = 0x0001
    USERNAME = 0x0006
    MESSAGE_INTEGRITY = 0x0008
    ERROR_CODE = 0x0009
    UNKNOWN_ATTRIBUTES = 0x000A
    REALM = 0x0014
    NONCE = 0x0015
    MESSAGE_INTEGRITY_SHA256 = 0x001C
    PASSWORD_ALGORITHM = 0x001D
    USERHASH = 0x001E
    XOR_MAPPED_ADDRESS = 0x0020
    PRIORITY = 0x0024  # RFC 8445
    USE_CANDIDATE = 0x0025  # RFC 8445
    PADDING = 0x0026  # RFC 5780
    RESPONSE_PORT = 0x0027  # RFC 5780
    PASSWORD_ALGORITHMS = 0x8002
    ALTERNATE_DOMAIN = 0x8003
    SOFTWARE = 0x8022
    ALTERNATE_SERVER = 0x8023
    CACHE_TIMEOUT = 0x8027  # RFC 5780 reserves the number and gives it no format
    FINGERPRINT = 0x8028
    ICE_CONTROLLED = 0x8029  # RFC 8445
    ICE_CONTROLLING = 0x802A  # RFC 8445
    RESPONSE_ORIGIN = 0x802B  # RFC 5780
    OTHER_ADDRESS = 0x802C  # RFC 5780

    # The registry has these as "Reserved; was ... prior to [RFC5389]".
    CHANGE_REQUEST = 0x0003  # brought back by RFC 5780
    SOURCE_ADDRESS = 0x0004  # RFC 3489 section 11.2.5: for its clients only
    CHANGED_ADDRESS = 0x0005  # RFC 3489 section 11.2.3: for its clients only


class ErrorCode(IntEnum):
    """RFC 8489 section 14.8, and RFC 8445 section 16.2 for the role conflict."""

    TRY_ALTERNATE = 300
    BAD_REQUEST = 400
    UNAUTHENTICATED = 401
    UNKNOWN_ATTRIBUTE = 420
    STALE_NONCE = 438
    ROLE_CONFLICT = 487
    SERVER_ERROR = 500


class PasswordAlgorithmNumber(IntEnum):
    """RFC 8489 section 18.5.1."""

    MD5 = 0x0001
    SHA256 = 0x0002


class AddressFamily(IntEnum):
    """RFC 8489 section 14.1."""

    IPV4 = 0x01
    IPV6 = 0x02


REASONS: Final[dict[int, str]] = {
    ErrorCode.TRY_ALTERNATE: "Try Alternate",
    ErrorCode.BAD_REQUEST: "Bad Request",
    # RFC 8489 section 14.8 says Unauthenticated; the registry kept RFC 5389's word.
    ErrorCode.UNAUTHENTICATED: "Unauthenticated",
    ErrorCode.UNKNOWN_ATTRIBUTE: "Unknown Attribute",
    ErrorCode.STALE_NONCE: "Stale Nonce",
    ErrorCode.ROLE_CONFLICT: "Role Conflict",
    ErrorCode.SERVER_ERROR: "Server Error",
}
