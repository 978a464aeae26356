"""Short keep-alives: their octets, who can make them, and what nodes and brokers make of them."""

from __future__ import annotations

import pytest
from broker_support import BROKER, LATENCY, SimulatedNetwork, SimulatedNode, registration
from hypothesis import given
from hypothesis import strategies as st

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._traversal.broker.events import Connected, Disconnected
from ntcpsock._traversal.broker.fields import RelayPlace
from ntcpsock._traversal.broker.keep_alives import KEEP_ALIVE_LEAD
from ntcpsock._traversal.broker.short_keep_alive import (
    SHORT_ACK_LENGTH,
    SHORT_KEEP_ALIVE_LENGTH,
    ShortKeepAlive,
    answer_to,
    decode_short_keep_alive_untrusted,
    encode_short_keep_alive,
    number_of_untrusted,
)

SHARED = bytes(range(32))
REQUEST = ShortKeepAlive(b"session!", 0x0102030405060708, 0x11121314, 0x21222324)
FRAME, ANSWER = encode_short_keep_alive(REQUEST, SHARED)
PAUSE = 20.0 - KEEP_ALIVE_LEAD

numbers = st.integers(0, 2**32 - 1)


def test_the_octets() -> None:
    header = "04 73657373696f6e21 0102030405060708 11121314 21222324"
    # BLAKE2s of these 25 octets, keyed with 00 to 1f, personalised with "ntcpkeep".
    proof = "98bf8f51fe137f9291bd71e92e5317b8b6214bf76bcec967e0c55ff46e062e56"
    assert bytes.fromhex(header + proof[:32]) == FRAME
    assert bytes.fromhex("05 11121314" + proof[32:]) == ANSWER
    assert len(FRAME) == SHORT_KEEP_ALIVE_LENGTH == 41
    # Nobody gets more than he has sent.
    assert len(ANSWER) == SHORT_ACK_LENGTH == 21


@given(
    st.builds(ShortKeepAlive, st.binary(min_size=8, max_size=8), st.integers(0, 2**63 - 1), numbers, numbers)
)
def test_there_and_back(request: ShortKeepAlive) -> None:
    frame, answer = encode_short_keep_alive(request, SHARED)
    assert decode_short_keep_alive_untrusted(frame) == request
    assert answer_to(frame, SHARED) == answer
    assert number_of_untrusted(answer) == request.number


@given(st.integers(0, 8 * SHORT_KEEP_ALIVE_LENGTH - 1))
def test_no_bit_of_it_can_be_another(bit: int) -> None:
    changed = (int.from_bytes(FRAME) ^ 1 << bit).to_bytes(len(FRAME))
    assert answer_to(changed, SHARED) is None


def test_nobody_else_can_make_it_or_answer_it() -> None:
    assert answer_to(FRAME, bytes(32)) is None
    for other in (
        REQUEST._replace(counter=1),
        REQUEST._replace(number=2),
        REQUEST._replace(relays=3),
        REQUEST._replace(session=b"another!"),
    ):
        assert encode_short_keep_alive(other, SHARED)[1][5:] != ANSWER[5:]
    # What was sent is no answer, wherever it is put.
    assert ANSWER[5:] not in FRAME


@given(st.binary(max_size=100))
def test_what_is_none(data: bytes) -> None:
    if len(data) != SHORT_KEEP_ALIVE_LENGTH or data[0] != 4:
        with pytest.raises(BadMessage):
            decode_short_keep_alive_untrusted(data)
    if len(data) != SHORT_ACK_LENGTH or data[0] != 5:
        with pytest.raises(BadMessage):
            number_of_untrusted(data)


class Watched:
    """A network with one node, registered, some time before its next keep-alive."""

    def __init__(self) -> None:
        self.network = SimulatedNetwork()
        self.node: SimulatedNode = self.network.add(1)
        self.node.ask(registration("alice"))
        self.begin = self.network.now
        self.seen = len(self.network.log)

    def pass_keep_alive(self, seconds: float = 1.0) -> list[tuple[int, bool]]:
        """The lengths of what is sent until `seconds` after it, and whether the broker has sent them."""
        self.network.run(seconds=self.begin + PAUSE + seconds - self.network.now)
        return [(len(data), source == BROKER) for data, source, _ in self.network.log[self.seen :]]


