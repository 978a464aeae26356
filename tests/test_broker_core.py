"""The broker against strangers: replays, alterations, amplification, privacy, limits."""

from __future__ import annotations

from collections import Counter

import pytest
from broker_support import BROKER, SEALED, SimulatedNetwork, SimulatedNode, make_identity, registration
from hypothesis import given, settings
from hypothesis import strategies as st

from ntcpsock._address import Endpoint, encode_node_id
from ntcpsock._errors import BadMessage
from ntcpsock._identity import Identity
from ntcpsock._servers.broker_state import BrokerLimits
from ntcpsock._traversal.broker.fields import NO_SESSION
from ntcpsock._traversal.broker.frame import KEY_REPLY_LENGTH, Sealer, encode_key_request
from ntcpsock._traversal.broker.message import (
    BrokerEnvelope,
    Bye,
    Challenge,
    Found,
    FromBroker,
    FromNode,
    Hello,
    Introduce,
    Introduced,
    KeepAlive,
    Lookup,
    Reason,
    Refused,
    Register,
    Registered,
    Reply,
    Unreachable,
    decode_from_broker,
    encode_from_node,
)

STRANGER = Endpoint("192.0.2.66", 666)


def open_answer(identity: Identity, datagram: bytes) -> BrokerEnvelope:
    return decode_from_broker(Sealer(identity).open_untrusted(datagram)[1])


def everything_said(network: SimulatedNetwork) -> list[tuple[bytes, Endpoint]]:
    """A node that says everything there is to say; and what it sent."""
    listener, dialer = network.add(1), network.add(2)
    listener.ask(registration("alice"))
    dialer.lookup("alice")
    dialer.introduce(listener.identity.public_key)
    dialer.machine.reply(Reply(listener.identity.public_key, listener.machine.instance, SEALED))
    dialer.collect()
    network.run(seconds=30)
    for node in (listener, dialer):
        node.machine.close()
        node.collect()
    network.run(seconds=1)
    return [(data, source) for data, source, target in network.log if target == BROKER]


def test_replayed_frames_are_refused_from_the_same_address() -> None:
    network = SimulatedNetwork()
    recorded = everything_said(network)
    before = len(network.core)
    for datagram, source in recorded:
        for answer, target in network.replay(datagram, source):
            # The very first Hello carries no cookie: it may be answered, with nothing but a Challenge.
            assert target == source
            identity = next(node.identity for node in network.nodes.values() if node.address == source)
            assert isinstance(open_answer(identity, answer).body, Challenge)
    assert len(network.core) == before
    assert network.core.dropped["replay"] > 5


def test_replayed_frames_from_elsewhere_change_nothing() -> None:
    network = SimulatedNetwork()
    recorded = everything_said(network)
    before = len(network.core)
    for datagram, source in recorded:
        for answer, target in network.replay(datagram, STRANGER):
            assert target == STRANGER
            assert len(answer) <= len(datagram)
            identity = next(node.identity for node in network.nodes.values() if node.address == source)
            assert isinstance(open_answer(identity, answer).body, Challenge)
    assert len(network.core) == before
    # Its session goes on where it was.
    survivor = network.add(9)
    frames = [data for data, source, _ in network.log if source == survivor.address]
    for frame in frames:
        network.replay(frame, STRANGER)
    assert survivor.lookup("nobody") == Unreachable(Reason.NOT_FOUND)
    assert len(survivor.welcomes) == 1


def test_broker_frames_replayed_to_a_node_are_refused() -> None:
    network = SimulatedNetwork()
    listener, dialer = network.add(1), network.add(2)
    listener.ask(registration("alice"))
    dialer.introduce(listener.identity.public_key)
    network.run(seconds=45)
    events = len(listener.received)
    for datagram, _, target in list(network.log):
        if target == listener.address:
            listener.machine.receive_datagram(datagram, network.now)
    listener.collect()
    assert len(listener.received) == events
    assert listener.machine.connected


