from __future__ import annotations

import contextlib
import ipaddress
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._traversal.stun import attributes as core
from ntcpsock._traversal.stun import connect_back, credentials, usages
from ntcpsock._traversal.stun.attributes import Attribute, Software, UnknownAttribute, Username
from ntcpsock._traversal.stun.constants import AttributeType, MessageClass, Method
from ntcpsock._traversal.stun.credentials import Fingerprint, MessageIntegrity, MessageIntegritySha256
from ntcpsock._traversal.stun.message import (
    _ATTRIBUTES,
    Message,
    binding_request,
    check_integrity,
    check_integrity_sha256,
    decode_message,
    encode_message,
    error_response,
    looks_like_stun,
)

ID = bytes(range(12))
KEY = b"a key"


def raw(*attributes: tuple[int, bytes], kind: int = 0x0001, cookie: bytes = b"\x21\x12\xa4\x42") -> bytes:
    """A message written by hand, as a stranger could."""
    body = b"".join(
        struct.pack("!HH", number, len(value)) + value + bytes(-len(value) % 4)
        for number, value in attributes
    )
    return struct.pack("!HH4s12s", kind, len(body), cookie, ID) + body


# --- round trips -------------------------------------------------------------------------------

endpoints = st.builds(
    Endpoint, st.ip_addresses().map(lambda address: str(ipaddress.ip_address(address))), st.integers(0, 65535)
)


