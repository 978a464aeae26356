"""What TURN adds to STUN (RFC 8656): its methods, its attributes, and ChannelData.

The codec of messages is STUN's own; `decode_turn_untrusted` makes it know the attributes of this page. Those for what
we never ask for (pairs of ports, reservations, both families at once, DF bits) have no class, and are skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final, Self

from ntcpsock._errors import BadMessage
from ntcpsock._traversal.stun.attributes import Attribute, XorAddress, decode_number_untrusted
from ntcpsock._traversal.stun.constants import AddressFamily, MessageClass
from ntcpsock._traversal.stun.message import Message, decode_message


class TurnMethod(IntEnum):
    """RFC 8656 section 17."""

    ALLOCATE = 0x003
    REFRESH = 0x004
    SEND = 0x006
    DATA = 0x007
    CREATE_PERMISSION = 0x008
    CHANNEL_BIND = 0x009


class TurnAttributeType(IntEnum):
    """RFC 8656 section 18; each member has the name of the registry with `_` for `-`."""

    CHANNEL_NUMBER = 0x000C
    LIFETIME = 0x000D
    XOR_PEER_ADDRESS = 0x0012
    DATA = 0x0013
    XOR_RELAYED_ADDRESS = 0x0016
    REQUESTED_ADDRESS_FAMILY = 0x0017
    REQUESTED_TRANSPORT = 0x0019


class TurnErrorCode(IntEnum):
    """RFC 8656 section 19."""

    FORBIDDEN = 403
    ALLOCATION_MISMATCH = 437
    ADDRESS_FAMILY_NOT_SUPPORTED = 440
    WRONG_CREDENTIALS = 441
    UNSUPPORTED_TRANSPORT_PROTOCOL = 442
    PEER_ADDRESS_FAMILY_MISMATCH = 443
    ALLOCATION_QUOTA_REACHED = 486
    INSUFFICIENT_CAPACITY = 508


#: RFC 8656 section 18.8: the protocol number of UDP (RFC 790 and its successors).
UDP: Final = 17

#: RFC 8656 section 12: numbers that a client may bind; the first octet of ChannelData is 0x40 to 0x4F then.
FIRST_CHANNEL: Final = 0x4000
LAST_CHANNEL: Final = 0x4FFF

CHANNEL_HEADER: Final = Struct("!HH")


@dataclass(frozen=True, slots=True)
class ChannelNumber(Attribute):
    """RFC 8656 section 18.1: 16 bits of number, 16 of zeros."""

    number: int
    type = TurnAttributeType.CHANNEL_NUMBER

    def encode(self, mask: bytes) -> bytes:
        return self.number.to_bytes(2) + bytes(2)

    @classmethod
    def decode_untrusted(cls, value: bytes, mask: bytes) -> Self:
        return cls(decode_number_untrusted(value, 4) >> 16)


@dataclass(frozen=True, slots=True)
class Lifetime(Attribute):
    """RFC 8656 section 18.2: seconds until the server drops the allocation unless it is refreshed; 0 drops it."""

    seconds: int
    type = TurnAttributeType.LIFETIME

    def encode(self, mask: bytes) -> bytes:
        return self.seconds.to_bytes(4)

    @classmethod
    def decode_untrusted(cls, value: bytes, mask: bytes) -> Self:
        return cls(decode_number_untrusted(value, 4))


@dataclass(frozen=True, slots=True)
class XorPeerAddress(XorAddress):
    """RFC 8656 section 18.3: the peer as the server sees it."""

    type = TurnAttributeType.XOR_PEER_ADDRESS


@dataclass(frozen=True, slots=True)
class Data(Attribute):
    """RFC 8656 section 18.4: what goes to the peer, or came from it."""

    value: bytes
    type = TurnAttributeType.DATA

    def encode(self, mask: bytes) -> bytes:
        return self.value

    @classmethod
    def decode_untrusted(cls, value: bytes, mask: bytes) -> Self:
        return cls(value)


@dataclass(frozen=True, slots=True)
class XorRelayedAddress(XorAddress):
    """RFC 8656 section 18.5: where peers send what the server passes on to us."""

    type = TurnAttributeType.XOR_RELAYED_ADDRESS


@dataclass(frozen=True, slots=True)
class RequestedAddressFamily(Attribute):
    """RFC 8656 section 18.6: of the relayed address, a number of `AddressFamily`. Without it IPv4 is meant."""

    family: int
    type = TurnAttributeType.REQUESTED_ADDRESS_FAMILY

    def encode(self, mask: bytes) -> bytes:
        return self.family.to_bytes(1) + bytes(3)

    @classmethod
    def decode_untrusted(cls, value: bytes, mask: bytes) -> Self:
        return cls(decode_number_untrusted(value, 4) >> 24)


@dataclass(frozen=True, slots=True)
class RequestedTransport(Attribute):
    """RFC 8656 section 18.8: between server and peers, a protocol number of IP."""

    protocol: int = UDP
    type = TurnAttributeType.REQUESTED_TRANSPORT

    def encode(self, mask: bytes) -> bytes:
        return self.protocol.to_bytes(1) + bytes(3)

    @classmethod
    def decode_untrusted(cls, value: bytes, mask: bytes) -> Self:
        return cls(decode_number_untrusted(value, 4) >> 24)


TURN_ATTRIBUTES: Final[Mapping[int, type[Attribute]]] = {
    attribute.type: attribute
    for attribute in (
        ChannelNumber,
        Lifetime,
        XorPeerAddress,
        Data,
        XorRelayedAddress,
        RequestedAddressFamily,
        RequestedTransport,
    )
}


def decode_turn_untrusted(data: bytes) -> Message:
    """The message that `data` is, TURN's attributes included; as `decode_message`. Raises BadMessage."""
    return decode_message(data, also=TURN_ATTRIBUTES)