def test_a_nodes_own_frames_sent_back_to_it_are_refused() -> None:
    network = SimulatedNetwork()
    node = network.add(1)
    broker_key = network.broker_identity.public_key
    for datagram, source, _ in list(network.log):
        if source == node.address:
            with pytest.raises(BadMessage):
                Sealer(node.identity).open_untrusted(datagram[:1] + broker_key + datagram[33:])


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_altered_frames_are_refused(data: st.DataObject) -> None:
    network = SimulatedNetwork()
    node = network.add(1)
    node.machine.request(Lookup("alice"), network.now)
    (frame,) = node.machine.datagrams_to_send()
    at = data.draw(st.integers(0, len(frame) - 1))
    flip = data.draw(st.integers(1, 255))
    altered = frame[:at] + bytes((frame[at] ^ flip,)) + frame[at + 1 :]
    assert network.replay(altered, node.address) == []
    # The untouched one still works: the altered one used up nothing.
    (answer,) = network.replay(frame, node.address)
    assert open_answer(node.identity, answer[0]).body == Unreachable(Reason.NOT_FOUND)


def test_a_session_is_of_no_use_to_another_key() -> None:
    network = SimulatedNetwork()
    node = network.add(1)
    thief = make_identity(66)
    session = node.welcomes[0].session
    payload = encode_from_node(session, 1000, 7, Register(("alice",), (), 60))
    frame = Sealer(thief).seal(network.core.key, payload)
    ((answer, _),) = network.replay(frame, node.address)
    assert isinstance(open_answer(thief, answer).body, Challenge)
    assert node.lookup("alice") == Unreachable(Reason.NOT_FOUND)


def test_a_cookie_is_of_no_use_at_another_address_or_later() -> None:
    network = SimulatedNetwork()
    identity = make_identity(5)
    sealer = Sealer(identity)

    def hello(counter: int, cookie: bytes, source: Endpoint) -> FromBroker:
        frame = sealer.seal(
            network.core.key, encode_from_node(NO_SESSION, counter, 7, Hello(b"i" * 8, cookie))
        )
        ((answer, target),) = network.replay(frame, source)
        assert target == source
        return open_answer(identity, answer).body

    here, there = Endpoint("192.0.2.1", 1), Endpoint("192.0.2.2", 1)
    challenge = hello(1, b"", here)
    assert isinstance(challenge, Challenge)
    assert isinstance(hello(2, challenge.cookie, there), Challenge)
    assert isinstance(hello(3, challenge.cookie, here._replace(port=2)), Challenge)
    network.now += 61
    assert isinstance(hello(4, challenge.cookie, here), Challenge)
    assert len(network.core) == 0


# Amplification

_BODIES = st.one_of(
    st.builds(Hello, st.binary(min_size=8, max_size=8), st.binary(max_size=16)),
    st.builds(Lookup, st.sampled_from(["a", "alice", "b" * 60])),
    st.builds(Introduce, st.binary(min_size=32, max_size=32), st.just(80), st.just(SEALED)),
    st.builds(Register, st.just(()), st.just(()), st.just(60)),
    st.builds(Reply, st.binary(min_size=32, max_size=32), st.just(bytes(8)), st.just(SEALED)),
    st.just(KeepAlive()),
    st.just(Bye()),
)


@st.composite
def _unproven_datagrams(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(["sealed", "short", "key request", "noise", "cut"]))
    if kind == "noise":
        return draw(st.binary(max_size=200))
    if kind == "key request":
        return encode_key_request(draw(st.binary(min_size=24, max_size=24)))[: draw(st.integers(1, 64))]
    body: FromNode = draw(_BODIES)
    session = draw(st.sampled_from([NO_SESSION, b"x" * 8]))
    counter = draw(st.integers(0, 2**40))
    payload = encode_from_node(session, counter, draw(st.integers(0, 2**32 - 1)), body)
    if kind == "short":
        # What a hostile client would do: leave out the padding.
        payload = payload.rstrip(b"\0")[:-2] + b"\xc4\x00" if payload.endswith(b"\0") else payload
    sender = make_identity(draw(st.integers(1, 3)))
    frame = Sealer(sender).seal(make_identity(999).public_key, payload)
    return frame[: draw(st.integers(1, len(frame)))] if kind == "cut" else frame


