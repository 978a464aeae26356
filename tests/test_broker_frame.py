"""Frames, messages and the replay window: round trips, bounds, and hostile bytes."""

from __future__ import annotations

import random

import msgspec
import pytest
from broker_support import SEALED, SimulatedNetwork, make_identity, registration
from fuzz_support import check_decoder
from hypothesis import given
from hypothesis import strategies as st

from ntcpsock._address import Endpoint, encode_node_id
from ntcpsock._errors import BadMessage
from ntcpsock._raw.packet import Syn
from ntcpsock._traversal.broker.allow_list import allowed_digest, allows, encode_allow, key_digest
from ntcpsock._traversal.broker.fields import (
    ALLOWED_DIGEST_LENGTH,
    MAX_ALLOWED,
    MAX_CARD,
    MAX_COUNTER,
    MAX_DATAGRAM,
    MAX_SEALED,
    MIN_CLIENT_DATAGRAM,
)
from ntcpsock._traversal.broker.frame import (
    HEADER_LENGTH,
    OVERHEAD,
    Sealer,
    decode_key_reply_untrusted,
    decode_key_request_untrusted,
    encode_key_reply,
    encode_key_request,
    split_untrusted,
)
from ntcpsock._traversal.broker.message import (
    Bye,
    Challenge,
    Deliver,
    Found,
    FromBroker,
    FromNode,
    Hello,
    Introduce,
    Introduced,
    KeepAlive,
    KeepAliveAck,
    Lookup,
    Prove,
    Proved,
    Reason,
    Refused,
    Register,
    Registered,
    Reply,
    Spoof,
    Spoofed,
    SpoofOutcome,
    Unreachable,
    Welcome,
    decode_from_broker,
    decode_from_node,
    encode_from_broker,
    encode_from_node,
)
from ntcpsock._traversal.broker.replay import WINDOW, ReplayWindow

ALICE, BOB, EVE = make_identity(1), make_identity(2), make_identity(3)
KEY = ALICE.public_key

HERE, THERE = Endpoint("192.0.2.1", 23000), Endpoint("198.51.100.1", 24000)

FROM_NODE: list[FromNode] = [
    Hello(b"i" * 8),
    Hello(b"i" * 8, b"c" * 16),
    Register(("alice", "bob.home"), (80, 443), 60, b"card" * 20),
    Register((), (), 600, None, encode_allow(["carol", encode_node_id(KEY)])),
    Lookup("alice"),
    Introduce(KEY, 80, SEALED, "alice"),
    Introduce(KEY, 0, b"s" * MAX_SEALED),
    Reply(KEY, b"i" * 8, SEALED),
    KeepAlive(),
    Bye(),
    Spoof(b"d" * 16, KEY, HERE, THERE, Syn(2**32 - 1, 65535, 1460, 14, True, 2**32 - 1)),
    Prove(),
    Prove(b"c" * 16),
]
FROM_BROKER: list[FromBroker] = [
    Challenge(b"c" * 16),
    Welcome(b"s" * 8, Endpoint("192.0.2.1", 5), (Endpoint("0.0.0.0", 3478), Endpoint("2001:db8::1", 1))),
    Welcome(b"s" * 8, Endpoint("fe80::1%2", 5)),
    Welcome(b"s" * 8, Endpoint("192.0.2.1", 5), (Endpoint("::", 3478),), (Endpoint("2001:db8::1", 6060),)),
    Registered(),
    Refused(Reason.NAME_TAKEN, "alice"),
    Refused(Reason.BUSY),
    Found(KEY),
    Introduced(KEY, b"i" * 8, b"card"),
    Introduced(KEY, b"i" * 8),
    Introduced(KEY, b"i" * 8, None, "192.0.2.1", ("2001:db8::1", "203.0.113.1")),
    Unreachable(Reason.OFFLINE),
    Deliver(KEY, b"i" * 8, SEALED, "alice"),
    Deliver(KEY, b"i" * 8, SEALED),
    Deliver(KEY, b"i" * 8, SEALED, None, "192.0.2.1", ("2001:db8::1",)),
    KeepAliveAck(),
    Welcome(b"s" * 8, Endpoint("192.0.2.1", 5), (), (), True),
    *(Spoofed(outcome) for outcome in SpoofOutcome),
    Proved(),
]

# Frames


