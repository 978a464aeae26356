"""Two machines that give up their cores when idle, over a network without mercy: nothing is lost or doubled."""

from __future__ import annotations

import heapq
import random

import pytest
from session_support import certificate

from ntcpsock._session.quic.accepting import Acceptance
from ntcpsock._session.quic.configuration import DONE, ServerIdentity
from ntcpsock._session.quic.dormancy import REST_AFTER, WORD_LENGTH
from ntcpsock._session.quic.machine import QuicMachine

DELAY = 0.02
KEEP_ALIVE = 15.0


class World:
    """A client's and a server's machine, and a network that loses, doubles and delays. Everything in virtual time."""

    def __init__(
        self,
        seed: int = 1,
        *,
        loss: float = 0.0,
        copies: float = 0.0,
        jitter: float = 0.0,
        size: int = 1200,
    ) -> None:
        self.rng = random.Random(seed)
        self.loss, self.copies, self.jitter = loss, copies, jitter
        self.now = 100.0
        self._count = 0
        self._way: list[tuple[float, int, int, bytes]] = []  # when, number, to which machine
        self.sent: list[list[bytes]] = [[], []]  # datagrams, by sender
        self.written = [bytearray(), bytearray()]
        self.read = [bytearray(), bytearray()]
        self.said = [self.now, self.now]
        identity = ServerIdentity(certificate().certificate_pem, certificate().key_pem)
        self._accepting = Acceptance(identity, size, 60.0, 2 * DELAY, is_ipv6=False)
        client = QuicMachine.client(
            certificate().fingerprint, self.now, datagram_size=size, idle_timeout=60.0, initial_rtt=2 * DELAY
        )
        for datagram in client.datagrams_to_send(self.now, 10):
            self._accepting.receive(datagram, self.now)
        self.machines = (client, self._accepting.machines[0])
        weather = self.loss, self.copies, self.jitter
        self.loss = self.copies = self.jitter = 0.0
        self.write(0, b"first")
        self.run(2.0)
        self.write(1, b"second")
        self.run(2.0)
        self.loss, self.copies, self.jitter = weather

    @property
    def client(self) -> QuicMachine:
        return self.machines[0]

    @property
    def server(self) -> QuicMachine:
        return self.machines[1]

    def cores(self) -> list[bool]:
        return [machine._connection.core is not None for machine in self.machines]

    def write(self, number: int, data: bytes) -> None:
        taken = self.machines[number].send(data)
        self.written[number] += data[:taken]
        self.flush(number)

    def flush(self, number: int) -> None:
        for datagram in self.machines[number].datagrams_to_send(self.now, 1000):
            self.sent[number].append(datagram)
            if self.rng.random() < self.loss:
                continue
            for _ in range(2 if self.rng.random() < self.copies else 1):
                self._count += 1
                at = self.now + DELAY + self.jitter * self.rng.random()
                heapq.heappush(self._way, (at, self._count, 1 - number, datagram))

    def step(self, until: float) -> None:
        """To the next thing that happens."""
        timers = [machine.next_timer() for machine in self.machines]
        alive = [said + KEEP_ALIVE for said in self.said]
        soonest = [until, *alive, *(timer for timer in timers if timer is not None)]
        if self._way:
            soonest.append(self._way[0][0])
        self.now = max(self.now + 1e-6, min(soonest))
        while self._way and self._way[0][0] <= self.now:
            _, _, number, datagram = heapq.heappop(self._way)
            self.machines[number].receive(datagram, len(datagram), self.now)
        for number, machine in enumerate(self.machines):
            timer = machine.next_timer()
            if timer is not None and timer <= self.now:
                machine.handle_timer(self.now)
            if self.now >= self.said[number] + KEEP_ALIVE:
                self.said[number] = self.now
                if machine.handshake_done and not machine.closed:
                    machine.say_alive()
            self.take(number)
            self.flush(number)

    def take(self, number: int) -> None:
        buffer = memoryview(bytearray(1 << 16))
        while count := self.machines[number].receive_into(buffer):
            self.read[number] += buffer[:count]

    def run(self, seconds: float) -> None:
        until, started, steps = self.now + seconds, self.now, 0
        while self.now < until:
            self.step(until)
            steps += 1
            if self.now > started + 0.05:
                started, steps = self.now, 0
            assert steps < 3000, "a timer is due without end"

    def is_intact(self) -> bool:
        return self.read[1] == self.written[0] and self.read[0] == self.written[1]