def texts(longest: int) -> st.SearchStrategy[str]:
    return st.text(max_size=longest // 4)


def octets(length: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=length, max_size=length)


BY_CLASS: dict[type[Attribute], st.SearchStrategy[Attribute]] = {
    core.MappedAddress: st.builds(core.MappedAddress, endpoints),
    core.XorMappedAddress: st.builds(core.XorMappedAddress, endpoints),
    core.AlternateServer: st.builds(core.AlternateServer, endpoints),
    core.ResponseOrigin: st.builds(core.ResponseOrigin, endpoints),
    core.OtherAddress: st.builds(core.OtherAddress, endpoints),
    core.SourceAddress: st.builds(core.SourceAddress, endpoints),
    core.ChangedAddress: st.builds(core.ChangedAddress, endpoints),
    core.Username: st.builds(core.Username, texts(core.LONGEST_USERNAME)),
    core.Realm: st.builds(core.Realm, texts(core.LONGEST_TEXT)),
    core.Nonce: st.builds(core.Nonce, st.binary(max_size=core.LONGEST_TEXT)),
    core.Software: st.builds(core.Software, texts(core.LONGEST_TEXT)),
    core.AlternateDomain: st.builds(core.AlternateDomain, texts(core.LONGEST_DOMAIN)),
    core.ErrorCodeAttribute: st.builds(
        core.ErrorCodeAttribute, st.integers(300, 699), texts(core.LONGEST_TEXT)
    ),
    core.UnknownAttributes: st.builds(
        core.UnknownAttributes, st.lists(st.integers(0, 65535), max_size=9).map(tuple)
    ),
    credentials.UserHash: st.builds(credentials.UserHash, octets(32)),
    credentials.PasswordAlgorithm: st.builds(
        credentials.PasswordAlgorithm, st.integers(0, 65535), st.binary(max_size=40)
    ),
    credentials.PasswordAlgorithms: st.builds(
        credentials.PasswordAlgorithms,
        st.lists(st.tuples(st.integers(0, 65535), st.binary(max_size=40)), max_size=4).map(tuple),
    ),
    usages.ChangeRequest: st.builds(usages.ChangeRequest, st.booleans(), st.booleans()),
    usages.ResponsePort: st.builds(usages.ResponsePort, st.integers(0, 65535)),
    usages.Padding: st.builds(usages.Padding, st.binary(max_size=200)),
    usages.Priority: st.builds(usages.Priority, st.integers(0, 2**32 - 1)),
    usages.UseCandidate: st.just(usages.UseCandidate()),
    usages.IceControlled: st.builds(usages.IceControlled, st.integers(0, 2**64 - 1)),
    connect_back.ConnectBack: st.builds(connect_back.ConnectBack, st.integers(0, 255)),
    usages.IceControlling: st.builds(usages.IceControlling, st.integers(0, 2**64 - 1)),
}
PROOFS = (MessageIntegrity, MessageIntegritySha256, Fingerprint)

unknown_attributes = st.builds(
    UnknownAttribute,
    st.integers(0, 65535).filter(lambda number: number not in _ATTRIBUTES),
    st.binary(max_size=30),
)
messages = st.builds(
    Message,
    st.integers(0, 0xFFF),
    st.sampled_from(MessageClass),
    octets(12),
    st.lists(st.one_of(*BY_CLASS.values(), unknown_attributes), max_size=6).map(tuple),
)


def test_every_attribute_has_a_round_trip() -> None:
    assert set(BY_CLASS) | set(PROOFS) == set(_ATTRIBUTES.values())


@settings(deadline=None)  # other programs may have the processor
@given(messages)
def test_round_trip(message: Message) -> None:
    data = encode_message(message)
    assert len(data) % 4 == 0
    assert looks_like_stun(data)
    assert decode_message(data) == message


@settings(deadline=None)  # other programs may have the processor
@given(messages, st.binary(min_size=1, max_size=40))
def test_round_trip_with_every_proof(message: Message, key: bytes) -> None:
    data = encode_message(message, integrity_key=key, sha256_key=key, fingerprint=True)
    decoded = decode_message(data)
    assert decoded.attributes[:-3] == message.attributes
    assert tuple(type(proof) for proof in decoded.attributes[-3:]) == PROOFS
    assert check_integrity(data, key)
    assert check_integrity_sha256(data, key)
    assert not check_integrity(data, key + b"!")
    assert not check_integrity_sha256(data, key + b"!")
    # A message with its proofs written out again is the same message.
    assert encode_message(decoded) == data


@settings(deadline=None)  # other programs may have the processor
@given(st.binary(max_size=300))
def test_noise_is_refused_or_read(data: bytes) -> None:
    with contextlib.suppress(BadMessage):
        decode_message(data, accept_rfc3489=True)


# --- the rules ---------------------------------------------------------------------------------


def test_the_header_of_a_binding_request() -> None:
    assert encode_message(binding_request(ID)) == bytes.fromhex("00010000 2112a442") + ID


@pytest.mark.parametrize(
    ("method", "kind", "bits"),
    [
        (0x001, MessageClass.REQUEST, 0x0001),
        (0x001, MessageClass.INDICATION, 0x0011),
        (0x001, MessageClass.SUCCESS_RESPONSE, 0x0101),
        (0x001, MessageClass.ERROR_RESPONSE, 0x0111),
        (0x003, MessageClass.REQUEST, 0x0003),
        (0xFFF, MessageClass.REQUEST, 0x3EEF),
        (0xFFF, MessageClass.ERROR_RESPONSE, 0x3FFF),
    ],
)
def test_method_and_class_are_interleaved(method: int, kind: MessageClass, bits: int) -> None:
    data = encode_message(Message(method, kind, ID))
    assert int.from_bytes(data[:2]) == bits
    assert decode_message(data) == Message(method, kind, ID)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(raw()[:19], id="cut in the header"),
        pytest.param(b"\x80" + raw()[1:], id="first bits not zero"),
        pytest.param(raw() + b"\0\0\0\0", id="longer than its length"),
        pytest.param(raw((0x8022, b"abcd"))[:-4], id="shorter than its length"),
        pytest.param(raw()[:2] + b"\0\x02" + raw()[4:] + b"\0\0", id="length not in words"),
        pytest.param(raw(cookie=b"old!"), id="no cookie"),
        pytest.param(raw()[:2] + b"\0\x04" + raw()[4:] + b"\x80\x22\0\x04", id="attribute overruns"),
        pytest.param(raw()[:2] + b"\0\x08" + raw()[4:] + b"\x80\x22\0\x05abcd", id="overruns by its padding"),
        pytest.param(raw((0x0008, bytes(20)), (0xABCD, b""))[:-2] + b"\0\4", id="overruns, ignored or not"),
        pytest.param(raw((0x8028, bytes(4))), id="wrong fingerprint"),
        pytest.param(raw((0x8028, bytes(4)), (0x8022, b"x")), id="fingerprint not last"),
        pytest.param(raw((0x0020, bytes(8))), id="family 0"),
        pytest.param(raw((0x0020, b"\0\2\0\0" + bytes(4))), id="IPv6 in 4 octets"),
        pytest.param(raw((0x0020, b"\0\1\0\0" + bytes(5))), id="IPv4 in 5 octets"),
        pytest.param(raw((0x0001, b"")), id="empty address"),
        pytest.param(raw((0x0006, bytes(509))), id="long username"),
        pytest.param(raw((0x0006, b"\xff")), id="username not UTF-8"),
        pytest.param(raw((0x0014, bytes(764))), id="long realm"),
        pytest.param(raw((0x0015, bytes(764))), id="long nonce"),
        pytest.param(raw((0x8003, bytes(256))), id="long domain"),
        pytest.param(raw((0x0009, b"\0\0\4")), id="short error code"),
        pytest.param(raw((0x0009, b"\0\0\2\0")), id="error class 2"),
        pytest.param(raw((0x0009, b"\0\0\4\x64")), id="error number 100"),
        pytest.param(raw((0x000A, b"\0\1\2")), id="odd unknown attributes"),
        pytest.param(raw((0x0008, bytes(19))), id="short integrity"),
        pytest.param(raw((0x001C, bytes(12))), id="integrity truncated too far"),
        pytest.param(raw((0x001C, bytes(18))), id="integrity not in words"),
        pytest.param(raw((0x001C, bytes(36))), id="long integrity"),
        pytest.param(raw((0x001E, bytes(31))), id="short user hash"),
        pytest.param(raw((0x001D, b"\0\1\0")), id="cut algorithm"),
        pytest.param(raw((0x001D, b"\0\1\0\5abcd")), id="cut parameters"),
        pytest.param(raw((0x001D, b"\0\1\0\0\0\2\0\0")), id="two algorithms in one"),
        pytest.param(raw((0x0003, b"\0\0\0")), id="short change request"),
        pytest.param(raw((0x0024, bytes(5))), id="long priority"),
        pytest.param(raw((0x0025, b"x")), id="use candidate with a value"),
        pytest.param(raw((0x0027, b"\0\1\0")), id="response port of 3"),
        pytest.param(raw((0x802A, bytes(4))), id="short tie breaker"),
    ],
)
def test_refused(data: bytes) -> None:
    with pytest.raises(BadMessage):
        decode_message(data)


