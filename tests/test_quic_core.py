"""What we take for granted of the inside of qh3's core, which it promises to nobody: see `core_window`, `core_clock`.

Where one of these fails after an upgrade, QUIC goes on, at the speed of the core's own CUBIC: 0.4 MB/s in place of
tens, where 1 % gets lost on a round trip of 50 ms.
"""

from __future__ import annotations

import random
from importlib.metadata import version

import pytest
from session_support import certificate

from ntcpsock._session.quic import core_window
from ntcpsock._session.quic.accepting import Acceptance
from ntcpsock._session.quic.configuration import ServerIdentity
from ntcpsock._session.quic.machine import QuicMachine

DELAY = 0.025
UPGRADE = f"qh3 {version('qh3')} is made otherwise than 2.1, whose inner parts `core_window` and `core_clock` rely on: "


class Pair:
    """A client's and a server's machine, and what time it is. lose: the share of datagrams that do not arrive."""

    def __init__(self, size: int = 1200) -> None:
        identity = ServerIdentity(certificate().certificate_pem, certificate().key_pem)
        accepting = Acceptance(identity, size, 1000.0, 2 * DELAY, is_ipv6=False)
        self.now, self.lose, self.rng = 1.0, 0.0, random.Random(7)
        self.client = QuicMachine.client(
            certificate().fingerprint,
            self.now,
            datagram_size=size,
            idle_timeout=1000.0,
            initial_rtt=2 * DELAY,
        )
        for datagram in self.client.datagrams_to_send(self.now, 10):
            accepting.receive(datagram, self.now)
        self.server = accepting.machines[0]

    def turn(self) -> None:
        """One round trip."""
        for source, target in ((self.client, self.server), (self.server, self.client)):
            datagrams = source.datagrams_to_send(self.now, 10_000)
            self.now += DELAY
            for datagram in datagrams:
                if self.rng.random() >= self.lose:
                    target.receive(datagram, len(datagram), self.now)
            for machine in (self.client, self.server):
                timer = machine.next_timer()
                if timer is not None and timer <= self.now:
                    machine.handle_timer(self.now)

    def settle(self) -> None:
        for _ in range(40):
            self.turn()

    @property
    def machines(self) -> tuple[QuicMachine, QuicMachine]:
        return self.client, self.server


def window(machine: QuicMachine) -> int:
    return machine._connection.require_core().congestion_window


def is_released(machine: QuicMachine) -> bool:
    return machine._sending.window.released


@pytest.mark.parametrize("size", [1200, 1400])
def test_the_window_begins_vast_and_datagrams_small(size: int) -> None:
    pair = Pair(size)
    for machine in pair.machines:
        assert window(machine) > core_window.VAST, (
            UPGRADE + "the first window is two datagrams of the first size"
        )
    assert all(len(datagram) <= 1452 for datagram in pair.server.datagrams_to_send(pair.now, 10)), UPGRADE


@pytest.mark.parametrize("size", [1200, 1400])
def test_the_window_of_both_ends_stands_still_soon(size: int) -> None:
    pair = Pair(size)
    pair.settle()
    for machine in pair.machines:
        assert machine.handshake_done
        assert machine.error is None
        assert is_released(machine), UPGRADE + "a loss noticed in the far future stops the window's changes"


def test_the_window_of_a_busy_end_stands_still_soon() -> None:
    """Also where the peer looks after its socket so seldom that it acknowledges a lot at once."""
    pair = Pair()
    on_their_way: list[list[tuple[float, bytes]]] = [[], []]
    buffer = memoryview(bytearray(1 << 20))
    for step in range(2500):
        pair.now += 0.001
        pair.client.send(bytes(20_000))
        for number, (machine, every) in enumerate(zip(pair.machines, (1, 25), strict=True)):
            if step % every:
                continue
            arrived = on_their_way[number]
            while arrived and arrived[0][0] <= pair.now:
                datagram = arrived.pop(0)[1]
                machine.receive(datagram, len(datagram), pair.now)
            timer = machine.next_timer()
            if timer is not None and timer <= pair.now:
                machine.handle_timer(pair.now)
            machine.receive_into(buffer)
            for datagram in machine.datagrams_to_send(pair.now, 40):
                if pair.rng.random() >= 0.01:
                    on_their_way[1 - number].append((pair.now + DELAY, datagram))
    assert is_released(pair.client), UPGRADE + "a loss noticed in the far future stops the window's changes"
    assert window(pair.client) > core_window.VAST >> 20


def test_an_answer_may_come_in_no_time() -> None:
    pair, buffer = Pair(1400), memoryview(bytearray(1 << 20))
    for _ in range(400):
        pair.now += 0.001
        pair.client.send(bytes(50_000))
        for _ in range(3):
            for source, target in (pair.machines, pair.machines[::-1]):
                for datagram in source.datagrams_to_send(pair.now, 1000):
                    if pair.rng.random() >= 0.01:
                        target.receive(datagram, len(datagram), pair.now)
        pair.server.receive_into(buffer)
        for machine in pair.machines:
            timer = machine.next_timer()
            if timer is not None and timer <= pair.now:
                machine.handle_timer(pair.now)
            assert machine.error is None


def test_neither_loss_nor_acknowledgement_moves_the_window() -> None:
    pair = Pair()
    pair.settle()
    before, pair.lose = window(pair.client), 0.05
    for _ in range(100):
        pair.client.send(bytes(20_000))
        pair.turn()
    assert pair.client._connection.require_core().loss_total > 20
    assert window(pair.client) == before, UPGRADE + "what was sent before the last loss changes nothing"


def test_neither_idleness_nor_an_outage_moves_the_window() -> None:
    pair = Pair()
    pair.settle()
    before = window(pair.client)
    for pause in (0.5, 3.0, 60.0):
        pair.now += pause
        pair.client.send(b"x")
        pair.turn()
        assert window(pair.client) == before, UPGRADE + "a window is forgotten after two idle seconds"
    pair.lose = 1.0
    for _ in range(100):
        pair.client.send(b"x")
        pair.turn()
    pair.lose = 0.0
    pair.settle()
    assert pair.client._connection.require_core().bytes_in_flight == 0
    assert window(pair.client) == before, UPGRADE + "persistent congestion is told by the times of sending"


def test_an_outage_leaves_the_round_trip_time_about_as_it_was() -> None:
    pair = Pair()
    pair.settle()
    for _ in range(5):
        pair.client.send(b"x")
        pair.turn()
    pair.lose = 1.0
    for _ in range(100):
        pair.client.send(b"x")
        pair.turn()
    pair.lose = 0.0
    for _ in range(20):
        pair.client.send(b"x")
        pair.turn()
    assert pair.client.round_trip == pytest.approx(2 * DELAY, rel=0.6)


def test_a_client_tries_larger_datagrams() -> None:
    pair = Pair()
    pair.settle()
    assert pair.client.datagram_size == 1452, (
        UPGRADE + "a client that lost its first flight begins with 1200 bytes"
    )
    assert pair.server.datagram_size == 1452
