"""The messages of RFC 5769, and of RFC 8489 appendix B.1 as corrected by erratum 6268."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._traversal.stun.attributes import Nonce, Realm, Software, Username, XorMappedAddress
from ntcpsock._traversal.stun.constants import MessageClass, Method, PasswordAlgorithmNumber
from ntcpsock._traversal.stun.credentials import (
    Fingerprint,
    MessageIntegrity,
    MessageIntegritySha256,
    PasswordAlgorithm,
    UserHash,
    long_term_key,
    short_term_key,
    user_hash,
)
from ntcpsock._traversal.stun.message import (
    Message,
    check_integrity,
    check_integrity_sha256,
    decode_message,
    encode_message,
)
from ntcpsock._traversal.stun.usages import IceControlled, Priority

PASSWORD = "VOkJxbRl1RmTxUk/WvJxBt"
MATRIX = "\u30de\u30c8\u30ea\u30c3\u30af\u30b9"
LONG_TERM_PASSWORD = "TheMatrIX"  # as it is after its preparation

REQUEST = bytes.fromhex(
    "00010058 2112a442 b7e7a701bc34d686fa87dfae"
    "80220010 5354554e207465737420636c69656e74"
    "00240004 6e0001ff"
    "80290008 932ff9b151263b36"
    "00060009 6576746a3a68367659 202020"
    "00080014 9aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2"
    "80280004 e57a3bcf"
)
IPV4_RESPONSE = bytes.fromhex(
    "0101003c 2112a442 b7e7a701bc34d686fa87dfae"
    "8022000b 7465737420766563746f72 20"
    "00200008 0001a147e112a643"
    "00080014 2b91f599fd9e90c38c7489f92af9ba53f06be7d7"
    "80280004 c07d4c96"
)
IPV6_RESPONSE = bytes.fromhex(
    "01010048 2112a442 b7e7a701bc34d686fa87dfae"
    "8022000b 7465737420766563746f72 20"
    "00200014 0002a147 0113a9faa5d3f179bc25f4b5bed2b9d9"
    "00080014 a382954e4be67bf11784c97c8292c275bfe3ed41"
    "80280004 c8fb0b4c"
)
LONG_TERM_REQUEST = bytes.fromhex(
    "00010060 2112a442 78ad3433c6ad72c029da412e"
    "00060012 e3839ee38388e383aae38383e382afe382b9 0000"
    "0015001c 662f2f3439396b39353464364f4c33346f4c39465354767936347341"
    "0014000b 6578616d706c652e6f7267 00"
    "00080014 f67024656dd64a3e02b8e0712e85c9a28ca89666"
)
SHA256_REQUEST = bytes.fromhex(
    "00010090 2112a442 78ad3433c6ad72c029da412e"
    "001e0020 4a3cf38fef6992bda952c6780417da0f24819415569e60b205c46e41407f1704"
    "00150029 6f624d61744a6f73324141414366"
    "2f2f3439396b3935346436 4f4c33346f4c39465354767936347341 000000"
    "0014000b 6578616d706c652e6f7267 00"
    "001d0004 00020000"
    "001c0020 b5c7bf005b6c52a21c51c5e892f81924136296cb927c43149309278cc6518e65"
)

SHORT_ID = bytes.fromhex("b7e7a701bc34d686fa87dfae")
LONG_ID = bytes.fromhex("78ad3433c6ad72c029da412e")


@dataclass(frozen=True)
class Vector:
    data: bytes
    message: Message  # without integrity and fingerprint
    integrity_key: bytes | None = None
    sha256_key: bytes | None = None
    fingerprint: bool = True
    # Sections 2.1 to 2.3 pad with spaces, we with zeros, and the sums cover the padding.
    is_zero_padded: bool = False


VECTORS = {
    "2.1": Vector(
        REQUEST,
        Message(
            Method.BINDING,
            MessageClass.REQUEST,
            SHORT_ID,
            (
                Software("STUN test client"),
                Priority(0x6E0001FF),
                IceControlled(0x932FF9B151263B36),
                Username("evtj:h6vY"),
            ),
        ),
        integrity_key=short_term_key(PASSWORD),
    ),
    "2.2": Vector(
        IPV4_RESPONSE,
        Message(
            Method.BINDING,
            MessageClass.SUCCESS_RESPONSE,
            SHORT_ID,
            (Software("test vector"), XorMappedAddress(Endpoint("192.0.2.1", 32853))),
        ),
        integrity_key=short_term_key(PASSWORD),
    ),
    "2.3": Vector(
        IPV6_RESPONSE,
        Message(
            Method.BINDING,
            MessageClass.SUCCESS_RESPONSE,
            SHORT_ID,
            (
                Software("test vector"),
                XorMappedAddress(Endpoint("2001:db8:1234:5678:11:2233:4455:6677", 32853)),
            ),
        ),
        integrity_key=short_term_key(PASSWORD),
    ),
    "2.4": Vector(
        LONG_TERM_REQUEST,
        Message(
            Method.BINDING,
            MessageClass.REQUEST,
            LONG_ID,
            (Username(MATRIX), Nonce(b"f//499k954d6OL34oL9FSTvy64sA"), Realm("example.org")),
        ),
        integrity_key=long_term_key(MATRIX, "example.org", LONG_TERM_PASSWORD),
        fingerprint=False,
        is_zero_padded=True,
    ),
    "8489 B.1": Vector(
        SHA256_REQUEST,
        Message(
            Method.BINDING,
            MessageClass.REQUEST,
            LONG_ID,
            (
                UserHash(user_hash(MATRIX, "example.org")),
                Nonce(b"obMatJos2AAACf//499k954d6OL34oL9FSTvy64sA"),
                Realm("example.org"),
                PasswordAlgorithm(PasswordAlgorithmNumber.SHA256),
            ),
        ),
        sha256_key=long_term_key(MATRIX, "example.org", LONG_TERM_PASSWORD, PasswordAlgorithmNumber.SHA256),
        fingerprint=False,
        is_zero_padded=True,
    ),
}

vectors = pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS.keys())


@vectors
def test_the_message_is_read(vector: Vector) -> None:
    decoded = decode_message(vector.data)
    proofs = (MessageIntegrity, MessageIntegritySha256, Fingerprint)
    content = tuple(item for item in decoded.attributes if not isinstance(item, proofs))
    assert (decoded.method, decoded.message_class) == (vector.message.method, vector.message.message_class)
    assert decoded.transaction_id == vector.message.transaction_id
    assert content == vector.message.attributes
    assert decoded.unknown_required == ()
    assert (decoded.get(Fingerprint) is not None) == vector.fingerprint


@vectors
def test_its_integrity_holds_for_its_key_and_for_no_other(vector: Vector) -> None:
    if vector.integrity_key is not None:
        assert check_integrity(vector.data, vector.integrity_key)
        assert not check_integrity(vector.data, vector.integrity_key + b"!")
        assert not check_integrity_sha256(vector.data, vector.integrity_key)
    if vector.sha256_key is not None:
        assert check_integrity_sha256(vector.data, vector.sha256_key)
        assert not check_integrity_sha256(vector.data, vector.sha256_key + b"!")
        assert not check_integrity(vector.data, vector.sha256_key)


@vectors
def test_what_was_read_is_written_again(vector: Vector) -> None:
    again = encode_message(
        vector.message,
        integrity_key=vector.integrity_key,
        sha256_key=vector.sha256_key,
        fingerprint=vector.fingerprint,
    )
    if vector.is_zero_padded:
        assert again == vector.data
    else:
        assert len(again) == len(vector.data)
        # The same but for the padding and the two sums over it (24 + 8 octets at the end).
        body = slice(0, len(again) - 32)
        differences = [(ours, theirs) for ours, theirs in zip(again[body], vector.data[body], strict=True)]
        assert {pair for pair in differences if pair[0] != pair[1]} == {(0, 0x20)}
        assert vector.integrity_key is not None
        assert check_integrity(again, vector.integrity_key)
    assert decode_message(again).attributes[: len(vector.message.attributes)] == vector.message.attributes


@pytest.mark.parametrize("position", sorted({*range(len(REQUEST))} - {100, 101}))
def test_no_octet_can_be_changed_unseen(position: int) -> None:
    """The FINGERPRINT covers all but its own type (at 100), without which it would not be one."""
    changed = bytearray(REQUEST)
    changed[position] ^= 0x01
    with pytest.raises(BadMessage):
        decode_message(bytes(changed))