def test_unknown_attributes_are_kept_and_told_apart() -> None:
    message = decode_message(raw((0x7000, b"abc"), (0x8FFF, b""), (0x7001, b""), (0x7000, b"")))
    assert message.attributes[0] == UnknownAttribute(0x7000, b"abc")
    assert message.unknown_required == (0x7000, 0x7001)


def test_the_first_of_several_counts() -> None:
    message = decode_message(raw((0x8022, b"one"), (0x8022, b"two")))
    assert message.get(Software) == Software("one")
    assert message.get(Username) is None


def test_only_proofs_count_behind_the_integrity() -> None:
    """Anybody on the way may have appended the rest (RFC 8489 section 14.5)."""
    message = decode_message(
        raw(
            (0x0008, bytes(20)),
            (0x0020, b"\0\1" + bytes(6)),
            (0x7000, b"required and unknown"),
            (0x001C, bytes(32)),
            (0x0008, bytes(20)),
            (0x0006, b"\xff"),
        )
    )
    assert [type(attribute) for attribute in message.attributes] == [MessageIntegrity, MessageIntegritySha256]
    assert message.unknown_required == ()


def test_what_is_appended_does_not_break_the_integrity() -> None:
    data = encode_message(binding_request(ID, Username("u")), integrity_key=KEY)
    longer = data[:2] + (len(data) - 20 + 8).to_bytes(2) + data[4:] + bytes.fromhex("80220004") + b"evil"
    assert check_integrity(longer, KEY)
    assert decode_message(longer).get(Software) is None