@given(st.binary(max_size=1200))
def test_frame_round_trip(payload: bytes) -> None:
    frame = Sealer(ALICE).seal(BOB.public_key, payload)
    assert len(frame) == OVERHEAD + len(payload)
    assert Sealer(BOB).open_untrusted(frame) == (ALICE.public_key, payload)


def test_frame_opens_for_nobody_else() -> None:
    frame = Sealer(ALICE).seal(BOB.public_key, b"hello")
    with pytest.raises(BadMessage):
        Sealer(EVE).open_untrusted(frame)


def test_every_altered_byte_is_noticed() -> None:
    frame = Sealer(ALICE).seal(BOB.public_key, b"hello")
    bob = Sealer(BOB)
    for at in range(len(frame)):
        altered = frame[:at] + bytes((frame[at] ^ 1,)) + frame[at + 1 :]
        with pytest.raises(BadMessage):
            bob.open_untrusted(altered)


def test_a_frame_does_not_open_in_the_other_direction() -> None:
    alice, bob = Sealer(ALICE), Sealer(BOB)
    for sealer, other, identity in ((alice, BOB, ALICE), (bob, ALICE, BOB)):
        frame = sealer.seal(other.public_key, b"offer")
        reflected = frame[:1] + other.public_key + frame[33:]
        with pytest.raises(BadMessage, match="came back"):
            Sealer(identity).open_untrusted(reflected)


def test_a_node_can_write_to_itself() -> None:
    sealer = Sealer(ALICE)
    assert sealer.open_untrusted(sealer.seal(ALICE.public_key, b"x")) == (ALICE.public_key, b"x")


