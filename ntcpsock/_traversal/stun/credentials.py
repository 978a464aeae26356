"""What proves a message: keys, MESSAGE-INTEGRITY, its SHA-256 sibling, USERHASH, FINGERPRINT.

The attributes hold what was on the wire; whether it is right depends on the octets before them, so the
checks take those octets (`message.py` cuts them out).
"""

from __future__ import annotations

import hashlib
import hmac
import unicodedata
import zlib
from dataclasses import dataclass
from struct import Struct
from typing import Self

from ntcpsock._errors import BadMessage
from ntcpsock._traversal.stun.attributes import Attribute, decode_number_untrusted
from ntcpsock._traversal.stun.constants import AttributeType, PasswordAlgorithmNumber

SHA1_LENGTH = 20
SHA256_LENGTH = 32
#: RFC 8489 section 14.6: a truncated HMAC-SHA256 keeps at least this much.
SHORTEST_SHA256 = 16
#: RFC 8489 section 14.7: so that a FINGERPRINT is no CRC that an application itself might use.
_FINGERPRINT_MASK = 0x5354554E

_ALGORITHM_HEADER = Struct("!HH")


def opaque_string(text: str) -> str:
    """`text` prepared as RFC 8265 section 4.2 (OpaqueString) wants usernames, realms and passwords.

    Spaces become U+0020, the rest NFC. Raises ValueError for an empty text and for characters that the
    profile forbids: controls, invisible ones, unassigned and private ones.
    """
    mapped = "".join(" " if unicodedata.category(character) == "Zs" else character for character in text)
    prepared = unicodedata.normalize("NFC", mapped)
    if not prepared:
        raise ValueError("an OpaqueString cannot be empty")
    for character in prepared:
        if unicodedata.category(character) in ("Cc", "Cf", "Cn", "Co", "Cs"):
            raise ValueError(f"U+{ord(character):04X} is not allowed in an OpaqueString")
    return prepared


def short_term_key(password: str) -> bytes:
    """RFC 8489 section 9.1.1: the HMAC key of a short-term credential."""
    return opaque_string(password).encode()


def long_term_key(
    username: str, realm: str, password: str, algorithm: int = PasswordAlgorithmNumber.MD5
) -> bytes:
    """RFC 8489 sections 9.2.2 and 18.5.1: the HMAC key of a long-term credential.

    Raises ValueError for an algorithm that is neither MD5 nor SHA-256.
    """
    text = ":".join((opaque_string(username), opaque_string(realm), opaque_string(password))).encode()
    if algorithm == PasswordAlgorithmNumber.MD5:
        return hashlib.md5(text, usedforsecurity=False).digest()
    if algorithm == PasswordAlgorithmNumber.SHA256:
        return hashlib.sha256(text).digest()
    raise ValueError(f"password algorithm {algorithm} is not known")


def user_hash(username: str, realm: str) -> bytes:
    """RFC 8489 section 14.4: the 32 octets that stand for a username on the wire."""
    return hashlib.sha256(f"{opaque_string(username)}:{opaque_string(realm)}".encode()).digest()


def hmac_sha1(key: bytes, text: bytes) -> bytes:
    """RFC 8489 section 14.5: the value of MESSAGE-INTEGRITY over `text`."""
    return hmac.digest(key, text, "sha1")


def hmac_sha256(key: bytes, text: bytes) -> bytes:
    """RFC 8489 section 14.6: the whole value of MESSAGE-INTEGRITY-SHA256 over `text`."""
    return hmac.digest(key, text, "sha256")


def fingerprint(text: bytes) -> int:
    """RFC 8489 section 14.7: the value of FINGERPRINT over `text`."""
    return zlib.crc32(text) ^ _FINGERPRINT_MASK


@dataclass(frozen=True, slots=True)
class MessageIntegrity(Attribute):
    """RFC 8489 section 14.5: HMAC-SHA1 over the message so far."""

    digest: bytes
    type = AttributeType.MESSAGE_INTEGRITY

    def encode(self, mask: bytes) -> bytes:
        return self.digest

    @classmethod
    def decode_untrusted(cls, value: bytes, mask: bytes) -> Self:
        if len(value) != SHA1_LENGTH:
            raise BadMessage(f"a MESSAGE-INTEGRITY of {len(value)} octets")
        return cls(value)