def test_a_truncated_sha256_counts_as_far_as_it_goes() -> None:
    head = encode_message(binding_request(ID))
    covered = head[:2] + (4 + 16).to_bytes(2) + head[4:]
    digest = credentials.hmac_sha256(KEY, covered)[:16]
    data = covered + bytes.fromhex("001c0010") + digest
    assert check_integrity_sha256(data, KEY)
    assert not check_integrity_sha256(data[:-1] + bytes([data[-1] ^ 1]), KEY)


def test_without_integrity_nothing_is_proved() -> None:
    data = encode_message(binding_request(ID))
    assert not check_integrity(data, KEY)
    assert not check_integrity_sha256(data, KEY)


def test_messages_of_rfc_3489_are_known_by_their_cookie() -> None:
    message = decode_message(raw(cookie=b"old!"), accept_rfc3489=True)
    assert message.is_rfc3489
    assert message.cookie == b"old!"
    answer = error_response(message, 420)
    assert encode_message(answer)[4:20] == b"old!" + ID
    assert not decode_message(raw(), accept_rfc3489=True).is_rfc3489


def test_bad_utf8_for_people_to_read_does_not_spoil_a_message() -> None:
    assert decode_message(raw((0x8022, b"caf\xe9"))).get(Software) == Software("caf\ufffd")


def test_a_zone_stays_at_home() -> None:
    mapped = core.XorMappedAddress(Endpoint("fe80::1%eth0", 1))
    assert decode_message(encode_message(binding_request(ID, mapped))).attributes == (
        core.XorMappedAddress(Endpoint("fe80::1", 1)),
    )


def test_response_port_is_read_with_and_without_its_padding() -> None:
    for value in (b"\x12\x34", b"\x12\x34\0\0"):
        assert decode_message(raw((0x0027, value))).get(usages.ResponsePort) == usages.ResponsePort(0x1234)


def test_the_last_algorithm_may_leave_its_padding_to_the_attribute() -> None:
    message = decode_message(raw((0x8002, b"\0\1\0\0\0\x09\0\1x")))
    assert message.get(credentials.PasswordAlgorithms) == credentials.PasswordAlgorithms(
        ((1, b""), (9, b"x"))
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n....",
        raw()[:-1],
        raw() + b"1234",
        raw(cookie=b"old!"),
        b"\x16\x03\x01" * 9,
    ],
)
def test_other_protocols_do_not_look_like_stun(data: bytes) -> None:
    assert not looks_like_stun(data)


@pytest.mark.parametrize(
    "message",
    [
        binding_request(b"short"),
        Message(Method.BINDING, MessageClass.REQUEST, ID, cookie=b""),
        binding_request(ID, usages.Padding(bytes(65_536))),
        binding_request(ID, usages.Padding(bytes(60_000)), usages.Padding(bytes(6_000))),
    ],
)
def test_what_cannot_be_written(message: Message) -> None:
    with pytest.raises(ValueError, match=r"octets|12"):
        encode_message(message)


def test_opaque_strings() -> None:
    assert credentials.opaque_string("a\u00a0b") == "a b"
    assert credentials.opaque_string("e\u0301") == "\u00e9"
    for bad in ("", "tab\t", "soft\u00adhyphen", "\ue000"):
        with pytest.raises(ValueError, match="OpaqueString"):
            credentials.opaque_string(bad)


def test_long_term_keys() -> None:
    # RFC 8489 section 9.2.2's example: user "user", realm "realm", password "pass".
    assert credentials.long_term_key("user", "realm", "pass").hex() == "8493fbc53ba582fb4c044c456bdc40eb"
    with pytest.raises(ValueError, match="algorithm"):
        credentials.long_term_key("u", "r", "p", 77)


def test_types_are_plain_numbers_on_the_wire() -> None:
    assert _ATTRIBUTES[0x0020] is core.XorMappedAddress
    assert AttributeType(0x8028) is AttributeType.FINGERPRINT
