"""The attributes of STUN: one small frozen class each, with the section that defines its value.

Each class knows its type number, and how its value is written and read; length, padding and order
are the business of `message.py`. Every `decode_untrusted` raises BadMessage and nothing else.
"""

from __future__ import annotations

import ipaddress
from abc import ABC, abstractmethod
from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, Self

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._traversal.stun.constants import MAGIC_COOKIE, AddressFamily, AttributeType

# zero octet | family | port, and then 4 or 16 octets of address.
_ADDRESS_HEADER = Struct("!xBH")
_PORT_MASK = int.from_bytes(MAGIC_COOKIE[:2])

# RFC 8489 sections 14.9, 14.10 and 14.14: fewer than 128 characters, which an old sender may spell in 763
# octets. Section 14.3: a username is shorter than 509 octets. Section 14.16: a domain takes up to 255.
LONGEST_TEXT = 763
LONGEST_USERNAME = 508
LONGEST_DOMAIN = 255


@dataclass(frozen=True, slots=True)
class Attribute(ABC):
    """What all attributes share. `type` is the number of the registry."""

    type: ClassVar[int]

    @abstractmethod
    def encode(self, mask: bytes) -> bytes:
        """The value, unpadded. `mask` is the cookie and the transaction id, 16 octets."""

    @classmethod
    @abstractmethod
    def decode_untrusted(cls, value: bytes, mask: bytes) -> Self:
        """The attribute that `value` holds. Raises BadMessage."""


@dataclass(frozen=True, slots=True)
class UnknownAttribute:
    """An attribute whose type this codec has no class for, kept as it came."""

    type: int
    value: bytes

    def encode(self, mask: bytes) -> bytes:
        return self.value


# --- addresses ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _PlainAddress(Attribute):
    endpoint: Endpoint

    def encode(self, mask: bytes) -> bytes:
        packed = _pack_host(self.endpoint.host)
        return _ADDRESS_HEADER.pack(_family(packed), self.endpoint.port) + packed

    @classmethod
    def decode_untrusted(cls, value: bytes, mask: bytes) -> Self:
        port, packed = _split_address_untrusted(value)
        return cls(Endpoint(_unpack_host(packed), port))


@dataclass(frozen=True, slots=True)
class MappedAddress(_PlainAddress):
    """RFC 8489 section 14.1: the source of a request as the server saw it, readable to meddling NATs."""

    type = AttributeType.MAPPED_ADDRESS


@dataclass(frozen=True, slots=True)
class AlternateServer(_PlainAddress):
    """RFC 8489 section 14.15: where a 300 (Try Alternate) sends the client."""

    type = AttributeType.ALTERNATE_SERVER


@dataclass(frozen=True, slots=True)
class ResponseOrigin(_PlainAddress):
    """RFC 5780 section 7.3: where the response was sent from."""

    type = AttributeType.RESPONSE_ORIGIN


@dataclass(frozen=True, slots=True)
class OtherAddress(_PlainAddress):
    """RFC 5780 section 7.4: where a response would come from if address and port were to change."""

    type = AttributeType.OTHER_ADDRESS


@dataclass(frozen=True, slots=True)
class SourceAddress(_PlainAddress):
    """RFC 3489 section 11.2.5: the old RESPONSE-ORIGIN."""

    type = AttributeType.SOURCE_ADDRESS


@dataclass(frozen=True, slots=True)
class ChangedAddress(_PlainAddress):
    """RFC 3489 section 11.2.3: the old OTHER-ADDRESS."""

    type = AttributeType.CHANGED_ADDRESS


@dataclass(frozen=True, slots=True)
class XorAddress(Attribute):
    """An address in the form of RFC 8489 section 14.2: masked so that no NAT rewrites it on its way."""

    endpoint: Endpoint

    def encode(self, mask: bytes) -> bytes:
        packed = _pack_host(self.endpoint.host)
        return _ADDRESS_HEADER.pack(_family(packed), self.endpoint.port ^ _PORT_MASK) + _xor(packed, mask)

    @classmethod
    def decode_untrusted(cls, value: bytes, mask: bytes) -> Self:
        port, masked = _split_address_untrusted(value)
        return cls(Endpoint(_unpack_host(_xor(masked, mask)), port ^ _PORT_MASK))


@dataclass(frozen=True, slots=True)
class XorMappedAddress(XorAddress):
    """RFC 8489 section 14.2: the source of a request."""

    type = AttributeType.XOR_MAPPED_ADDRESS


def _pack_host(host: str) -> bytes:
    # A zone ("fe80::1%eth0") means nothing to anybody else.
    return ipaddress.ip_address(host.partition("%")[0]).packed


def _unpack_host(packed: bytes) -> str:
    if len(packed) == 4:  # the common case, ten times as fast as ipaddress
        first, second, third, fourth = packed
        return f"{first}.{second}.{third}.{fourth}"
    return str(ipaddress.IPv6Address(packed))


def _family(packed: bytes) -> int:
    return AddressFamily.IPV4 if len(packed) == 4 else AddressFamily.IPV6