def test_both_ends_give_up_their_cores_when_idle() -> None:
    world = World()
    assert world.cores() == [True, True]
    world.run(2 * REST_AFTER + 1)
    assert world.cores() == [False, False]
    assert world.client.error is None
    assert world.server.error is None


def test_idle_ends_send_one_small_word_each_keep_alive() -> None:
    world = World()
    world.run(2 * REST_AFTER + 1)
    before = [len(sent) for sent in world.sent]
    world.run(10 * KEEP_ALIVE)
    for sent, count in zip(world.sent, before, strict=True):
        assert [len(datagram) for datagram in sent[count:]] == [WORD_LENGTH] * 10
    assert world.cores() == [False, False]


@pytest.mark.parametrize("first", [0, 1])
def test_whoever_speaks_is_heard_without_a_round_trip_more(first: int) -> None:
    world = World()
    world.run(2 * REST_AFTER + 1)
    world.write(first, b"after a while")
    world.run(DELAY + 0.001)
    assert world.read[1 - first].endswith(b"after a while")
    world.write(1 - first, b"yes")
    world.run(DELAY + 0.001)
    assert world.is_intact()
    world.run(2 * REST_AFTER + 1)
    assert world.cores() == [False, False]


def test_both_may_speak_at_the_same_moment() -> None:
    world = World()
    world.run(2 * REST_AFTER + 1)
    for _ in range(3):
        world.write(0, b"a" * 3000)
        world.write(1, b"b" * 3000)
        world.run(1.0)
        assert world.is_intact()
        world.run(2 * REST_AFTER + 1)
        assert world.cores() == [False, False]


@pytest.mark.parametrize("closer", [0, 1])
def test_the_end_reaches_one_who_is_dormant(closer: int) -> None:
    world = World()
    world.run(2 * REST_AFTER + 1)
    world.machines[closer].close(DONE)
    world.flush(closer)
    world.run(1.0)
    assert world.machines[1 - closer].ended
    assert all(machine.is_over for machine in world.machines)


def test_a_connection_in_use_keeps_its_cores() -> None:
    world = World()
    for _ in range(20):
        world.write(0, b"x")
        world.run(REST_AFTER / 2)
        assert world.cores() == [True, True]


def test_nobody_heard_for_the_idle_time_ends_it() -> None:
    world = World()
    world.run(2 * REST_AFTER + 1)
    world.loss = 1.0
    world.run(61.0)
    for machine in world.machines:
        assert isinstance(machine.error, TimeoutError)
        assert machine.is_over


def test_datagrams_wake_it_too() -> None:
    world = World()
    world.run(2 * REST_AFTER + 1)
    assert world.server.send_datagram(b"ding")
    world.flush(1)
    world.run(DELAY + 0.001)
    assert world.client.take_datagrams() == [b"ding"]


@pytest.mark.parametrize("first", [0, 1])
def test_large_datagrams_are_not_too_large_because_the_first_answer_is_late(first: int) -> None:
    world = World(size=1400)
    world.run(2 * REST_AFTER + 1)
    assert world.cores() == [False, False]
    source, target = world.machines[first], world.machines[1 - first]
    world.loss = 1.0
    for number in range(60):
        if number == 40:
            world.loss = 0.0
        source.send_datagram(bytes(source.max_datagram_payload))
        world.flush(first)
        world.run(0.1)
    assert source.error is None
    assert source.max_datagram_payload > 1300
    assert len(target.take_datagrams()) >= 19


def test_a_ping_is_answered_by_one_who_is_dormant() -> None:
    world = World()
    world.run(2 * REST_AFTER + 1)
    ping = world.client.ping(expect=True)
    world.flush(0)
    world.run(1.0)
    assert world.client.is_answered(ping)


def dormant_world() -> World:
    world = World()
    world.run(2 * REST_AFTER + 1)
    assert world.cores() == [False, False]
    return world


def test_what_strangers_send_wakes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    world = dormant_world()
    cores: list[object] = []
    monkeypatch.setattr("ntcpsock._session.quic.generations.QuicConnectionCore", cores.append)
    word = world.sent[0][-1]
    assert len(word) == WORD_LENGTH
    for data in (b"", b"\x40", bytes(WORD_LENGTH), bytes(1200), b"\x40" * 1200, word[:-1], word + b"\0"):
        assert world.server.receive(data, len(data) or 1, world.now) == 0
    for place in range(WORD_LENGTH):
        forged = bytearray(word)
        forged[place] ^= 1
        assert world.server.receive(bytes(forged), len(forged), world.now) == 0
    assert world.cores() == [False, False]
    assert not cores


