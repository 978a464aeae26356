"""The pure server: what it answers, from where, to whom, and how long the answer may be."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._traversal.stun.attributes import (
    Attribute,
    ChangedAddress,
    ErrorCodeAttribute,
    MappedAddress,
    OtherAddress,
    ResponseOrigin,
    Software,
    SourceAddress,
    UnknownAttribute,
    UnknownAttributes,
    Username,
    XorMappedAddress,
)
from ntcpsock._traversal.stun.constants import AttributeType, MessageClass, Method
from ntcpsock._traversal.stun.credentials import Fingerprint
from ntcpsock._traversal.stun.message import Message, binding_request, decode_message, encode_message
from ntcpsock._traversal.stun.server import BindingServer, Reply
from ntcpsock._traversal.stun.usages import ChangeRequest, Padding, ResponsePort

ID = bytes(range(12))
CLIENT = Endpoint("192.0.2.9", 40000)
CLIENT6 = Endpoint("2001:db8::9", 40000)
A1P1, A1P2 = Endpoint("198.51.100.1", 3478), Endpoint("198.51.100.1", 3479)
A2P1, A2P2 = Endpoint("198.51.100.2", 3478), Endpoint("198.51.100.2", 3479)

SINGLE = BindingServer(A1P1)
TWO_PORTS = BindingServer(A1P1, other_port=3479)
FULL = BindingServer(A1P1, other_host="198.51.100.2", other_port=3479)
SERVERS = {"one address": SINGLE, "two ports": TWO_PORTS, "two addresses": FULL}

any_server = pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS.keys())


def request(
    *attributes: Attribute | UnknownAttribute, fingerprint: bool = False, cookie: bytes | None = None
) -> bytes:
    message = Message(Method.BINDING, MessageClass.REQUEST, ID, attributes)
    if cookie is not None:
        message = Message(Method.BINDING, MessageClass.REQUEST, ID, attributes, cookie)
    return encode_message(message, fingerprint=fingerprint)


def ask(server: BindingServer, data: bytes, local: Endpoint = A1P1, source: Endpoint = CLIENT) -> Reply:
    reply = server.handle_datagram(data, source, local)
    assert reply is not None
    return reply


def read(reply: Reply) -> Message:
    return decode_message(reply.data, accept_rfc3489=True)


def error_of(reply: Reply) -> tuple[int, tuple[int, ...]]:
    message = read(reply)
    assert message.message_class == MessageClass.ERROR_RESPONSE
    error, unknown = message.get(ErrorCodeAttribute), message.get(UnknownAttributes)
    assert error is not None
    assert reply.error == error.code
    return error.code, unknown.types if unknown else ()


# --- RFC 8489 ----------------------------------------------------------------------------------


def test_the_smallest_request_gets_the_smallest_answer() -> None:
    reply = ask(SINGLE, request())
    assert reply == Reply(reply.data, source=A1P1, destination=CLIENT)
    assert read(reply).attributes == (XorMappedAddress(CLIENT),)
    assert len(reply.data) == 32


def test_ipv6() -> None:
    reply = ask(SINGLE, request(), source=CLIENT6)
    assert read(reply).attributes == (XorMappedAddress(CLIENT6),)
    assert len(reply.data) == 44


@any_server
def test_who_sends_a_fingerprint_gets_one(server: BindingServer) -> None:
    assert read(ask(server, request(fingerprint=True))).get(Fingerprint) is not None
    assert read(ask(server, request())).get(Fingerprint) is None


@any_server
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\0" * 100, id="zeros"),
        pytest.param(request()[:-1], id="cut"),
        pytest.param(encode_message(Message(1, MessageClass.INDICATION, ID)), id="indication"),
        pytest.param(encode_message(Message(1, MessageClass.SUCCESS_RESPONSE, ID)), id="response"),
        pytest.param(encode_message(Message(1, MessageClass.ERROR_RESPONSE, ID)), id="error"),
        pytest.param(encode_message(Message(3, MessageClass.REQUEST, ID)), id="another method"),
    ],
)
def test_no_answer(server: BindingServer, data: bytes) -> None:
    assert server.handle_datagram(data, CLIENT, A1P1) is None


def test_answers_of_servers_do_not_chase_each_other() -> None:
    """Two servers that are told each other's address by a forger must fall silent."""
    for data in (request(), request(UnknownAttribute(0x7FFF, b""))):
        assert SINGLE.handle_datagram(ask(SINGLE, data).data, CLIENT, A1P1) is None


@any_server
def test_unknown_required_attributes_are_named(server: BindingServer) -> None:
    unknown = [UnknownAttribute(kind, b"") for kind in (0x7001, 0x7002, 0x7001)]
    reply = ask(server, request(*unknown, UnknownAttribute(0x8FFF, b"")))
    assert error_of(reply) == (420, (0x7001, 0x7002))
    assert reply.destination == CLIENT