@given(st.lists(_unproven_datagrams(), min_size=1, max_size=20))
@settings(max_examples=300, deadline=None)
def test_an_unproven_address_never_gets_more_than_it_sent(datagrams: list[bytes]) -> None:
    network = SimulatedNetwork()
    network.add(1).ask(registration("alice"))
    sent: Counter[Endpoint] = Counter()
    received: Counter[Endpoint] = Counter()
    for datagram in datagrams:
        sent[STRANGER] += len(datagram)
        for answer, target in network.replay(datagram, STRANGER):
            received[target] += len(answer)
            assert len(answer) <= len(datagram)
    assert set(received) <= {STRANGER}
    assert received[STRANGER] <= sent[STRANGER]


def test_challenge_and_key_reply_are_not_larger_than_their_questions() -> None:
    network = SimulatedNetwork()
    ((reply, _),) = network.replay(encode_key_request(bytes(24)), STRANGER)
    assert len(reply) == KEY_REPLY_LENGTH <= 64
    assert network.replay(encode_key_request(bytes(24))[:-1], STRANGER) == []
    frame = Sealer(make_identity(3)).seal(network.core.key, encode_from_node(NO_SESSION, 1, 2**32 - 1, Bye()))
    ((challenge, _),) = network.replay(frame, STRANGER)
    assert len(challenge) <= len(frame)


# Privacy


def answers_to_a_stranger(
    network: SimulatedNetwork, stranger: SimulatedNode, key: bytes, name: str
) -> list[tuple[FromBroker | None, int]]:
    """Everything a stranger can ask about a name and a key: the answers with their sizes on the wire."""
    answers: list[tuple[FromBroker | None, int]] = []
    for body in (
        Lookup(name),
        Introduce(key, 80, SEALED, name),
        Introduce(key, 80, SEALED),
        Introduce(key, 81, SEALED, "open"),
    ):
        answer = stranger.ask(body)
        size = next(len(data) for data, _, target in reversed(network.log) if target == stranger.address)
        answers.append((answer, size))
    return answers


def test_a_private_name_looks_like_one_that_nobody_has() -> None:
    network = SimulatedNetwork()
    friend_id = encode_node_id(make_identity(3).public_key)
    private, friend, other = network.add(1), network.add(3), network.add(4)
    network.add(5).ask(registration("open"))
    other.ask(registration("buddy"))
    assert private.ask(registration("secret", allow=(friend_id, "buddy"))) == Registered()
    key = private.identity.public_key
    # A stranger for each question, so that no counter differs.
    online = answers_to_a_stranger(network, network.add(10), key, "secret")
    nobody = answers_to_a_stranger(network, network.add(11), make_identity(88).public_key, "absent")
    for ally in (friend, other):
        assert ally.lookup("secret") == Found(key)
        assert ally.introduce(key, name="secret") == Introduced(
            key, private.machine.instance, None, private.address.host
        )
    assert [delivery.sender_name for delivery in private.deliveries] == [None, "buddy"]
    private.machine.close()
    private.collect()
    network.run(seconds=1)
    offline = answers_to_a_stranger(network, network.add(12), key, "secret")
    assert friend.lookup("secret") == Found(key)
    assert friend.introduce(key, name="secret") == Unreachable(Reason.OFFLINE)
    network.restart_broker()
    restarted = answers_to_a_stranger(network, network.add(13), key, "secret")
    assert online == nobody == offline == restarted
    assert [answer for answer, _ in online] == [
        Unreachable(Reason.NOT_FOUND),
        Unreachable(Reason.NOT_FOUND),
        Unreachable(Reason.OFFLINE),
        Unreachable(Reason.NOT_FOUND),
    ]


def test_a_private_node_gets_nothing_from_strangers() -> None:
    network = SimulatedNetwork()
    private, stranger = network.add(1), network.add(2)
    private.ask(registration("secret", allow=()))
    answers_to_a_stranger(network, stranger, private.identity.public_key, "secret")
    assert private.deliveries == []


def test_the_name_on_the_list_is_the_one_that_is_shown() -> None:
    network = SimulatedNetwork()
    private, friend = network.add(1), network.add(2)
    friend.ask(registration("aaa", "buddy", "zzz"))
    private.ask(registration("secret", allow=("buddy",)))
    friend.introduce(private.identity.public_key)
    assert [delivery.sender_name for delivery in private.deliveries] == ["buddy"]


