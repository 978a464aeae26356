"""Hostile octets against everything that reads STUN: only BadMessage may leave a decoder."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fuzz_support import check_decoder
from test_stun_vectors import VECTORS

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._traversal.stun import attributes, connect_back, credentials, usages
from ntcpsock._traversal.stun.attributes import UnknownAttribute
from ntcpsock._traversal.stun.constants import MessageClass
from ntcpsock._traversal.stun.framing import MessageSplitter
from ntcpsock._traversal.stun.machine import ClientTransaction
from ntcpsock._traversal.stun.message import (
    Message,
    binding_request,
    check_integrity,
    check_integrity_sha256,
    decode_message,
    encode_message,
)
from ntcpsock._traversal.stun.server import BindingServer

ID = bytes(range(12))
IPV4, IPV6 = Endpoint("192.0.2.1", 3478), Endpoint("2001:db8::1", 3479)
SERVER = BindingServer(IPV4, other_host="192.0.2.2", other_port=3479)

# One message with each attribute, without a FINGERPRINT that would refuse most mutations.
SEEDS = [
    *(vector.data for vector in VECTORS.values()),
    encode_message(
        Message(
            1,
            MessageClass.SUCCESS_RESPONSE,
            ID,
            (
                attributes.MappedAddress(IPV4),
                attributes.XorMappedAddress(IPV6),
                attributes.AlternateServer(IPV4),
                attributes.ResponseOrigin(IPV6),
                attributes.OtherAddress(IPV4),
                attributes.SourceAddress(IPV4),
                attributes.ChangedAddress(IPV4),
                attributes.AlternateDomain("example.org"),
                connect_back.ConnectBack(1),
            ),
        )
    ),
    encode_message(
        Message(
            1,
            MessageClass.ERROR_RESPONSE,
            ID,
            (
                attributes.ErrorCodeAttribute(420, "Unknown Attribute"),
                attributes.UnknownAttributes((0x7FFF, 1, 2)),
                attributes.Realm("realm"),
                attributes.Nonce(b"obMatJos2nonce"),
                credentials.PasswordAlgorithms(((2, b""), (1, b"xyz"))),
            ),
        )
    ),
    encode_message(
        binding_request(
            ID, usages.ChangeRequest(True, False), usages.Padding(bytes(33)), usages.UseCandidate()
        ),
        integrity_key=b"key",
        sha256_key=b"key",
    ),
    encode_message(binding_request(ID, usages.ResponsePort(9), usages.IceControlling(7))),
    encode_message(Message(1, MessageClass.REQUEST, ID, (UnknownAttribute(0x7FFF, b"?"),), b"old!")),
]


def decode(data: bytes) -> None:
    """All that the program does with such octets."""
    try:
        message = decode_message(data, accept_rfc3489=True)
    finally:
        # The server and the client have their own way with what is bad: silence.
        SERVER.handle_datagram(data, IPV6, IPV4)
        transaction = ClientTransaction(binding_request(ID), now=0.0)
        transaction.handle_message(data, 0.0)
    check_integrity(data, b"key")
    check_integrity_sha256(data, b"key")
    content = tuple(item for item in message.attributes if not isinstance(item, credentials.Fingerprint))
    message = replace(message, attributes=content)
    try:
        again = decode_message(encode_message(message), accept_rfc3489=True)
    except BadMessage as error:
        raise AssertionError("what was read cannot be written and read again") from error
    assert again == message


def split(data: bytes) -> None:
    splitter = MessageSplitter(2048)
    middle = len(data) // 2
    for message in splitter.receive_data(data[:middle]) + splitter.receive_data(data[middle:]):
        SERVER.handle_stream_message(message, IPV4, IPV4)


def fuzz_stun(seed: int, count: int) -> None:
    """`count` mutated messages, the same for the same `seed`."""
    check_decoder(decode, SEEDS, count, seed)
    check_decoder(split, [data for data in SEEDS if data[4:8] != b"old!"], count // 10, seed)


def test_mutated_messages() -> None:
    fuzz_stun(seed=5769, count=20_000)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_million_mutated_messages() -> None:
    fuzz_stun(seed=8489, count=1_000_000)