def allocate_attributes(*, lifetime: int, ipv6: bool) -> tuple[Attribute, ...]:
    """RFC 8656 section 7.1: of an Allocate request for UDP between server and peers; lifetime in seconds."""
    family = (RequestedAddressFamily(AddressFamily.IPV6),) if ipv6 else ()
    return (RequestedTransport(UDP), Lifetime(lifetime), *family)


def send_indication(transaction_id: bytes, peer: XorPeerAddress, data: bytes) -> Message:
    """RFC 8656 section 11.1: `data` to `peer`, where no channel is bound yet."""
    return Message(TurnMethod.SEND, MessageClass.INDICATION, transaction_id, (peer, Data(data)))


def encode_channel_data(number: int, data: bytes | memoryview, *, padded: bool) -> bytes:
    """RFC 8656 section 12.4: number, length, `data`; over a stream it is `padded` to whole words.

    Raises ValueError for more than 65,535 octets of data.
    """
    length = len(data)
    if length > 0xFFFF:
        raise ValueError(f"{length} octets in one ChannelData message: at most 65,535")
    padding = bytes(-length % 4) if padded else b""
    return b"".join((CHANNEL_HEADER.pack(number, length), data, padding))


def is_channel_data(data: bytes) -> bool:
    """Whether the first octet is of ChannelData (RFC 8656 section 12, RFC 7983 section 7)."""
    return bool(data) and 0x40 <= data[0] <= 0x4F


def decode_channel_data_untrusted(data: bytes) -> tuple[int, bytes]:
    """Number and data. What follows the data is padding, whatever it says. Raises BadMessage."""
    if len(data) < CHANNEL_HEADER.size:
        raise BadMessage(f"{len(data)} octets are no ChannelData")
    number, length = CHANNEL_HEADER.unpack_from(data)
    if not FIRST_CHANNEL <= number <= LAST_CHANNEL:
        raise BadMessage(f"channel 0x{number:04x}")
    if length > len(data) - CHANNEL_HEADER.size:
        raise BadMessage(f"ChannelData of {length} octets in {len(data)}")
    return number, data[CHANNEL_HEADER.size : CHANNEL_HEADER.size + length]
