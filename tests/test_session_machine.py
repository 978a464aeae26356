"""The session machine: two of them joined by bytes, without I/O, and a peer that breaks the rules."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from contextlib import suppress

import pytest
from fuzz_support import check_decoder
from hypothesis import given
from hypothesis import strategies as st

from ntcpsock._errors import BadMessage
from ntcpsock._session.frames import Ack, Bind, Fin, Ping, Pong, Reset, encode_data_header, encode_frame
from ntcpsock._session.machine import (
    ACK_INTERVAL,
    Acknowledged,
    DataReceived,
    EndReceived,
    Event,
    PongReceived,
    ResetReceived,
    Session,
)


def send(session: Session, data: bytes) -> bytes:
    return session.send_data(len(data)) + data


class Pair:
    """Two sessions; `exchange` carries what waits between them until both are quiet."""

    def __init__(self, seed: int = 0) -> None:
        self.left, self.right = Session(), Session()
        self.wire: dict[Session, bytearray] = {self.left: bytearray(), self.right: bytearray()}
        self.events: dict[Session, list[Event]] = {self.left: [], self.right: []}
        self.chance = random.Random(seed)

    def put(self, sender: Session, data: bytes) -> None:
        self.wire[sender] += data

    def exchange(self) -> None:
        while True:
            for sender, receiver in ((self.left, self.right), (self.right, self.left)):
                self.wire[sender] += sender.control_to_send()
                piece = self.chance.randint(1, max(1, len(self.wire[sender])))
                data = bytes(self.wire[sender][:piece])
                del self.wire[sender][:piece]
                self.events[receiver] += receiver.receive_data(data)
            quiet = not self.left.has_control and not self.right.has_control
            if quiet and not any(self.wire.values()):
                return

    def received(self, session: Session) -> bytes:
        return b"".join(event.data for event in self.events[session] if isinstance(event, DataReceived))


@given(
    st.lists(st.tuples(st.booleans(), st.binary(min_size=1, max_size=200)), max_size=30),
    st.integers(0, 2**32),
)
def test_both_directions_at_any_split(sends: list[tuple[bool, bytes]], seed: int) -> None:
    pair = Pair(seed)
    expected = {pair.left: b"", pair.right: b""}
    for is_left, data in sends:
        sender, receiver = (pair.left, pair.right) if is_left else (pair.right, pair.left)
        pair.put(sender, send(sender, data))
        expected[receiver] += data
    for session in (pair.left, pair.right):
        pair.put(session, session.send_eof())
    pair.exchange()
    for session in (pair.left, pair.right):
        assert pair.received(session) == expected[session]
        assert session.eof_received
        assert session.eof_acknowledged
        assert session.acknowledged == session.sent
        assert [event for event in pair.events[session] if isinstance(event, EndReceived)] == [EndReceived()]


def test_acknowledges_every_interval_and_fin() -> None:
    pair = Pair()
    pair.put(pair.left, send(pair.left, bytes(ACK_INTERVAL - 1)))
    pair.exchange()
    assert pair.left.acknowledged == 0
    pair.put(pair.left, send(pair.left, b"x"))
    pair.exchange()
    assert pair.left.acknowledged == ACK_INTERVAL
    assert pair.events[pair.left] == [Acknowledged(ACK_INTERVAL, False)]
    pair.put(pair.left, send(pair.left, b"y"))
    pair.put(pair.left, pair.left.send_eof())
    pair.exchange()
    assert pair.events[pair.left][1:] == [Acknowledged(ACK_INTERVAL + 1, True)]


def test_payload_past_the_machine_counts_too() -> None:
    session = Session()
    session.receive_data(encode_data_header(0, ACK_INTERVAL))
    assert session.payload_remaining == ACK_INTERVAL
    session.skip_payload(ACK_INTERVAL)
    assert session.received == ACK_INTERVAL
    assert session.control_to_send() == encode_frame(Ack(ACK_INTERVAL))


def test_half_close() -> None:
    pair = Pair()
    pair.put(pair.left, pair.left.send_eof())
    pair.exchange()
    assert pair.right.receiving_ended
    pair.put(pair.right, send(pair.right, b"still here"))
    pair.exchange()
    assert pair.received(pair.left) == b"still here"
    with pytest.raises(RuntimeError, match="after FIN"):
        pair.left.send_data(1)
    with pytest.raises(RuntimeError, match="after FIN"):
        pair.left.send_eof()


def test_reset_ends_both_directions() -> None:
    pair = Pair()
    pair.put(pair.left, send(pair.left, b"before") + pair.left.reset(7))
    pair.exchange()
    assert pair.events[pair.right] == [DataReceived(b"before"), ResetReceived(7)] or (
        pair.received(pair.right) == b"before" and pair.events[pair.right][-1] == ResetReceived(7)
    )
    for session in (pair.left, pair.right):
        assert session.is_reset
        assert session.receiving_ended
        assert session.control_to_send() == b""
        for action in (lambda s=session: s.send_data(1), session.send_eof, session.reset):
            with pytest.raises(RuntimeError, match="reset"):
                action()
        with pytest.raises(RuntimeError, match="reset"):
            session.ping(1)


def test_what_crosses_our_reset_is_ignored() -> None:
    session = Session()
    session.reset()
    crossing = encode_data_header(0, 5) + b"12345" + encode_frame(Fin(5)) + encode_frame(Reset(0))
    assert session.receive_data(crossing) == []


def test_ping_and_pong() -> None:
    pair = Pair()
    pair.put(pair.left, pair.left.ping(42))
    pair.exchange()
    assert pair.events[pair.left] == [PongReceived(42)]
    pair.left.receive_data(encode_frame(Pong(42)))  # a second answer says nothing
    assert pair.events[pair.left] == [PongReceived(42)]


def test_a_flood_of_pings_keeps_memory_bounded() -> None:
    session = Session()
    session.receive_data(b"".join(encode_frame(Ping(nonce)) for nonce in range(10_000)))
    assert session.control_to_send() == b"".join(encode_frame(Pong(nonce)) for nonce in range(9992, 10_000))
    for nonce in range(100):
        session.ping(nonce)
    assert session.receive_data(encode_frame(Pong(1))) == []
    assert session.receive_data(encode_frame(Pong(99))) == [PongReceived(99)]


FIN_RECEIVED = encode_frame(Fin(0))


@pytest.mark.parametrize(
    ("wire", "text"),
    [
        (encode_data_header(1, 1), "DATA at offset 1, expected 0"),
        (encode_data_header(0, 1) + b"x" + encode_data_header(0, 1), "DATA at offset 0, expected 1"),
        (encode_data_header(0, 1) + b"x" + encode_data_header(2, 1), "DATA at offset 2, expected 1"),
        (encode_frame(Fin(1)), "FIN at offset 1"),
        (encode_data_header(0, 2) + b"xy" + encode_frame(Fin(1)), "FIN at offset 1"),
        (FIN_RECEIVED + FIN_RECEIVED, "second FIN"),
        (FIN_RECEIVED + encode_data_header(0, 1), "DATA after FIN"),
        (encode_frame(Ack(11)), "ACK of 11, sent 10"),
        (encode_frame(Ack(5)) + encode_frame(Ack(4)), "went back"),
        (encode_frame(Reset(0)) + FIN_RECEIVED, "after RESET"),
        (encode_frame(Reset(0)) + encode_frame(Reset(0)), "after RESET"),
        (encode_frame(Bind(bytes(16), bytes(32))), "payload"),
    ],
)
def test_a_peer_that_breaks_the_rules(wire: bytes, text: str) -> None:
    session = Session()
    session.send_data(10)
    with pytest.raises(BadMessage, match=text):
        session.receive_data(wire)


def test_an_acknowledged_fin_is_not_taken_back() -> None:
    session = Session()
    session.send_data(3)
    with pytest.raises(BadMessage, match="ACK of 4"):
        session.receive_data(encode_frame(Ack(4)))
    session = Session()
    session.send_data(3)
    session.send_eof()
    assert session.receive_data(encode_frame(Ack(4))) == [Acknowledged(3, True)]
    assert session.receive_data(encode_frame(Ack(4))) == [Acknowledged(3, True)]
    with pytest.raises(BadMessage, match="went back"):
        session.receive_data(encode_frame(Ack(3)))


def test_the_limits_of_one_frame() -> None:
    session = Session()
    for length in (0, 262_145):
        with pytest.raises(ValueError, match="DATA frame"):
            session.send_data(length)
    assert session.sent == 0


def a_whole_conversation() -> bytes:
    peer = Session()
    parts = [send(peer, b"one"), peer.ping(7), send(peer, bytes(300)), peer.send_eof()]
    return b"".join(parts)


def run_machine(data: bytes) -> None:
    session = Session()
    session.send_data(100)
    session.ping(7)
    for start in range(0, len(data), 37):
        session.receive_data(data[start : start + 37])
        session.control_to_send()
    assert 0 <= session.acknowledged <= session.sent == 100


SEEDS: list[Callable[[], bytes]] = [
    a_whole_conversation,
    lambda: encode_frame(Ack(10)) + encode_frame(Ack(100)) + encode_frame(Pong(7)) + FIN_RECEIVED,
    lambda: encode_data_header(0, 4) + b"data" + encode_frame(Reset(3)),
]


def test_damaged_conversations() -> None:
    check_decoder(run_machine, [seed() for seed in SEEDS], 20_000, 3)


@pytest.mark.slow
def test_damaged_conversations_a_million() -> None:
    check_decoder(run_machine, [seed() for seed in SEEDS], 1_000_000, 4)


HEADERS = st.one_of(
    st.binary(min_size=13, max_size=13),
    st.builds(
        lambda kind, value, length: struct.pack("!BQI", kind, value, length),
        st.sampled_from([*range(8), 0x10]),
        st.sampled_from([0, 4, 5, 6, 2**63 - 1, 2**63, 2**64 - 1]),
        st.sampled_from([0, 1, 48, 262_144, 262_145, 2**32 - 1]),
    ),
)


@given(HEADERS, st.sampled_from(["open", "after FIN", "after our reset"]))
def test_the_short_way_takes_what_the_long_way_takes(header: bytes, state: str) -> None:
    """A whole header: either both ways take it for the next DATA frame, or the short one leaves it alone."""

    def session() -> Session:
        one = Session()
        one.receive_data(send(Session(), b"begin"))
        if state == "after FIN":
            one.receive_data(encode_frame(Fin(5)))
        elif state == "after our reset":
            one.reset()
        return one

    short, long = session(), session()
    taken = short.receive_data_header(memoryview(header))
    is_data = False
    with suppress(BadMessage):
        is_data = long.receive_header_part(header) is None and long.payload_remaining > 0
    assert taken == (is_data and state == "open")
    assert short.payload_remaining == (long.payload_remaining if taken else 0)
    assert short.header_missing == 13


def test_the_short_way_is_closed_after_a_bad_message() -> None:
    session = Session()
    with pytest.raises(BadMessage):
        session.receive_header_part(b"\xff" * 13)
    assert not session.receive_data_header(memoryview(encode_data_header(0, 1)))