def test_frames_never_repeat() -> None:
    sealer = Sealer(ALICE)
    assert len({sealer.seal(BOB.public_key, b"x") for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "key", [bytes(32), b"\x01" + bytes(31), b"\xff" * 32, b"\x02" + bytes(31), b"short", b""]
)
def test_unusable_keys_are_refused(key: bytes) -> None:
    with pytest.raises(BadMessage):
        Sealer(ALICE).seal(key, b"x")
    with pytest.raises(BadMessage):
        Sealer(ALICE).open_untrusted(b"\x01" + key.ljust(32, b"\0") + bytes(60))


def test_only_proved_keys_enter_the_cache_and_it_is_bounded() -> None:
    sealer = Sealer(ALICE, cache_size=3)
    forged = b"\x01" + BOB.public_key + bytes(60)
    with pytest.raises(BadMessage):
        sealer.open_untrusted(forged)
    assert not sealer.knows(BOB.public_key)
    others = [make_identity(number) for number in range(10, 14)]
    for other in others:
        sealer.open_untrusted(Sealer(other).seal(ALICE.public_key, b""))
        # Used again and again: the least recently used one goes, and that is not this one.
        sealer.open_untrusted(Sealer(others[0]).seal(ALICE.public_key, b""))
    assert [sealer.knows(other.public_key) for other in others] == [True, False, True, True]


def test_split_shows_what_is_claimed() -> None:
    frame = Sealer(ALICE).seal(BOB.public_key, b"x")
    sender, nonce, box = split_untrusted(frame)
    assert (sender, len(nonce), len(box)) == (ALICE.public_key, 24, 17)
    for bad in (b"", frame[: OVERHEAD - 1], b"\x02" + frame[1:], frame[:HEADER_LENGTH]):
        with pytest.raises(BadMessage):
            split_untrusted(bad)


def test_key_request_and_reply() -> None:
    nonce = bytes(range(24))
    assert decode_key_request_untrusted(encode_key_request(nonce)) == nonce
    assert decode_key_reply_untrusted(encode_key_reply(nonce, KEY)) == (nonce, KEY)
    for bad in (
        b"",
        encode_key_request(nonce)[:-1],
        encode_key_request(nonce) + b"\0",
        encode_key_reply(nonce, KEY),
    ):
        with pytest.raises(BadMessage):
            decode_key_request_untrusted(bad)
    for bad in (b"", encode_key_reply(nonce, KEY)[:-1], encode_key_request(nonce)):
        with pytest.raises(BadMessage):
            decode_key_reply_untrusted(bad)


# Messages


@pytest.mark.parametrize("body", FROM_NODE, ids=lambda body: type(body).__name__)
def test_message_from_node_round_trip(body: FromNode) -> None:
    payload = encode_from_node(b"s" * 8, 5, 7, body)
    assert MIN_CLIENT_DATAGRAM <= len(payload) + OVERHEAD <= MAX_DATAGRAM
    envelope = decode_from_node(payload)
    assert (envelope.session, envelope.counter, envelope.request, envelope.body) == (b"s" * 8, 5, 7, body)


@pytest.mark.parametrize("body", FROM_BROKER, ids=lambda body: type(body).__name__)
def test_message_from_broker_round_trip(body: FromBroker) -> None:
    payload = encode_from_broker(b"s" * 8, MAX_COUNTER, 2**32 - 1, body)
    assert len(payload) + OVERHEAD <= MAX_DATAGRAM
    envelope = decode_from_broker(payload)
    assert (envelope.counter, envelope.request, envelope.body) == (MAX_COUNTER, 2**32 - 1, body)


@pytest.mark.parametrize(
    "body",
    [
        Hello(b"i" * 7),
        Hello(b"i" * 8, b"c" * 17),
        Register(("UPPER",), (), 60),
        Register(("-a",), (), 60),
        Register(("a.",), (), 60),
        Register(("a\n",), (), 60),
        Register(("a" * 64,), (), 60),
        Register(("a",) * 9, (), 60),
        Register((), (0,), 60),
        Register((), (65536,), 60),
        Register((), (1,) * 65, 60),
        Register((), (), 59),
        Register((), (), 601),
        Register((), (), 60, b"c" * (MAX_CARD + 1)),
        Register((), (), 60, b""),
        Register((), (), 60, None, bytes(ALLOWED_DIGEST_LENGTH * (MAX_ALLOWED + 1))),
        Lookup(""),
        Lookup(".".join(["a" * 43] * 3)),
        Introduce(b"k" * 31, 80, SEALED),
        Introduce(KEY, -1, SEALED),
        Introduce(KEY, 80, b"s" * (MAX_SEALED + 1)),
        Introduce(KEY, 80, SEALED[1:]),
        Reply(KEY, b"", SEALED),
        Spoof(b"d" * 15, KEY, HERE, THERE, Syn(0, 0)),
        Spoof(b"d" * 16, KEY[1:], HERE, THERE, Syn(0, 0)),
        Spoof(b"d" * 16, KEY, HERE, THERE, Syn(2**32, 0)),
        Spoof(b"d" * 16, KEY, HERE, THERE, Syn(0, 0, 1460, 15)),
    ],
)
def test_fields_of_nodes_are_bounded(body: FromNode) -> None:
    with pytest.raises(BadMessage):
        decode_from_node(encode_from_node(b"s" * 8, 5, 7, body))


def test_a_private_registration_has_no_card_and_whole_digests() -> None:
    good = msgspec.msgpack.encode([b"s" * 8, 1, 1, [2, [], [], 60, None, bytes(16)], b""])
    decode_from_node(good)
    for fields in ([2, [], [], 60, b"card", bytes(16)], [2, [], [], 60, None, bytes(15)]):
        with pytest.raises(BadMessage):
            decode_from_node(msgspec.msgpack.encode([b"s" * 8, 1, 1, fields, b""]))


@pytest.mark.parametrize(
    "raw",
    [
        [b"s" * 8, 1, 1, [33, b"s" * 8, ["not an address", 1], []]],
        [b"s" * 8, 1, 1, [33, b"s" * 8, ["192.0.2.1", 0], []]],
        [b"s" * 8, 1, 1, [33, b"s" * 8, ["192.0.2.1", 65536], []]],
        [b"s" * 8, 1, 1, [33, b"s" * 8, ["fe80::1%" + "x" * 80, 1], []]],
        [b"s" * 8, 1, 1, [35, 99]],
        [b"s" * 8, 1, 1, [41, 99]],
        [b"s" * 8, -1, 1, [34]],
        [b"s" * 8, 2**63, 1, [34]],
        [b"s" * 8, 1, 2**32, [34]],
        [b"s" * 8, 1, 1, [34], "one too many"],
        [b"s" * 8, 1, 1, [7]],
        [b"s" * 8, 1, 1],
        [],
        {},
        None,
    ],
)
def test_hostile_broker_messages_are_refused(raw: object) -> None:
    with pytest.raises(BadMessage):
        decode_from_broker(msgspec.msgpack.encode(raw))


def test_directions_do_not_mix() -> None:
    for body in FROM_NODE:
        with pytest.raises(BadMessage):
            decode_from_broker(encode_from_node(b"s" * 8, 1, 1, body))
    for answer in FROM_BROKER:
        with pytest.raises(BadMessage):
            decode_from_node(encode_from_broker(b"s" * 8, 1, 1, answer))


def test_allow_lists() -> None:
    allow = encode_allow(["bob", encode_node_id(KEY), "bob"])
    assert len(allow) == 2 * ALLOWED_DIGEST_LENGTH
    assert allows(allow, allowed_digest("bob"))
    assert allows(allow, key_digest(KEY))
    assert not allows(allow, allowed_digest("eve"))
    # Only at a digest's own place.
    assert not allows(allow, allow[8:24])


# Replay window


@given(st.lists(st.integers(0, 400), max_size=300))
def test_replay_window_is_a_set_with_a_horizon(counters: list[int]) -> None:
    window, seen, highest = ReplayWindow(), {0}, 0
    for counter in counters:
        expected = counter not in seen and counter > highest - WINDOW
        assert window.accept(counter) is expected
        if expected:
            seen.add(counter)
            highest = max(highest, counter)


def test_replay_window_takes_reordered_frames_once() -> None:
    chance = random.Random(1)
    window = ReplayWindow()
    counters = list(range(1, 2001))
    counters.sort(key=lambda counter: counter + chance.randrange(WINDOW))
    assert all(window.accept(counter) for counter in counters)
    assert not any(window.accept(counter) for counter in counters)


def test_replay_window_stays_small_after_the_largest_jump() -> None:
    window = ReplayWindow()
    assert window.accept(MAX_COUNTER)
    assert window._seen.bit_length() <= WINDOW
    assert not window.accept(MAX_COUNTER)
    assert not window.accept(1)


# Hostile bytes


def _open_and_decode(data: bytes) -> None:
    _, payload = Sealer(BOB).open_untrusted(data)
    encode_from_node(b"s" * 8, 1, 1, decode_from_node(payload).body)


def _decode_node(data: bytes) -> None:
    envelope = decode_from_node(data)
    encode_from_node(envelope.session, envelope.counter, envelope.request, envelope.body)


def _decode_broker(data: bytes) -> None:
    envelope = decode_from_broker(data)
    encode_from_broker(envelope.session, envelope.counter, envelope.request, envelope.body)


NODE_SEEDS = [encode_from_node(b"s" * 8, 5, 7, body) for body in FROM_NODE]
BROKER_SEEDS = [encode_from_broker(b"s" * 8, 5, 7, body) for body in FROM_BROKER]
KEY_SEEDS = [encode_key_request(bytes(24))]


def _fuzz(count: int, seed: int) -> None:
    check_decoder(_decode_node, NODE_SEEDS, count, seed)
    check_decoder(_decode_broker, BROKER_SEEDS, count, seed + 1)
    check_decoder(decode_key_request_untrusted, KEY_SEEDS, count, seed + 2)
    check_decoder(decode_key_reply_untrusted, [encode_key_reply(bytes(24), KEY)], count, seed + 3)
    sealer = Sealer(ALICE)
    check_decoder(
        _open_and_decode, [sealer.seal(BOB.public_key, seed) for seed in NODE_SEEDS], count // 10, 4
    )


def test_decoders_survive_mutations() -> None:
    _fuzz(20_000, 1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_decoders_survive_a_million_mutations() -> None:
    _fuzz(1_000_000, 100)


def test_machine_and_core_survive_mutated_and_rightly_sealed_messages() -> None:
    """The decoder's accepted garbage, in frames with proved keys, must not break what comes after it."""
    network = SimulatedNetwork()
    node, peer = network.add(1), network.add(2)
    node.ask(registration("alice"))
    broker, sender = Sealer(network.broker_identity), Sealer(node.identity)
    chance = random.Random(3)
    for number in range(3000):
        # Right session and counter, random bodies of either direction.
        session = node.welcomes[-1].session if chance.random() < 0.9 else chance.randbytes(8)
        body = chance.choice(FROM_NODE)
        payload = encode_from_node(session, 1000 + number, chance.randrange(2**32), body)
        network.core.receive(sender.seal(network.core.key, payload), node.address, network.now)
        request = chance.choice([0, node.machine._outbox._number, chance.randrange(2**32)])
        answer = encode_from_broker(session, 1000 + number, request, chance.choice(FROM_BROKER))
        node.machine.receive_datagram(broker.seal(node.identity.public_key, answer), network.now)
        node.machine.handle_timer(network.now)
        node.collect()
        network.now += 0.01
    assert peer.machine.connected