def test_credentials_are_not_asked_for_and_not_minded() -> None:
    data = encode_message(binding_request(ID, Username("someone")), integrity_key=b"key", sha256_key=b"key")
    assert read(ask(SINGLE, data)).attributes == (XorMappedAddress(CLIENT),)


# --- RFC 5780 ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("local", "other"), [(A1P1, A2P2), (A1P2, A2P1), (A2P1, A1P2), (A2P2, A1P1)])
def test_each_endpoint_knows_its_opposite(local: Endpoint, other: Endpoint) -> None:
    message = read(ask(FULL, request(), local))
    assert message.get(ResponseOrigin) == ResponseOrigin(local)
    assert message.get(OtherAddress) == OtherAddress(other)


@pytest.mark.parametrize(
    ("address", "port", "local", "origin"),
    [
        (False, False, A1P1, A1P1),
        (True, False, A1P1, A2P1),
        (False, True, A1P1, A1P2),
        (True, True, A1P1, A2P2),
        (True, True, A2P2, A1P1),
        (True, False, A2P2, A1P2),
        (False, True, A2P1, A2P2),
    ],
)
def test_change_request(address: bool, port: bool, local: Endpoint, origin: Endpoint) -> None:
    reply = ask(FULL, request(ChangeRequest(address, port)), local)
    assert (reply.source, reply.destination) == (origin, CLIENT)
    message = read(reply)
    assert message.get(ResponseOrigin) == ResponseOrigin(origin)
    assert message.get(XorMappedAddress) == XorMappedAddress(CLIENT)


@pytest.mark.parametrize(
    ("server", "address", "port"),
    [(SINGLE, True, False), (SINGLE, False, True), (TWO_PORTS, True, False), (TWO_PORTS, True, True)],
)
def test_who_cannot_change_says_so(server: BindingServer, address: bool, port: bool) -> None:
    assert error_of(ask(server, request(ChangeRequest(address, port)))) == (420, (0x0003,))


def test_with_two_ports_the_port_can_be_changed() -> None:
    reply = ask(TWO_PORTS, request(ChangeRequest(False, True)))
    assert reply.source == A1P2
    # RFC 5780 section 7.4: no OTHER-ADDRESS without a second address.
    assert read(reply).attributes == (XorMappedAddress(CLIENT),)


def test_a_change_request_that_asks_for_no_change_is_no_trouble() -> None:
    assert ask(SINGLE, request(ChangeRequest(False, False))).source == A1P1


def test_response_port_within_the_requests_size() -> None:
    reply = ask(FULL, request(ResponsePort(5555), Software("x" * 80)))
    assert reply.destination == Endpoint(CLIENT.host, 5555)
    assert read(reply).get(XorMappedAddress) == XorMappedAddress(CLIENT)
    assert read(reply).get(OtherAddress) == OtherAddress(A2P2)
    # With less room the same, but for what is not needed.
    short = ask(FULL, request(ResponsePort(5555), Software("1234")))
    assert short.destination == Endpoint(CLIENT.host, 5555)
    assert read(short).attributes == (XorMappedAddress(CLIENT),)


@pytest.mark.parametrize(
    "attributes",
    [
        pytest.param([ResponsePort(5555)], id="no room for any answer"),
        pytest.param([ResponsePort(0), Software("x" * 80)], id="port 0"),
        pytest.param([ResponsePort(5555), Padding(bytes(80))], id="with PADDING"),
    ],
)
def test_response_port_refused(attributes: list[Attribute]) -> None:
    reply = ask(FULL, request(*attributes))
    assert error_of(reply)[0] == 400
    assert reply.destination == CLIENT
    assert len(reply.data) <= len(request(*attributes))


@pytest.mark.parametrize("length", [0, 1, 3, 4, 24, 200, 1500])
@any_server
def test_padding_fills_the_answer_up_to_the_request(server: BindingServer, length: int) -> None:
    data = request(Padding(bytes(length)))
    reply = ask(server, data)
    assert len(reply.data) <= max(len(data), len(ask(server, request()).data))
    if length >= 100:
        assert len(reply.data) == len(data)
        assert read(reply).get(Padding) is not None


def test_mapped_address_where_there_is_room() -> None:
    assert read(ask(FULL, request())).get(MappedAddress) is None
    assert read(ask(FULL, request(Software("x" * 48)))).get(MappedAddress) == MappedAddress(CLIENT)


# --- RFC 3489 ----------------------------------------------------------------------------------


