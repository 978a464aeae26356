"""What an established connection keeps: counted in objects, for bytes are the allocator's business."""

from __future__ import annotations

import gc
from collections import Counter, deque
from collections.abc import Iterator

import pytest
from test_quic_core import Pair

from ntcpsock._session.quic.configuration import DONE
from ntcpsock._session.quic.connection import Connection
from ntcpsock._session.quic.established import Established
from ntcpsock._session.quic.machine import QuicMachine
from ntcpsock._session.quic.sending import MOST_UNASKED

PAIRS = 10
# Objects of Python's in which others can be: of a machine, and of all that it is made of.
MOST_OBJECTS = 30


@pytest.fixture
def no_collection() -> Iterator[None]:
    """What is free is so at once, without one."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def kinds() -> Counter[type]:
    return Counter(type(found) for found in gc.get_objects())


def settled_pair() -> Pair:
    pair = Pair()
    pair.settle()
    return pair


def test_nothing_of_the_handshake_is_kept(no_collection: None) -> None:
    settled_pair()
    before = kinds()
    pairs = [settled_pair() for _ in range(PAIRS)]
    more = kinds() - before
    assert more[QuicMachine] == 2 * PAIRS == 2 * len(pairs)
    names = {kind.__module__ for kind in more if kind.__module__.startswith(("qh3", "cryptography"))}
    assert not names
    assert not more[Connection]


def test_an_idle_machine_is_small(no_collection: None) -> None:
    settled_pair()
    before = kinds()
    pairs = [settled_pair() for _ in range(PAIRS)]
    for pair in pairs:
        pair.client.send(b"question")
        pair.settle()
        assert receive(pair.server) == b"question"
        pair.server.send(b"answer")
        pair.settle()
        assert receive(pair.client) == b"answer"
        assert pair.client.send_datagram(b"word")
        pair.settle()
        assert pair.server.take_datagrams() == [b"word"]
    more = kinds() - before
    assert not more[deque]
    assert more.total() < 2 * PAIRS * MOST_OBJECTS, more


def receive(machine: QuicMachine) -> bytes:
    buffer = bytearray(100)
    return bytes(buffer[: machine.receive_into(memoryview(buffer))])


def test_what_is_left_does_all_that_the_connection_did() -> None:
    pair = settled_pair()
    for machine in pair.machines:
        assert isinstance(machine._connection, Established)
        assert machine._connection.has_limits
    pair.client._connection.require_core().request_key_update()
    data = bytes(200_000)
    sent = pair.client.send(data)
    arrived = 0
    while arrived < sent:
        pair.turn()
        buffer = bytearray(65536)
        arrived += pair.server.receive_into(memoryview(buffer))
    assert pair.server._connection.require_core().receive_key_phase == 1
    assert pair.client.lower_datagram_size()
    pair.client.send(data)
    assert max(map(len, pair.client.datagrams_to_send(pair.now, 100))) <= 1200
    pair.server.close(DONE)
    pair.settle()
    assert pair.client.ended


def test_a_ticket_changes_nothing() -> None:
    pair = settled_pair()
    pair.server._connection.require_core().send_crypto(3, 0, b"\4\0\0\x20" + bytes(32))
    pair.server.ping()
    pair.settle()
    assert pair.client.error is None
    pair.client.send(b"after it")
    pair.settle()
    assert receive(pair.server) == b"after it"


def test_a_client_that_goes_on_with_the_handshake_is_at_fault() -> None:
    pair = settled_pair()
    pair.client._connection.require_core().send_crypto(3, 0, b"\x18\0\0\1\0")
    pair.client.ping()
    pair.settle()
    assert isinstance(pair.server.error, ConnectionAbortedError)
    assert "handshake" in str(pair.server.error)
    assert pair.client.error is not None


def kept_packets(machine: QuicMachine) -> int:
    return len(machine._connection.require_core().outstanding_application_packets)


def test_who_only_hears_signs_of_life_keeps_no_more_with_time() -> None:
    pair = settled_pair()
    sent = 0
    for _ in range(1000):  # hours
        pair.now += 15
        pair.client.ping()
        for _ in range(3):
            pair.turn()
        sent = max(sent, kept_packets(pair.server))
    assert pair.client.error is None
    assert pair.server.error is None
    assert sent <= 2 * MOST_UNASKED


def test_who_only_hears_datagrams_keeps_no_more_with_time() -> None:
    pair = settled_pair()
    most = arrived = 0
    for _ in range(2000):
        for _ in range(4):
            pair.client.send_datagram(bytes(100))
        pair.turn()
        arrived += len(pair.server.take_datagrams())
        most = max(most, kept_packets(pair.server))
    assert arrived > 7000
    assert most <= 4 * MOST_UNASKED
