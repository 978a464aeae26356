"""An address that has proved nothing gets no more than it sent: over everything that can be said to our servers.

The one exception is STUN's: a Binding request may have 20 octets, and RFC 8489 makes its answer 32 over IPv4 and 44
over IPv6; RFC 5780's two addresses are 24 more (48), from servers that have them; a refusal has 36. A request with a
FINGERPRINT has one in its answer. No answer is longer than that *and* longer than its request. Over TCP, the relay's
port included, the handshake has proved the address before a byte is answered.
"""

from __future__ import annotations

import random
import socket
from typing import get_args

import pytest
import trio
from broker_support import BROKER, SEALED, SimulatedNetwork, make_identity, registration
from hypothesis import given, settings
from hypothesis import strategies as st
from relay_support import running_broker
from stun_support import serving

from benchmarks.hostile_senders import garbage
from ntcpsock._address import Endpoint
from ntcpsock._servers.sources import endpoint_of, pack_source, unpack_source
from ntcpsock._traversal.broker.fields import COOKIE_LENGTH, RelayPlace
from ntcpsock._traversal.broker.frame import Sealer, encode_key_request
from ntcpsock._traversal.broker.message import (
    AskTurn,
    Bye,
    FromNode,
    Hello,
    Introduce,
    KeepAlive,
    Lookup,
    Prove,
    Register,
    Reply,
    Spoof,
    encode_from_node,
)
from ntcpsock._traversal.broker.operation import OfferRelay, Outcome, WithdrawRelay
from ntcpsock._traversal.broker.short_keep_alive import (
    SHORT_KEEP_ALIVE_LENGTH,
    ShortKeepAlive,
    encode_short_keep_alive,
)
from ntcpsock._traversal.stun.attributes import Attribute, Software, Username
from ntcpsock._traversal.stun.credentials import Fingerprint
from ntcpsock._traversal.stun.message import Message, binding_request, decode_message, encode_message
from ntcpsock._traversal.stun.server import BindingServer
from ntcpsock._traversal.stun.usages import ChangeRequest, Padding, Priority, ResponsePort

VICTIM = Endpoint("192.0.2.66", 666)

stun_attributes: st.SearchStrategy[Attribute] = st.one_of(
    st.builds(ChangeRequest, st.booleans(), st.booleans()),
    st.builds(Padding, st.integers(0, 1200).map(bytes)),
    st.builds(ResponsePort, st.integers(0, 65535)),
    st.builds(Software, st.text("x", max_size=120)),
    st.builds(Username, st.text("x", max_size=120)),
    st.builds(Priority, st.integers(0, 2**32 - 1)),
)
stun_requests = st.one_of(
    st.builds(
        lambda method, kind, attributes, cookie, fingerprint: encode_message(
            Message(method, kind, bytes(12), tuple(attributes), cookie), fingerprint=fingerprint
        ),
        st.sampled_from([1, 1, 1, 3, 4, 0xFFF]),
        st.sampled_from([0, 0, 0, 1, 2, 3]),
        st.lists(stun_attributes, max_size=6),
        st.sampled_from([b"\x21\x12\xa4\x42", b"\x21\x12\xa4\x42", b"old!"]),
        st.booleans(),
    ),
    st.binary(max_size=200),
    # Types that nobody knows, which the answer has to name.
    st.lists(st.integers(0x7000, 0x7FFF), max_size=40).map(
        lambda kinds: b"\0\1" + (4 * len(kinds)).to_bytes(2) + b"\x21\x12\xa4\x42" + bytes(12)
        + b"".join(kind.to_bytes(2) + b"\0\0" for kind in kinds)
    ),
)  # fmt: skip


@given(stun_requests, st.booleans(), st.booleans())
@settings(max_examples=500, deadline=None)
def test_stun_answers_as_little_as_the_rfc_lets_it(request: bytes, ipv6: bool, two: bool) -> None:
    primary = Endpoint("2001:db8::1" if ipv6 else "192.0.2.1", 3478)
    other = ("2001:db8::2" if ipv6 else "192.0.2.2") if two else None
    source = Endpoint("2001:db8::66", 666) if ipv6 else VICTIM
    reply = BindingServer(primary, other, 3479 if two else None).handle_datagram(request, source, primary)
    if reply is None:
        return
    floor = 36 if reply.error else (44 if ipv6 else 32) + (48 if ipv6 else 24) * two
    if any(
        isinstance(attribute, Fingerprint)
        for attribute in decode_message(reply.data, accept_rfc3489=True).attributes
    ):
        floor += 8
    assert len(reply.data) <= max(len(request), floor), (request, reply)
    assert reply.destination.host == source.host
    if reply.destination != source and reply.error is None:
        # Aimed at another port: there is no exception then.
        assert len(reply.data) <= len(request)


