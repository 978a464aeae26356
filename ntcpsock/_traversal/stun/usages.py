"""The attributes of two usages of STUN: behaviour discovery (RFC 5780) and ICE (RFC 8445)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from ntcpsock._errors import BadMessage
from ntcpsock._traversal.stun.attributes import Attribute, decode_number_untrusted
from ntcpsock._traversal.stun.constants import AttributeType

_CHANGE_ADDRESS = 0x4
_CHANGE_PORT = 0x2


@dataclass(frozen=True, slots=True)
class ChangeRequest(Attribute):
    """RFC 5780 section 7.2: answer from the other address, from the other port, or from both."""

    change_address: bool
    change_port: bool
    type = AttributeType.CHANGE_REQUEST

    def encode(self, mask: bytes) -> bytes:
        return (_CHANGE_ADDRESS * self.change_address | _CHANGE_PORT * self.change_port).to_bytes(4)

    @classmethod
    def decode_untrusted(cls, value: bytes, mask: bytes) -> Self:
        flags = decode_number_untrusted(value, 4)
        return cls(bool(flags & _CHANGE_ADDRESS), bool(flags & _CHANGE_PORT))


@dataclass(frozen=True, slots=True)
class ResponsePort(Attribute):
    """RFC 5780 section 7.5: answer to this port of the request's source address."""

    port: int
    type = AttributeType.RESPONSE_PORT

    def encode(self, mask: bytes) -> bytes:
        # "16 bits followed by 2 octets of padding": coturn counts the padding as value, and reads both.
        return self.port.to_bytes(2) + bytes(2)

    @classmethod
    def decode_untrusted(cls, value: bytes, mask: bytes) -> Self:
        if len(value) not in (2, 4):
            raise BadMessage(f"a RESPONSE-PORT of {len(value)} octets")
        return cls(int.from_bytes(value[:2]))


@dataclass(frozen=True, slots=True)
class Padding(Attribute):
    """RFC 5780 section 7.6: octets without meaning, which make a message long enough to fragment."""

    value: bytes
    type = AttributeType.PADDING

    def encode(self, mask: bytes) -> bytes:
        return self.value

    @classmethod
    def decode_untrusted(cls, value: bytes, mask: bytes) -> Self:
        return cls(value)


@dataclass(frozen=True, slots=True)
class Priority(Attribute):
    """RFC 8445 section 16.1: the priority that a peer-reflexive candidate would get, 32 bits."""

    priority: int
    type = AttributeType.PRIORITY

    def encode(self, mask: bytes) -> bytes:
        return self.priority.to_bytes(4)

    @classmethod
    def decode_untrusted(cls, value: bytes, mask: bytes) -> Self:
        return cls(decode_number_untrusted(value, 4))


@dataclass(frozen=True, slots=True)
class UseCandidate(Attribute):
    """RFC 8445 section 16.1: the controlling agent nominates this pair."""

    type = AttributeType.USE_CANDIDATE

    def encode(self, mask: bytes) -> bytes:
        return b""

    @classmethod
    def decode_untrusted(cls, value: bytes, mask: bytes) -> Self:
        if value:
            raise BadMessage("a USE-CANDIDATE with a value")
        return cls()


@dataclass(frozen=True, slots=True)
class _TieBreaker(Attribute):
    tie_breaker: int

    def encode(self, mask: bytes) -> bytes:
        return self.tie_breaker.to_bytes(8)

    @classmethod
    def decode_untrusted(cls, value: bytes, mask: bytes) -> Self:
        return cls(decode_number_untrusted(value, 8))


@dataclass(frozen=True, slots=True)
class IceControlled(_TieBreaker):
    """RFC 8445 section 16.1: the sender believes that its peer decides."""

    type = AttributeType.ICE_CONTROLLED


@dataclass(frozen=True, slots=True)
class IceControlling(_TieBreaker):
    """RFC 8445 section 16.1: the sender believes that it decides."""

    type = AttributeType.ICE_CONTROLLING
