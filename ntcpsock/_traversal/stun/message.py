"""The STUN message (RFC 8489 section 5): octets to a frozen record, and back.

`decode_message` is strict where a lax one would let a stranger play: an attribute that overruns, a
FINGERPRINT that is wrong or not last, a length that does not fit, are refused; what stands behind the
integrity is dropped, because anybody on the way may have added it (section 14.5).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hmac import compare_digest
from struct import Struct
from types import MappingProxyType
from typing import TypeVar

from ntcpsock._errors import BadMessage
from ntcpsock._traversal.stun import attributes as core
from ntcpsock._traversal.stun import connect_back, credentials, usages
from ntcpsock._traversal.stun.attributes import Attribute, UnknownAttribute
from ntcpsock._traversal.stun.constants import (
    FIRST_COMPREHENSION_OPTIONAL,
    HEADER_LENGTH,
    MAGIC_COOKIE,
    REASONS,
    TRANSACTION_ID_LENGTH,
    AttributeType,
    MessageClass,
    Method,
)
from ntcpsock._traversal.stun.credentials import Fingerprint, MessageIntegrity, MessageIntegritySha256

# type | length without this header | magic cookie | transaction id
_HEADER = Struct("!HH4s12s")
_ATTRIBUTE_HEADER = Struct("!HH")

_ATTRIBUTES: dict[int, type[Attribute]] = {
    attribute.type: attribute
    for attribute in (
        core.MappedAddress,
        core.XorMappedAddress,
        core.AlternateServer,
        core.ResponseOrigin,
        core.OtherAddress,
        core.SourceAddress,
        core.ChangedAddress,
        core.Username,
        core.Realm,
        core.Nonce,
        core.Software,
        core.AlternateDomain,
        core.ErrorCodeAttribute,
        core.UnknownAttributes,
        credentials.MessageIntegrity,
        credentials.MessageIntegritySha256,
        credentials.Fingerprint,
        credentials.UserHash,
        credentials.PasswordAlgorithm,
        credentials.PasswordAlgorithms,
        usages.ChangeRequest,
        usages.ResponsePort,
        usages.Padding,
        usages.Priority,
        usages.UseCandidate,
        usages.IceControlled,
        usages.IceControlling,
        connect_back.ConnectBack,
    )
}

# What may follow each of the three attributes that end a message (RFC 8489 sections 14.5 to 14.7).
_MAY_FOLLOW: dict[int, tuple[int, ...]] = {
    AttributeType.MESSAGE_INTEGRITY: (AttributeType.MESSAGE_INTEGRITY_SHA256, AttributeType.FINGERPRINT),
    AttributeType.MESSAGE_INTEGRITY_SHA256: (AttributeType.FINGERPRINT,),
}

_NO_MORE: Mapping[int, type[Attribute]] = MappingProxyType({})

_A = TypeVar("_A", bound=Attribute)


@dataclass(frozen=True, slots=True)
class Message:
    """One STUN message.

    `method` is a number of `Method` or another one; `transaction_id` has 12 octets. `cookie` differs from
    the magic one only in messages of RFC 3489, whose transaction id is the cookie's octets and ours.
    """

    method: int
    message_class: MessageClass
    transaction_id: bytes
    attributes: tuple[Attribute | UnknownAttribute, ...] = ()
    cookie: bytes = MAGIC_COOKIE

    def get(self, kind: type[_A]) -> _A | None:
        """The first attribute of this class, which is the one that counts (RFC 8489 section 14)."""
        for attribute in self.attributes:
            if isinstance(attribute, kind):
                return attribute
        return None

    @property
    def is_rfc3489(self) -> bool:
        """Whether the sender predates the magic cookie (RFC 8489 section 11)."""
        return self.cookie != MAGIC_COOKIE

    @property
    def unknown_required(self) -> tuple[int, ...]:
        """The types that the sender insists on and that this codec does not know: answer them with 420."""
        return tuple(
            dict.fromkeys(
                attribute.type
                for attribute in self.attributes
                if isinstance(attribute, UnknownAttribute) and attribute.type < FIRST_COMPREHENSION_OPTIONAL
            )
        )


def binding_request(transaction_id: bytes, *attributes: Attribute) -> Message:
    """RFC 8489 section 6.1: "what is my address?"."""
    return Message(Method.BINDING, MessageClass.REQUEST, transaction_id, attributes)


def error_response(request: Message, code: int, *attributes: Attribute, reason: str | None = None) -> Message:
    """RFC 8489 section 6.3.1.1: the refusal of `request`, with the RFC's reason unless one is given."""
    text = REASONS.get(code, "") if reason is None else reason
    return Message(
        request.method,
        MessageClass.ERROR_RESPONSE,
        request.transaction_id,
        (core.ErrorCodeAttribute(code, text), *attributes),
        request.cookie,
    )