def test_a_keep_alive_is_a_short_one() -> None:
    watched = Watched()
    (record,) = watched.network.core._registry
    expires = record.expires
    assert watched.pass_keep_alive() == [(SHORT_KEEP_ALIVE_LENGTH, False), (SHORT_ACK_LENGTH, True)]
    assert record.expires > expires + PAUSE - 1
    assert watched.node.machine.rtt == pytest.approx(2 * LATENCY)
    assert watched.node.machine.connected
    # The next one is as long after the answer.
    watched.begin, watched.seen = watched.begin + PAUSE + 2 * LATENCY, len(watched.network.log)
    assert [length for length, _ in watched.pass_keep_alive()] == [SHORT_KEEP_ALIVE_LENGTH, SHORT_ACK_LENGTH]


@pytest.mark.parametrize("fault", ["restarted", "moved"])
def test_where_the_broker_cannot_answer_it_is_said_in_full(fault: str) -> None:
    """A sealed one brings the Challenge, one time-out later."""
    watched = Watched()
    network, node = watched.network, watched.node
    if fault == "restarted":
        network.restart_broker()
    else:
        network.move(node, Endpoint("203.0.113.99", 4))
    happened = len(node.received)
    sent = watched.pass_keep_alive()
    assert sent[0] == (SHORT_KEEP_ALIVE_LENGTH, False)
    assert sent[1] > (100, False)
    assert sent[2][1]
    kinds = [type(event) for event in node.received[happened:]]
    assert kinds[:2] == [Disconnected, Connected]
    assert node.machine.connected
    assert network.core.dropped == {"keep-alive of no session": 1}
    (record,) = [record for record in network.core._registry if record.source == node.address]
    assert record.registered


def test_a_node_that_doubts_its_way_says_it_in_full_at_once() -> None:
    watched = Watched()
    watched.node.machine.probe(watched.network.now)
    (frame,) = watched.node.machine.datagrams_to_send()
    assert len(frame) > 100


def test_relays_are_told_all_the_same() -> None:
    watched = Watched()
    watched.network.core.relays.static = (RelayPlace("192.0.2.7", 6061),)
    lengths = [length for length, _ in watched.pass_keep_alive()]
    assert lengths[0] == SHORT_KEEP_ALIVE_LENGTH
    assert len(lengths) == 2
    assert lengths[1] > 100
    assert watched.node.machine.relays == watched.network.core.relays.told(watched.network.now)[1]
    # Then the node has that list, and need not be told.
    watched.begin, watched.seen = watched.begin + PAUSE + 2 * LATENCY, len(watched.network.log)
    assert [length for length, _ in watched.pass_keep_alive()] == [SHORT_KEEP_ALIVE_LENGTH, SHORT_ACK_LENGTH]


def test_what_only_looks_like_an_answer_is_none() -> None:
    watched = Watched()
    network, node = watched.network, watched.node
    network.broker_is_up = False
    network.run(seconds=watched.begin + PAUSE + 0.01 - network.now)
    request = decode_short_keep_alive_untrusted(network.log[-1][0])
    for forged in (
        encode_short_keep_alive(request, bytes(32))[1],
        b"\5" + request.number.to_bytes(4) + bytes(16),
        b"\5" + bytes(20),
        b"\5",
    ):
        node.machine.receive_datagram(forged, network.now)
    assert node.machine.dropped == {"answer to nothing": 3, "not an answer to a short keep-alive": 1}


def test_one_that_was_recorded_keeps_nobody_alive() -> None:
    watched = Watched()
    watched.pass_keep_alive()
    network = watched.network
    frame = network.log[watched.seen][0]
    (record,) = network.core._registry
    expires = record.expires
    network.now += 5
    assert network.core.receive(frame, watched.node.address, network.now) == []
    assert network.core.dropped == {"replay": 1}
    # Another's key does not fit, even at the right address with the right session.
    forged, _ = encode_short_keep_alive(
        decode_short_keep_alive_untrusted(frame)._replace(counter=2**40), bytes(32)
    )
    assert network.core.receive(forged, watched.node.address, network.now) == []
    assert network.core.dropped["keep-alive of another key"] == 1
    assert record.expires == expires
