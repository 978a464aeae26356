"""NAT-PMP messages (RFC 6886 section 3): what a client sends, and what it reads."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from enum import IntEnum

from ntcpsock._errors import BadMessage

VERSION = 0

#: UDP port of the gateway, for NAT-PMP and PCP alike.
SERVER_PORT = 5351

OPCODE_EXTERNAL_ADDRESS = 0
OPCODE_MAP_TCP = 2

# version, opcode
_ADDRESS_REQUEST = struct.Struct("!BB")
# version, opcode, reserved, internal port, suggested external port, lifetime
_MAP_REQUEST = struct.Struct("!BB2xHHI")
# version, 128 + opcode, result code, seconds since start of epoch
_RESPONSE = struct.Struct("!BBHI")
_ADDRESS = struct.Struct("!4s")
# internal port, mapped external port, lifetime
_MAPPING = struct.Struct("!HHI")

_RESPONSE_BIT = 128


class ResultCode(IntEnum):
    """RFC 6886 section 3.5."""

    SUCCESS = 0
    UNSUPPORTED_VERSION = 1
    NOT_AUTHORIZED = 2
    NETWORK_FAILURE = 3
    OUT_OF_RESOURCES = 4
    UNSUPPORTED_OPCODE = 5


@dataclass(frozen=True, slots=True)
class ExternalAddress:
    """The gateway's own address towards the Internet. epoch: seconds since it lost its mappings."""

    address: str
    epoch: int


@dataclass(frozen=True, slots=True)
class MapResponse:
    """A TCP mapping that is in force. lifetime: seconds; 0 says that it was deleted."""

    internal_port: int
    external_port: int
    lifetime: int
    epoch: int


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """The gateway refuses. opcode: of the request; result: a ResultCode or a number that is none."""

    opcode: int
    result: int


Response = ExternalAddress | MapResponse | ErrorResponse


def encode_address_request() -> bytes:
    """RFC 6886 section 3.2."""
    return _ADDRESS_REQUEST.pack(VERSION, OPCODE_EXTERNAL_ADDRESS)


def encode_map_request(internal_port: int, external_port: int, lifetime: int) -> bytes:
    """RFC 6886 section 3.3, for TCP. external_port: a wish, 0 for none; lifetime 0 (and no wish) deletes."""
    return _MAP_REQUEST.pack(VERSION, OPCODE_MAP_TCP, internal_port, external_port, lifetime)


def decode_response_untrusted(data: bytes) -> Response:
    """What a gateway answered. Raises BadMessage."""
    try:
        version, opcode, result, epoch = _RESPONSE.unpack_from(data)
        # A server of PCP alone answers with its own version (RFC 6887 section 9 and appendix A).
        if result == ResultCode.UNSUPPORTED_VERSION:
            return ErrorResponse(opcode & ~_RESPONSE_BIT, result)
        if version != VERSION or not opcode & _RESPONSE_BIT:
            raise BadMessage(f"NAT-PMP: version {version}, opcode {opcode} is no response")
        opcode -= _RESPONSE_BIT
        if result != ResultCode.SUCCESS:
            return ErrorResponse(opcode, result)
        if opcode == OPCODE_EXTERNAL_ADDRESS:
            (address,) = _ADDRESS.unpack_from(data, _RESPONSE.size)
            return ExternalAddress(str(ipaddress.IPv4Address(address)), epoch)
        if opcode == OPCODE_MAP_TCP:
            internal, external, lifetime = _MAPPING.unpack_from(data, _RESPONSE.size)
            return MapResponse(internal, external, lifetime, epoch)
    except struct.error as error:
        raise BadMessage(f"NAT-PMP: {len(data)} octets are too few") from error
    raise BadMessage(f"NAT-PMP: unknown opcode {opcode}")


def describe(result: int) -> str:
    """A result code in words."""
    try:
        return ResultCode(result).name.lower().replace("_", " ")
    except ValueError:
        return f"error {result}"