def encode_message(
    message: Message,
    *,
    integrity_key: bytes | None = None,
    sha256_key: bytes | None = None,
    fingerprint: bool = False,
) -> bytes:
    """The octets of `message`; with keys, its integrity is appended, and its FINGERPRINT where asked for.

    Raises ValueError for a transaction id of a wrong length and for more than 65,532 octets of attributes.
    """
    if len(message.transaction_id) != TRANSACTION_ID_LENGTH or len(message.cookie) != len(MAGIC_COOKIE):
        raise ValueError("a transaction id has 12 octets, a cookie 4")
    mask = message.cookie + message.transaction_id
    body = bytearray(HEADER_LENGTH)
    for attribute in message.attributes:
        _append(body, attribute.type, attribute.encode(mask))

    # Each covers the header too, whose length must already count the attribute itself.
    def covered(value_length: int) -> bytes:
        length = len(body) - HEADER_LENGTH + _ATTRIBUTE_HEADER.size + value_length
        return _header(message, length) + body[HEADER_LENGTH:]

    if integrity_key is not None:
        digest = credentials.hmac_sha1(integrity_key, covered(credentials.SHA1_LENGTH))
        _append(body, AttributeType.MESSAGE_INTEGRITY, digest)
    if sha256_key is not None:
        digest = credentials.hmac_sha256(sha256_key, covered(credentials.SHA256_LENGTH))
        _append(body, AttributeType.MESSAGE_INTEGRITY_SHA256, digest)
    if fingerprint:
        checksum = credentials.fingerprint(covered(4))
        _append(body, AttributeType.FINGERPRINT, checksum.to_bytes(4))
    body[:HEADER_LENGTH] = _header(message, len(body) - HEADER_LENGTH)
    return bytes(body)


def decode_message(
    data: bytes, *, accept_rfc3489: bool = False, also: Mapping[int, type[Attribute]] = _NO_MORE
) -> Message:
    """The message that `data` is, from its first octet to its last.

    A FINGERPRINT is checked; integrity is not (`check_integrity`), because that takes a key. Messages
    without the magic cookie are refused unless `accept_rfc3489`. also: the attributes of a usage that are no
    part of STUN itself, by type. Raises BadMessage, and nothing else.
    """
    method, message_class, cookie, transaction_id = _decode_header_untrusted(data)
    if cookie != MAGIC_COOKIE and not accept_rfc3489:
        raise BadMessage("no magic cookie")
    mask = cookie + transaction_id
    attributes: list[Attribute | UnknownAttribute] = []
    for kind, at, value in _walk_untrusted(data):
        known = _ATTRIBUTES.get(kind) or also.get(kind)
        if known is None:
            attributes.append(UnknownAttribute(kind, value))
            continue
        attribute = known.decode_untrusted(value, mask)
        if isinstance(attribute, Fingerprint) and attribute.value != credentials.fingerprint(data[:at]):
            raise BadMessage("wrong FINGERPRINT")
        attributes.append(attribute)
    return Message(method, message_class, transaction_id, tuple(attributes), cookie)


def looks_like_stun(data: bytes) -> bool:
    """Whether a datagram is STUN and not another protocol on the same port (RFC 8489 section 5): the two
    zero bits, the cookie, and the length. Cheap; what passes may still be refused by `decode_message`."""
    return (
        len(data) >= HEADER_LENGTH
        and data[0] < 0x40
        and data[4:8] == MAGIC_COOKIE
        and int.from_bytes(data[2:4]) == len(data) - HEADER_LENGTH
    )