def test_an_open_instance_does_not_open_a_private_one() -> None:
    network = SimulatedNetwork()
    opened, private = network.add(1), network.add(2, identity=make_identity(1))
    stranger = network.add(3)
    opened.ask(registration("front", ports=(80,)))
    private.ask(registration("back", ports=(443,), allow=()))
    answer = stranger.introduce(opened.identity.public_key, 443)
    assert isinstance(answer, Introduced)
    assert answer.instance == opened.machine.instance
    assert private.deliveries == []


def test_a_name_that_turns_private_is_hidden_at_once() -> None:
    network = SimulatedNetwork()
    node, stranger = network.add(1), network.add(2)
    node.ask(registration("alice"))
    assert isinstance(stranger.lookup("alice"), Found)
    node.ask(registration("alice", allow=()))
    assert stranger.lookup("alice") == Unreachable(Reason.NOT_FOUND)


# Limits


def test_names_of_one_key_are_bounded() -> None:
    network = SimulatedNetwork()
    node = network.add(1)
    for start in (0, 8):
        assert node.ask(registration(*(f"n{start + i}" for i in range(8)))) == Registered()
    assert node.ask(registration("one-more")) == Refused(Reason.TOO_MANY_NAMES, "one-more")


def test_nodes_are_bounded() -> None:
    network = SimulatedNetwork(limits=BrokerLimits(nodes=2))
    network.add(1)
    network.add(2)
    late = network.add(3, start=False)
    late.machine.start(network.now)
    late.collect()
    network.run(seconds=3)
    assert not late.machine.connected
    assert network.core.dropped["full"] > 0


def test_a_key_that_starts_again_and_again_is_not_locked_out() -> None:
    network = SimulatedNetwork()
    identity = make_identity(1)
    lasting = network.add(1)
    lasting.ask(registration("alice"))
    for number in range(2, 42):
        node = network.add(number, identity=identity)
        node.machine.close()
        node.collect()
    assert len(network.core) <= 16
    assert isinstance(lasting.introduce(identity.public_key), Introduced)
    assert len(lasting.welcomes) == 1


def test_greetings_of_one_source_are_limited_and_others_are_not() -> None:
    network = SimulatedNetwork(limits=BrokerLimits(greeting_rate=1, greeting_burst=10))
    for number in range(50):
        frame = Sealer(make_identity(100 + number)).seal(
            network.core.key, encode_from_node(NO_SESSION, 1, 1, Hello(bytes(8)))
        )
        network.replay(frame, STRANGER._replace(port=number + 1))
    assert network.core.dropped["too many greetings"] == 40
    network.add(1)


def test_frames_of_a_known_key_from_elsewhere_are_limited_as_greetings_are() -> None:
    """Who has heard a node's frames has its key, and could have each of them looked into."""
    network = SimulatedNetwork(limits=BrokerLimits(greeting_rate=1, greeting_burst=10))
    node = network.add(1)
    recorded = [frame for frame, _, target in network.log if target == BROKER][-1]
    for number in range(50):
        network.replay(recorded[:-1] + bytes((number,)), STRANGER)
    assert network.core.dropped["too many greetings"] == 40
    assert node.ask(registration("alice")) == Registered()


def test_requests_of_one_source_are_limited() -> None:
    network = SimulatedNetwork(limits=BrokerLimits(request_rate=1, request_burst=5))
    node = network.add(1)
    for _ in range(20):
        node.machine.request(Lookup("x"), network.now)
    node.collect()
    network.run(seconds=0.06)
    assert network.core.dropped["too many requests"] == 15


def test_drop_reasons_are_few_whatever_arrives() -> None:
    network = SimulatedNetwork(limits=BrokerLimits(greeting_burst=1e9))
    sealer = Sealer(make_identity(7))
    for number in range(2000):
        network.replay(network.chance.randbytes(number % 300), STRANGER)
        network.replay(sealer.seal(network.core.key, network.chance.randbytes(number % 50)), STRANGER)
    assert len(network.core.dropped) < 10
    assert len(network.core) == 0
