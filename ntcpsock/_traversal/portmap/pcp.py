"""PCP messages (RFC 6887): ANNOUNCE and MAP, as a client sends and reads them. Options are not used."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from enum import IntEnum

from ntcpsock._errors import BadMessage

VERSION = 2
NONCE_LENGTH = 12

OPCODE_ANNOUNCE = 0
OPCODE_MAP = 1

PROTOCOL_TCP = 6

#: RFC 6887 section 7, octets.
LARGEST_MESSAGE = 1100

# version, opcode, reserved, requested lifetime, client's address
_REQUEST = struct.Struct("!BB2xI16s")
# version, 128 + opcode, reserved, result code, lifetime, epoch, reserved
_RESPONSE = struct.Struct("!BBxBII12x")
# nonce, protocol, reserved, internal port, external port, external address
_MAP = struct.Struct("!12sB3xHH16s")

_RESPONSE_BIT = 128


class ResultCode(IntEnum):
    """RFC 6887 section 7.4."""

    SUCCESS = 0
    UNSUPP_VERSION = 1
    NOT_AUTHORIZED = 2
    MALFORMED_REQUEST = 3
    UNSUPP_OPCODE = 4
    UNSUPP_OPTION = 5
    MALFORMED_OPTION = 6
    NETWORK_FAILURE = 7
    NO_RESOURCES = 8
    UNSUPP_PROTOCOL = 9
    USER_EX_QUOTA = 10
    CANNOT_PROVIDE_EXTERNAL = 11
    ADDRESS_MISMATCH = 12
    EXCESSIVE_REMOTE_PEERS = 13


@dataclass(frozen=True, slots=True)
class AnnounceResponse:
    """The server is there. epoch: seconds since it lost its mappings (section 8.5)."""

    epoch: int


@dataclass(frozen=True, slots=True)
class MapResponse:
    """A mapping that is in force (section 11.1). lifetime: seconds; 0 says that it was deleted.

    external_address: an IPv4 address in its own form (section 5 writes it as an IPv6 one).
    """

    nonce: bytes
    protocol: int
    internal_port: int
    external_port: int
    external_address: str
    lifetime: int
    epoch: int


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """The server refuses. lifetime: seconds for which it will go on to (section 7.2); nonce: of the MAP
    request, where it is told."""

    opcode: int
    result: int
    lifetime: int
    nonce: bytes | None = None


Response = AnnounceResponse | MapResponse | ErrorResponse


def encode_announce_request(client: str) -> bytes:
    """RFC 6887 section 14.1.1. client: the address that the request is sent from."""
    return _REQUEST.pack(VERSION, OPCODE_ANNOUNCE, 0, _encode_address(client))


def encode_map_request(
    client: str,
    nonce: bytes,
    internal_port: int,
    lifetime: int,
    *,
    external_port: int = 0,
    external_address: str = "0.0.0.0",
) -> bytes:
    """RFC 6887 section 11.1, for TCP. external_*: wishes, which a renewal fills in; lifetime 0 deletes."""
    header = _REQUEST.pack(VERSION, OPCODE_MAP, lifetime, _encode_address(client))
    external = _encode_address(external_address)
    return header + _MAP.pack(nonce, PROTOCOL_TCP, internal_port, external_port, external)


def decode_response_untrusted(data: bytes) -> Response:
    """What a server answered. Raises BadMessage."""
    try:
        version, opcode, result, lifetime, epoch = _RESPONSE.unpack_from(data.ljust(_RESPONSE.size, b"\0"))
        # The answer of a NAT-PMP gateway is 8 octets long and has version 0 (RFC 6886 section 3.5).
        if result == ResultCode.UNSUPP_VERSION and len(data) >= 8:
            return ErrorResponse(opcode & ~_RESPONSE_BIT, result, 0)
        if len(data) < _RESPONSE.size or len(data) % 4 or len(data) > LARGEST_MESSAGE:
            raise BadMessage(f"PCP: {len(data)} octets cannot be a response")
        if version != VERSION or not opcode & _RESPONSE_BIT:
            raise BadMessage(f"PCP: version {version}, opcode {opcode} is no response")
        opcode -= _RESPONSE_BIT
        if result != ResultCode.SUCCESS:
            # Not every server sends the request's own part back.
            whole = opcode == OPCODE_MAP and len(data) >= _RESPONSE.size + _MAP.size
            nonce = _MAP.unpack_from(data, _RESPONSE.size)[0] if whole else None
            return ErrorResponse(opcode, result, lifetime, nonce)
        if opcode == OPCODE_ANNOUNCE:
            return AnnounceResponse(epoch)
        if opcode == OPCODE_MAP:
            nonce, protocol, internal, external, address = _MAP.unpack_from(data, _RESPONSE.size)
            return MapResponse(nonce, protocol, internal, external, _decode_address(address), lifetime, epoch)
    except struct.error as error:
        raise BadMessage(f"PCP: {len(data)} octets are too few") from error
    raise BadMessage(f"PCP: unknown opcode {opcode}")


def describe(result: int) -> str:
    """A result code in words."""
    try:
        return ResultCode(result).name.lower().replace("_", " ")
    except ValueError:
        return f"error {result}"


def _encode_address(host: str) -> bytes:
    """RFC 6887 section 5: IPv4 addresses as ::ffff:a.b.c.d."""
    address = ipaddress.ip_address(host)
    return address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed


def _decode_address(data: bytes) -> str:
    address = ipaddress.IPv6Address(data)
    return str(address.ipv4_mapped or address)