def _xor(packed: bytes, mask: bytes) -> bytes:
    length = len(packed)
    return (int.from_bytes(packed) ^ int.from_bytes(mask[:length])).to_bytes(length)


def _split_address_untrusted(value: bytes) -> tuple[int, bytes]:
    """Port and packed address of an address value."""
    if len(value) not in (8, 20):
        raise BadMessage(f"an address of {len(value)} octets: expected 8 or 20")
    family, port = _ADDRESS_HEADER.unpack_from(value)
    packed = value[4:]
    if family != _family(packed):
        raise BadMessage(f"address family {family} with an address of {len(packed)} octets")
    return port, packed


# --- text --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Text(Attribute):
    text: str
    longest: ClassVar[int] = LONGEST_TEXT

    def encode(self, mask: bytes) -> bytes:
        return self.text.encode()

    @classmethod
    def decode_untrusted(cls, value: bytes, mask: bytes) -> Self:
        return cls(_decode_text_untrusted(value, cls.longest))


@dataclass(frozen=True, slots=True)
class Username(_Text):
    """RFC 8489 section 14.3: whose password the integrity was made with."""

    type = AttributeType.USERNAME
    longest = LONGEST_USERNAME


@dataclass(frozen=True, slots=True)
class Realm(_Text):
    """RFC 8489 section 14.9: where the username counts; its presence means long-term credentials."""

    type = AttributeType.REALM


@dataclass(frozen=True, slots=True)
class AlternateDomain(_Text):
    """RFC 8489 section 14.16: the domain whose certificate the ALTERNATE-SERVER shows."""

    type = AttributeType.ALTERNATE_DOMAIN
    longest = LONGEST_DOMAIN


@dataclass(frozen=True, slots=True)
class Software(_Text):
    """RFC 8489 section 14.14: what sent this, for people to read; wrong UTF-8 does not spoil a message."""

    type = AttributeType.SOFTWARE

    @classmethod
    def decode_untrusted(cls, value: bytes, mask: bytes) -> Self:
        return cls(_decode_text_untrusted(value, cls.longest, errors="replace"))


@dataclass(frozen=True, slots=True)
class Nonce(Attribute):
    """RFC 8489 section 14.10: opaque to the client, hence octets."""

    value: bytes
    type = AttributeType.NONCE

    def encode(self, mask: bytes) -> bytes:
        return self.value

    @classmethod
    def decode_untrusted(cls, value: bytes, mask: bytes) -> Self:
        if len(value) > LONGEST_TEXT:
            raise BadMessage(f"a nonce of {len(value)} octets")
        return cls(value)


def _decode_text_untrusted(value: bytes, longest: int, errors: str = "strict") -> str:
    if len(value) > longest:
        raise BadMessage(f"a text of {len(value)} octets: at most {longest}")
    try:
        return value.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise BadMessage("a text is not UTF-8") from error


# --- errors ------------------------------------------------------------------------------------

_ERROR_HEADER = Struct("!xxBB")


@dataclass(frozen=True, slots=True)
class ErrorCodeAttribute(Attribute):
    """RFC 8489 section 14.8: ERROR-CODE, 300 to 699, and a reason for people to read."""

    code: int
    reason: str = ""
    type = AttributeType.ERROR_CODE

    def encode(self, mask: bytes) -> bytes:
        return _ERROR_HEADER.pack(*divmod(self.code, 100)) + self.reason.encode()

    @classmethod
    def decode_untrusted(cls, value: bytes, mask: bytes) -> Self:
        if len(value) < 4:
            raise BadMessage("an ERROR-CODE shorter than 4 octets")
        hundreds, number = _ERROR_HEADER.unpack_from(value)
        hundreds &= 0b111  # the other bits are reserved, and to be ignored
        if not 3 <= hundreds <= 6 or number > 99:
            raise BadMessage(f"error class {hundreds}, number {number}")
        reason = _decode_text_untrusted(value[4:], LONGEST_TEXT, errors="replace")
        return cls(hundreds * 100 + number, reason)


@dataclass(frozen=True, slots=True)
class UnknownAttributes(Attribute):
    """RFC 8489 section 14.13: the required attributes that made a 420."""

    types: tuple[int, ...]
    type = AttributeType.UNKNOWN_ATTRIBUTES

    def encode(self, mask: bytes) -> bytes:
        return Struct(f"!{len(self.types)}H").pack(*self.types)

    @classmethod
    def decode_untrusted(cls, value: bytes, mask: bytes) -> Self:
        if len(value) % 2:
            raise BadMessage("UNKNOWN-ATTRIBUTES of an odd length")
        return cls(Struct(f"!{len(value) // 2}H").unpack(value))


def decode_number_untrusted(value: bytes, length: int) -> int:
    """A number that takes exactly `length` octets. Raises BadMessage."""
    if len(value) != length:
        raise BadMessage(f"a value of {len(value)} octets: expected {length}")
    return int.from_bytes(value)