def test_an_old_client_of_a_server_with_one_address() -> None:
    reply = ask(SINGLE, request(cookie=b"old!"))
    assert read(reply).attributes == (MappedAddress(CLIENT),)
    assert reply.data[4:20] == b"old!" + ID


def test_an_old_client_of_a_server_with_two_addresses() -> None:
    reply = ask(FULL, request(ChangeRequest(True, True), cookie=b"old!"))
    assert reply.source == A2P2
    assert read(reply).attributes == (MappedAddress(CLIENT), SourceAddress(A2P2), ChangedAddress(A2P2))


def test_an_old_client_gets_whole_words() -> None:
    # RESPONSE-ADDRESS would aim our answer at anybody: it is not known here.
    data = request(UnknownAttribute(0x0002, b"\0\1\0\x50\6\6\6\6"), cookie=b"old!")
    reply = ask(SINGLE, data)
    assert error_of(reply) == (420, (0x0002, 0x0002))
    assert reply.destination == CLIENT
    assert read(reply).get(ErrorCodeAttribute) == ErrorCodeAttribute(420, "")


# --- no amplifier ------------------------------------------------------------------------------

asked: st.SearchStrategy[Attribute | UnknownAttribute] = st.one_of(
    st.builds(ChangeRequest, st.booleans(), st.booleans()),
    st.builds(ResponsePort, st.integers(0, 65535)),
    st.builds(Padding, st.binary(max_size=1600)),
    st.builds(Software, st.text(max_size=60)),
    st.builds(Username, st.text(max_size=60)),
    st.builds(
        UnknownAttribute,
        # A known one with such a value makes no message.
        st.integers(0x7000, 0x9000).filter(lambda kind: kind not in set(AttributeType)),
        st.binary(max_size=9),
    ),
)


@settings(deadline=None)  # other programs may have the processor
@given(
    st.sampled_from(list(SERVERS.values())),
    st.lists(asked, max_size=12),
    st.booleans(),
    st.sampled_from([None, b"old!"]),
    st.sampled_from([CLIENT, CLIENT6]),
)
def test_no_answer_is_longer_than_its_request_or_the_least_that_the_rfc_allows(
    server: BindingServer,
    attributes: list[Attribute | UnknownAttribute],
    fingerprint: bool,
    cookie: bytes | None,
    source: Endpoint,
) -> None:
    data = request(*attributes, fingerprint=fingerprint, cookie=cookie)
    reply = ask(server, data, source=source)
    # What nobody can shorten: the answer to a request without attributes, or for a 420 its two attributes.
    least = len(ask(server, request(fingerprint=fingerprint, cookie=cookie), source=source).data)
    if reply.error == 420:
        kinds = len(error_of(reply)[1])
        least = 20 + 8 + 4 + 2 * (kinds + kinds % 2) + 8 * fingerprint
    elif reply.error is not None:
        least = 0
    assert len(reply.data) <= max(len(data), least)
    if reply.destination != source:
        # An aimed answer is never longer, whatever the RFC allows.
        assert len(reply.data) <= len(data)
        assert reply.destination.host == source.host


# --- streams -----------------------------------------------------------------------------------


def ask_stream(server: BindingServer, data: bytes) -> Message:
    response = server.handle_stream_message(data, CLIENT, A1P1)
    assert isinstance(response, bytes)
    return decode_message(response)


def test_a_stream_gets_everything() -> None:
    assert ask_stream(FULL, request()).attributes == (
        XorMappedAddress(CLIENT),
        ResponseOrigin(A1P1),
        OtherAddress(A2P2),
        MappedAddress(CLIENT),
    )
    assert ask_stream(SINGLE, request()).attributes == (XorMappedAddress(CLIENT),)


@pytest.mark.parametrize(
    ("attribute", "kind"),
    [
        (ChangeRequest(False, True), 3),
        (ResponsePort(99), 0x27),
        (Padding(b"x"), 0x26),
        (UnknownAttribute(0x7777, b""), 0x7777),
    ],
)
def test_what_a_stream_cannot_do(attribute: Attribute | UnknownAttribute, kind: int) -> None:
    message = ask_stream(FULL, request(attribute, fingerprint=True))
    assert message.get(ErrorCodeAttribute) == ErrorCodeAttribute(420, "Unknown Attribute")
    assert message.get(UnknownAttributes) == UnknownAttributes((kind,))


def test_a_stream_without_requests() -> None:
    assert (
        SINGLE.handle_stream_message(encode_message(Message(1, MessageClass.INDICATION, ID)), CLIENT, A1P1)
        is None
    )
    assert ask_stream(SINGLE, request(ChangeRequest(False, False))).get(XorMappedAddress) is not None
    with pytest.raises(BadMessage):
        SINGLE.handle_stream_message(request(cookie=b"old!"), CLIENT, A1P1)