def test_a_copy_of_a_sign_of_life_is_none() -> None:
    world = dormant_world()
    world.client.say_alive()
    (word,) = world.client.datagrams_to_send(world.now, 10)
    assert world.server.receive(word, len(word), world.now) == 1
    assert world.server.receive(word, len(word), world.now) == 0
    world.now += 59.0
    world.server.receive(word, len(word), world.now)
    world.server.handle_timer(world.now + 2.0)
    assert isinstance(world.server.error, TimeoutError)


def test_a_forged_packet_of_the_next_core_makes_none_that_stays() -> None:
    world = dormant_world()
    world.client.send(b"hello")
    (packet,) = world.client.datagrams_to_send(world.now, 10)
    forged = packet[:-1] + bytes([packet[-1] ^ 1])
    assert world.server.receive(forged, len(forged), world.now) == 0
    assert world.server.is_dormant
    assert world.server.error is None
    assert world.server.receive(packet, len(packet), world.now) == 1
    assert not world.server.is_dormant


def test_what_was_sent_before_is_no_use_after() -> None:
    """Whoever repeats everything that was ever sent to either end changes nothing."""
    world = World(3)
    for _ in range(3):
        world.run(2 * REST_AFTER + 1)
        world.write(0, b"x" * 3000)
        world.run(1.0)
        world.write(1, b"y" * 3000)
        world.run(1.0)
    world.run(2 * REST_AFTER + 1)
    for number in range(2):
        for datagram in list(world.sent[1 - number]):
            assert world.machines[number].receive(datagram, len(datagram), world.now) == 0
    assert world.cores() == [False, False]
    world.run(1.0)
    world.write(0, b"still there")
    world.run(1.0)
    assert world.is_intact()


def test_no_generation_shares_a_key_with_another() -> None:
    world = World()
    seen: set[bytes] = set()
    for _ in range(5):
        for machine in world.machines:
            assert machine._dormancy is not None
            secrets = machine._dormancy.secrets
            assert secrets.sent != secrets.received
        assert world.client._dormancy is not None
        assert world.server._dormancy is not None
        ours, theirs = world.client._dormancy.secrets, world.server._dormancy.secrets
        assert (ours.sent, ours.received) == (theirs.received, theirs.sent)
        assert not {ours.sent, ours.received} & seen
        seen |= {ours.sent, ours.received}
        world.run(2 * REST_AFTER + 1)
        world.write(0, b"on")
        world.run(1.0)


def test_who_is_asked_and_has_something_to_say_says_no() -> None:
    world = World()
    while world.client._dormancy is not None and world.client._dormancy.state == "awake":
        world.step(world.now + 1.0)
    world.server.send(b"not yet")  # before the question has arrived
    world.written[1] += b"not yet"
    world.run(1.0)
    assert world.cores() == [True, True]
    assert world.is_intact()


def test_what_the_client_says_while_it_waits_for_an_answer_comes_behind() -> None:
    world = World()
    while world.client._dormancy is not None and world.client._dormancy.state == "awake":
        world.step(world.now + 1.0)
    world.write(0, b"in between")
    world.run(1.0)
    assert world.is_intact()


@pytest.mark.parametrize("seed", range(60))
def test_nothing_is_lost_whatever_the_network_does(seed: int) -> None:
    rng = random.Random(seed)
    world = World(
        seed, loss=rng.choice((0, 0.1, 0.3)), copies=rng.choice((0, 0.2)), jitter=rng.choice((0, 0.1, 1.0))
    )
    for _ in range(40):
        for number in range(2):
            if rng.random() < 0.5:
                world.write(number, rng.randbytes(rng.choice((1, 100, 5000, 40_000))))
        # Near the moments at which something is agreed, and all between.
        world.run(rng.choice((0.01, 0.1, 1.0, REST_AFTER, 2 * REST_AFTER, REST_AFTER * (0.9 + rng.random()))))
        for machine in world.machines:
            assert machine.error is None
    world.loss = world.jitter = 0.0
    world.run(20.0)
    assert world.is_intact()
    world.run(3 * REST_AFTER)
    assert world.cores() == [False, False]