def from_nodes(keys: list[bytes]) -> st.SearchStrategy[FromNode]:
    """Every message that there is."""
    key = st.sampled_from(keys)
    return st.one_of(
        st.builds(Hello, st.binary(min_size=8, max_size=8), st.binary(max_size=COOKIE_LENGTH), st.booleans()),
        st.just(registration("mallory")),
        st.just(Register((), (), 60, b"c" * 600)),
        st.just(Lookup("alice")),
        st.builds(lambda to, name: Introduce(to, 80, SEALED, name), key, st.sampled_from([None, "alice"])),
        st.builds(lambda to: Reply(to, bytes(8), SEALED), key),
        st.just(KeepAlive()),
        st.just(Bye()),
        st.builds(Prove, st.binary(max_size=COOKIE_LENGTH)),
        st.just(Outcome("tcp-open", "tcp", "none", "unknown", 5)),
        st.just(OfferRelay(RelayPlace("192.0.2.1", 6061))),
        st.just(WithdrawRelay()),
        st.just(AskTurn()),
    )


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_broker_gives_an_unproven_address_no_more_than_came_from_there(data: st.DataObject) -> None:
    network = SimulatedNetwork()
    alice, bob = network.add(1), network.add(2)
    alice.ask(registration("alice", card=b"c" * 600))
    keys = [alice.identity.public_key, bob.identity.public_key]
    recorded = [frame for frame, source, target in network.log if target == BROKER]
    proved = {alice.address, bob.address}
    mallory = make_identity(66)
    broker_key = network.broker_identity.public_key
    sessions = [record.session for record in network.core._registry]
    for _ in range(data.draw(st.integers(1, 25))):
        network.now += data.draw(st.floats(0, 20))
        # Mallory's own words, those of a node that is in session, or whatever was heard of others.
        who = data.draw(st.sampled_from([mallory, bob.identity]))
        body = data.draw(from_nodes([*keys, mallory.public_key]))
        payload = encode_from_node(
            data.draw(st.sampled_from([*sessions, bytes(8)])), data.draw(st.integers(0, 2**40)), 1, body
        )
        keep_alive = ShortKeepAlive(data.draw(st.sampled_from([*sessions, bytes(8)])), 2**41, 1, 7)
        frame = data.draw(
            st.one_of(
                st.just(Sealer(who).seal(broker_key, payload)),
                st.just(encode_short_keep_alive(keep_alive, Sealer(who).shared_key(broker_key))[0]),
                st.sampled_from(recorded),
                st.just(encode_key_request(bytes(24))),
                st.binary(max_size=100),
            )
        )
        packed = network.core.answer_known(frame, pack_source(VICTIM), network.now)
        ack = (
            network.core.answer_keep_alives([(frame, pack_source(VICTIM))], network.now)[0]
            if len(frame) == SHORT_KEEP_ALIVE_LENGTH
            else None
        )
        if ack is not None:
            answers = [(ack, VICTIM)]
        elif packed is None:
            answers = [
                (answer, endpoint_of(target))
                for answer, target in network.core.receive(frame, VICTIM, network.now)
            ]
        else:
            seal = network.core.sealer.seal_with
            answers = [
                (seal(shared, key, payload), endpoint_of(unpack_source(target)))
                for payload, key, shared, target in packed
            ]
        for _, target in answers:
            assert target == VICTIM or target in proved
        assert sum(len(answer) for answer, target in answers if target == VICTIM) <= len(frame)


def test_every_message_is_among_those_that_were_tried() -> None:
    tried = {
        Hello,
        Register,
        Lookup,
        Introduce,
        Reply,
        KeepAlive,
        Bye,
        Prove,
        Outcome,
        OfferRelay,
        WithdrawRelay,
        AskTurn,
    }
    # Asks for a SYN-ACK, of 40 octets on the wire, towards addresses that both ends have proved; see test_spoofing.
    assert tried | {Spoof} == set(get_args(FromNode))


async def count_answers(server: Endpoint, datagrams: list[bytes]) -> tuple[int, int]:
    """Octets sent and received by a socket that proves nothing."""
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        await sock.bind(("127.0.0.1", 0))
        sent = received = 0
        for datagram in datagrams:
            sent += await sock.sendto(datagram, server)
        # What comes after this answer has been answered before.
        for marker in range(3):
            await sock.sendto(encode_key_request(bytes([marker + 1]) * 24), server)
            sent += 64
        with trio.move_on_after(1):
            while True:
                received += len(await sock.recv(65536))
        return sent, received


async def test_octets_counted_at_a_real_broker() -> None:
    async with running_broker() as server:
        sealer = Sealer(make_identity(66))
        hellos = [
            sealer.seal(server.key, encode_from_node(bytes(8), number, number, Hello(bytes(8))))
            for number in range(1, 100)
        ]
        datagrams = [*hellos, *[encode_key_request(bytes(24))] * 50, *garbage([hellos[0]], 300)]
        random.Random(1).shuffle(datagrams)
        sent, received = await count_answers(server.address, datagrams)
        assert 0 < received <= sent


@pytest.mark.parametrize("other", [None, "127.0.0.2"])
async def test_octets_counted_at_a_real_stun_server(other: str | None) -> None:
    request = encode_message(binding_request(bytes(12)))
    filled = encode_message(binding_request(bytes(12), Software("x" * 60)))
    padded = encode_message(binding_request(bytes(12), Padding(bytes(500))))
    async with serving(other_address=other) as addresses:
        for datagrams, factor in (
            ([filled] * 50 + [padded] * 50 + garbage([filled, padded], 200), 1.0),
            ([request] * 100, (56 if other else 32) / 20),
        ):
            sent, received = await count_answers(addresses.primary, datagrams)
            assert 0 < received <= factor * sent
