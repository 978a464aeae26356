"""TURN's numbers, attributes, ChannelData and stream framing; and hostile octets against all that reads them."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

import pytest
from fuzz_support import check_decoder, mutations
from hypothesis import given, settings
from hypothesis import strategies as st
from test_stun_iana import read_table
from turn_support import PEER, RELAYED, FakeServer, Pair, data_indication

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._traversal.stun.attributes import Attribute, ErrorCodeAttribute, Nonce, Realm
from ntcpsock._traversal.stun.constants import MessageClass
from ntcpsock._traversal.stun.credentials import PasswordAlgorithms
from ntcpsock._traversal.stun.message import Message, encode_message
from ntcpsock._traversal.turn.credentials import TurnCredentials
from ntcpsock._traversal.turn.framing import LONGEST_UNIT, TurnSplitter
from ntcpsock._traversal.turn.machine import TurnMachine
from ntcpsock._traversal.turn.message import (
    FIRST_CHANNEL,
    LAST_CHANNEL,
    TURN_ATTRIBUTES,
    ChannelNumber,
    Data,
    Lifetime,
    RequestedAddressFamily,
    RequestedTransport,
    TurnAttributeType,
    TurnErrorCode,
    TurnMethod,
    XorPeerAddress,
    XorRelayedAddress,
    allocate_attributes,
    decode_channel_data_untrusted,
    decode_turn_untrusted,
    encode_channel_data,
    is_channel_data,
)

# Attributes of RFC 8656 for what this client never asks for.
WITHOUT_CLASS = {
    "EVEN-PORT",
    "RESERVATION-TOKEN",
    "DONT-FRAGMENT",
    "ADDITIONAL-ADDRESS-FAMILY",
    "ADDRESS-ERROR-CODE",
    "ICMP",
}


# --- the registry ------------------------------------------------------------------------------


def test_methods() -> None:
    table = read_table("stun-parameters-2.csv")
    for method in TurnMethod:
        assert table[f"0x{method:03X}"][0].upper() == method.name.replace("_", "")


def test_attribute_types() -> None:
    table = read_table("stun-parameters-4.csv")
    for kind in TurnAttributeType:
        assert table[f"0x{kind:04X}"][0] == kind.name.replace("_", "-")
    wanted = {
        name
        for name, reference in table.values()
        if reference.startswith("[RFC8656]") and not name.startswith("Reserved")
    }
    assert wanted - WITHOUT_CLASS == {kind.name.replace("_", "-") for kind in TurnAttributeType}
    assert set(TURN_ATTRIBUTES) == set(TurnAttributeType)


def test_error_codes() -> None:
    table = read_table("stun-parameters-6.csv")
    for code in TurnErrorCode:
        assert table[str(int(code))][0].replace("-", " ").upper() == code.name.replace("_", " ")


# --- messages ----------------------------------------------------------------------------------


def test_an_allocate_request_octet_by_octet() -> None:
    request = Message(
        TurnMethod.ALLOCATE,
        MessageClass.REQUEST,
        bytes(range(12)),
        allocate_attributes(lifetime=600, ipv6=True),
    )
    assert encode_message(request).hex(" ", 4) == (
        "00030018 2112a442 00010203 04050607 08090a0b"
        " 00190004 11000000"  # REQUESTED-TRANSPORT: UDP
        " 000d0004 00000258"  # LIFETIME: 600
        " 00170004 02000000"  # REQUESTED-ADDRESS-FAMILY: IPv6
    )


def test_a_channel_bind_request_octet_by_octet() -> None:
    request = Message(
        TurnMethod.CHANNEL_BIND,
        MessageClass.REQUEST,
        bytes(range(12)),
        (ChannelNumber(0x4001), XorPeerAddress(Endpoint("192.0.2.1", 32853))),
    )
    # The address is the one of RFC 5769 section 2.2, under the same mask.
    assert encode_message(request).hex(" ", 4) == (
        "00090014 2112a442 00010203 04050607 08090a0b 000c0004 40010000 00120008 0001a147 e112a643"
    )


endpoints = st.builds(
    Endpoint,
    st.one_of(
        st.integers(0, 2**32 - 1).map(lambda number: str(ipaddress.IPv4Address(number))),
        st.integers(0, 2**128 - 1).map(lambda number: str(ipaddress.IPv6Address(number))),
    ),
    st.integers(0, 65_535),
)
attributes: st.SearchStrategy[Attribute] = st.one_of(
    st.builds(ChannelNumber, st.integers(0, 0xFFFF)),
    st.builds(Lifetime, st.integers(0, 2**32 - 1)),
    st.builds(XorPeerAddress, endpoints),
    st.builds(XorRelayedAddress, endpoints),
    st.builds(Data, st.binary(max_size=2000)),
    st.builds(RequestedAddressFamily, st.integers(0, 255)),
    st.builds(RequestedTransport, st.integers(0, 255)),
)
messages = st.builds(
    Message,
    st.sampled_from(TurnMethod),
    st.sampled_from(MessageClass),
    st.binary(min_size=12, max_size=12),
    st.lists(attributes, max_size=6).map(tuple),
)
channel_data = st.tuples(st.integers(FIRST_CHANNEL, LAST_CHANNEL), st.binary(max_size=2000))


@given(messages)
def test_messages_survive_the_round_trip(message: Message) -> None:
    assert decode_turn_untrusted(encode_message(message)) == message


@given(channel_data, st.booleans())
def test_channel_data_survives_the_round_trip(unit: tuple[int, bytes], padded: bool) -> None:
    encoded = encode_channel_data(*unit, padded=padded)
    assert is_channel_data(encoded)
    assert len(encoded) % 4 == 0 or not padded
    assert decode_channel_data_untrusted(encoded) == unit


@settings(max_examples=40)
@given(st.lists(st.one_of(messages, channel_data), max_size=5), st.data())
def test_a_stream_is_cut_as_it_was_joined(
    units: list[Message | tuple[int, bytes]], data: st.DataObject
) -> None:
    encoded = [
        encode_message(unit) if isinstance(unit, Message) else encode_channel_data(*unit, padded=True)
        for unit in units
    ]
    stream, found = b"".join(encoded), []
    splitter = TurnSplitter()
    while stream:
        length = data.draw(st.integers(1, len(stream)))
        found += splitter.receive_data(stream[:length])
        stream = stream[length:]
    assert found == encoded


def test_channel_data_that_is_too_long() -> None:
    with pytest.raises(ValueError, match="at most 65,535"):
        encode_channel_data(0x4000, bytes(65_536), padded=False)


@pytest.mark.parametrize("data", [b"", b"\x40", b"\x40\0\0", b"\x50\0\0\0", b"\x3f\xff\0\0", b"\x40\0\0\x01"])
def test_what_is_no_channel_data(data: bytes) -> None:
    with pytest.raises(BadMessage):
        decode_channel_data_untrusted(data)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH",
        b"\x80",
        b"\xff" * 9,
        b"\0\1\0\3\x21\x12\xa4\x42",
        b"\0\1\0\0\x21\x12\xa4\0",
        b"\0\1\0\0x",
    ],
)
def test_a_stream_of_something_else(data: bytes) -> None:
    with pytest.raises(BadMessage):
        TurnSplitter().receive_data(data)


def test_a_splitter_keeps_less_than_one_unit() -> None:
    splitter = TurnSplitter()
    unit = encode_channel_data(0x4000, bytes(65_535), padded=True)
    assert len(unit) <= LONGEST_UNIT
    assert splitter.receive_data(unit[:-1]) == []
    assert splitter.receive_data(unit[-1:] * 1 + unit) == [unit, unit]


# --- hostile octets ----------------------------------------------------------------------------

ID = bytes(range(12))
SEEDS = [
    encode_message(
        Message(
            TurnMethod.ALLOCATE,
            MessageClass.SUCCESS_RESPONSE,
            ID,
            (XorRelayedAddress(RELAYED), XorRelayedAddress(Endpoint("2001:db8::1", 9)), Lifetime(600)),
        )
    ),
    encode_message(
        Message(
            TurnMethod.ALLOCATE,
            MessageClass.ERROR_RESPONSE,
            ID,
            (
                ErrorCodeAttribute(401),
                Realm("lab"),
                Nonce(b"obMatJos2AAABnonce"),
                PasswordAlgorithms(((2, b""), (1, b""))),
            ),
        )
    ),
    encode_message(
        Message(
            TurnMethod.CHANNEL_BIND, MessageClass.REQUEST, ID, (ChannelNumber(0x4000), XorPeerAddress(PEER))
        )
    ),
    encode_message(Message(TurnMethod.ALLOCATE, MessageClass.REQUEST, ID, (RequestedTransport(),))),
    data_indication(PEER, b"a peer's datagram"),
]
CHANNEL_SEEDS = [
    encode_channel_data(0x4000, b"data", padded=True),
    encode_channel_data(0x4FFF, b"", padded=False),
]


def decode(data: bytes) -> None:
    message = decode_turn_untrusted(data)
    for attribute in message.attributes:
        attribute.encode(bytes(16))


def split(data: bytes) -> None:
    splitter = TurnSplitter()
    middle = len(data) // 2
    for unit in splitter.receive_data(data[:middle]) + splitter.receive_data(data[middle:]):
        (decode_channel_data_untrusted if is_channel_data(unit) else decode_turn_untrusted)(unit)


def fuzz_turn(seed: int, count: int) -> None:
    check_decoder(decode, SEEDS, count, seed)
    check_decoder(decode_channel_data_untrusted, CHANNEL_SEEDS, count // 4, seed)
    check_decoder(split, SEEDS + CHANNEL_SEEDS[:1], count // 4, seed)


def fuzz_machine(seed: int, count: int) -> None:
    """Mutated answers, to a machine at each step of its life: nothing leaves it, and it does not grow."""
    steps: list[Callable[[Pair], object]] = [
        lambda both: None,
        lambda both: both.machine.permit(PEER.host, 0.0),
        lambda both: both.machine.bind(PEER, 0.0),
        lambda both: both.machine.close(0.0),
    ]
    for step in range(len(steps)):
        both = Pair(TurnMachine(TurnCredentials("u", "p"), now=0.0), FakeServer())
        for action in steps[:step]:
            both.exchange()
            action(both)
        steps[step](both)
        real = [answer for unit in both.machine.datagrams_to_send(0.0) for answer in both.server.handle(unit)]
        for data in mutations(real + SEEDS + CHANNEL_SEEDS, count // len(steps), seed):
            both.machine.handle_unit(data, 0.0)
            assert len(both.machine.datagrams_to_send(0.0)) <= 2
            both.events()
        assert len(both.machine.dropped) <= 10


def test_mutated_messages() -> None:
    fuzz_turn(seed=8656, count=8_000)
    fuzz_machine(seed=8656, count=8_000)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_million_mutated_messages() -> None:
    fuzz_turn(seed=5766, count=1_000_000)
    fuzz_machine(seed=5766, count=200_000)