@dataclass(frozen=True, slots=True)
class MessageIntegritySha256(Attribute):
    """RFC 8489 section 14.6: HMAC-SHA256 over the message so far, cut to 16 octets or more."""

    digest: bytes
    type = AttributeType.MESSAGE_INTEGRITY_SHA256

    def encode(self, mask: bytes) -> bytes:
        return self.digest

    @classmethod
    def decode_untrusted(cls, value: bytes, mask: bytes) -> Self:
        if not SHORTEST_SHA256 <= len(value) <= SHA256_LENGTH or len(value) % 4:
            raise BadMessage(f"a MESSAGE-INTEGRITY-SHA256 of {len(value)} octets")
        return cls(value)


@dataclass(frozen=True, slots=True)
class Fingerprint(Attribute):
    """RFC 8489 section 14.7: CRC-32 of the message so far, masked; tells STUN from what shares its port."""

    value: int
    type = AttributeType.FINGERPRINT

    def encode(self, mask: bytes) -> bytes:
        return self.value.to_bytes(4)

    @classmethod
    def decode_untrusted(cls, value: bytes, mask: bytes) -> Self:
        return cls(decode_number_untrusted(value, 4))


@dataclass(frozen=True, slots=True)
class UserHash(Attribute):
    """RFC 8489 section 14.4: stands for USERNAME where the name shall not be read."""

    digest: bytes
    type = AttributeType.USERHASH

    def encode(self, mask: bytes) -> bytes:
        return self.digest

    @classmethod
    def decode_untrusted(cls, value: bytes, mask: bytes) -> Self:
        if len(value) != SHA256_LENGTH:
            raise BadMessage(f"a USERHASH of {len(value)} octets")
        return cls(value)


@dataclass(frozen=True, slots=True)
class PasswordAlgorithm(Attribute):
    """RFC 8489 section 14.12: how the client made its long-term key."""

    algorithm: int
    parameters: bytes = b""
    type = AttributeType.PASSWORD_ALGORITHM

    def encode(self, mask: bytes) -> bytes:
        header = _ALGORITHM_HEADER.pack(self.algorithm, len(self.parameters))
        return header + self.parameters + bytes(-len(self.parameters) % 4)

    @classmethod
    def decode_untrusted(cls, value: bytes, mask: bytes) -> Self:
        entries = _split_algorithms_untrusted(value)
        if len(entries) != 1:
            raise BadMessage(f"a PASSWORD-ALGORITHM with {len(entries)} entries")
        return cls(*entries[0])


@dataclass(frozen=True, slots=True)
class PasswordAlgorithms(Attribute):
    """RFC 8489 section 14.11: what the server takes, best first: (algorithm, parameters) each."""

    entries: tuple[tuple[int, bytes], ...]
    type = AttributeType.PASSWORD_ALGORITHMS

    def encode(self, mask: bytes) -> bytes:
        return b"".join(PasswordAlgorithm(*entry).encode(mask) for entry in self.entries)

    @classmethod
    def decode_untrusted(cls, value: bytes, mask: bytes) -> Self:
        return cls(_split_algorithms_untrusted(value))


def _split_algorithms_untrusted(value: bytes) -> tuple[tuple[int, bytes], ...]:
    entries = []
    at = 0
    while at < len(value):
        if len(value) - at < _ALGORITHM_HEADER.size:
            raise BadMessage("a password algorithm is cut off")
        algorithm, length = _ALGORITHM_HEADER.unpack_from(value, at)
        at += _ALGORITHM_HEADER.size
        parameters = value[at : at + length]
        if len(parameters) < length:
            raise BadMessage("password algorithm parameters are cut off")
        entries.append((algorithm, parameters))
        # The padding of the last entry may be the attribute's own, and then is no part of the value.
        at += length + -length % 4
    return tuple(entries)