def check_integrity(data: bytes, key: bytes) -> bool:
    """Whether `data` has a MESSAGE-INTEGRITY made with `key` (RFC 8489 section 14.5). Raises BadMessage."""
    found = _covered_untrusted(data, MessageIntegrity)
    return found is not None and compare_digest(found[1], credentials.hmac_sha1(key, found[0]))


def check_integrity_sha256(data: bytes, key: bytes) -> bool:
    """Whether `data` has a MESSAGE-INTEGRITY-SHA256 made with `key`, whole or truncated (RFC 8489 section
    14.6). Raises BadMessage."""
    found = _covered_untrusted(data, MessageIntegritySha256)
    return found is not None and compare_digest(
        found[1], credentials.hmac_sha256(key, found[0])[: len(found[1])]
    )


# --- the octets --------------------------------------------------------------------------------


def _header(message: Message, length: int) -> bytes:
    if length > 0xFFFC:
        raise ValueError(f"a message of {length} octets: at most 65,532")
    # The class bits sit inside the method: M11..M7 C1 M6..M4 C0 M3..M0.
    method, kind = message.method, message.message_class
    bits = (method & 0xF80) << 2 | (kind & 2) << 7 | (method & 0x70) << 1 | (kind & 1) << 4 | method & 0xF
    return _HEADER.pack(bits, length, message.cookie, message.transaction_id)


def _append(body: bytearray, kind: int, value: bytes) -> None:
    if len(value) > 0xFFFF:
        raise ValueError(f"an attribute of {len(value)} octets: at most 65,535")
    body += _ATTRIBUTE_HEADER.pack(kind, len(value)) + value + bytes(-len(value) % 4)


def _decode_header_untrusted(data: bytes) -> tuple[int, MessageClass, bytes, bytes]:
    if len(data) < HEADER_LENGTH:
        raise BadMessage(f"{len(data)} octets are no STUN message")
    bits, length, cookie, transaction_id = _HEADER.unpack_from(data)
    if bits & 0xC000:
        raise BadMessage("the first two bits of a STUN message are zero")
    if length % 4 or length != len(data) - HEADER_LENGTH:
        raise BadMessage(f"length {length} in a message of {len(data)} octets")
    method = (bits >> 2 & 0xF80) | (bits >> 1 & 0x70) | bits & 0xF
    return method, MessageClass((bits >> 7 & 2) | (bits >> 4 & 1)), cookie, transaction_id


def _walk_untrusted(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, offset and value of each attribute that counts. The header is known to be right."""
    at, end = HEADER_LENGTH, len(data)
    may_follow: Sequence[int] | None = None  # None: anything
    while at < end:
        kind, length = _ATTRIBUTE_HEADER.unpack_from(data, at)
        start = at + _ATTRIBUTE_HEADER.size
        after = start + length + -length % 4
        if after > end:
            raise BadMessage(f"attribute 0x{kind:04x} overruns the message")
        if kind == AttributeType.FINGERPRINT and after != end:
            raise BadMessage("FINGERPRINT is not the last attribute")
        if may_follow is None or kind in may_follow:
            yield kind, at, data[start : start + length]
            may_follow = _MAY_FOLLOW.get(kind, may_follow)
        at = after


def _covered_untrusted(
    data: bytes, kind: type[MessageIntegrity] | type[MessageIntegritySha256]
) -> tuple[bytes, bytes] | None:
    """What the integrity of this kind was made over, and its value; None where there is none."""
    _decode_header_untrusted(data)
    for found, at, value in _walk_untrusted(data):
        if found == kind.type:
            digest = kind.decode_untrusted(value, b"").digest
            # The sender's header ended with this attribute; ours may count those that follow it.
            length = at - HEADER_LENGTH + _ATTRIBUTE_HEADER.size + len(digest)
            return data[:2] + length.to_bytes(2) + data[4:at], digest
    return None
