"""Offers, answers and words without end or measure: each costs what its budget says, and nobody else pays."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from world import open_world

from ntcpsock._address import Endpoint
from ntcpsock._errors import NTCPError, TraversalFailed
from ntcpsock._identity import Identity
from ntcpsock._traversal import pending
from ntcpsock._traversal.aim import (
    CHECKS_AT_ONCE,
    CHECKS_PER_SECOND,
    MAX_PROVEN_ENDPOINTS,
    MAX_UNPROVEN_HOSTS,
    Standpoint,
)
from ntcpsock._traversal.broker.driver import Delivery
from ntcpsock._traversal.candidate import is_loopback
from ntcpsock._traversal.follow import MAX_JOINT_ROUNDS
from ntcpsock._traversal.pending import MAX_PENDING_PER_NODE
from ntcpsock._traversal.punch.message import Answer, Candidate, Offer, Signal
from ntcpsock._traversal.signals import MAX_SIGNALS, WITHDRAWN
from ntcpsock._traversal.strategies import STRATEGIES
from ntcpsock._traversal.strategies.base import AttemptContext, Connection
from ntcpsock._traversal.surroundings import Surroundings

PEER = "203.0.113.7"
VICTIM = "203.0.113.99"
KEYS = [Identity.generate().public_key for _ in range(50)]


@pytest.fixture(autouse=True)
def leaks_show_where_they_are_made() -> Iterator[None]:
    """A socket that nobody closed is an error (ResourceWarning) in the test that made it, not in a later one."""
    yield
    gc.collect()


@dataclass
class Made:
    """The attempts that were made, in place of packets; they stay under way."""

    attempts: list[tuple[str, Endpoint]] = field(default_factory=list)
    running: Counter[str] = field(default_factory=Counter)
    most_running: Counter[str] = field(default_factory=Counter)

    async def attempt(self, context: AttemptContext) -> Connection:
        technique = context.planned.technique
        self.attempts.append((technique, context.remote))
        self.running[technique] += 1
        self.most_running[technique] = max(self.most_running[technique], self.running[technique])
        try:
            await trio.sleep_forever()
        finally:
            self.running[technique] -= 1
        raise AssertionError

    def hosts(self) -> Counter[str]:
        return Counter(remote.host for _, remote in self.attempts)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    """Attempts of all techniques, and a node that is not on the broker's machine."""
    recorder = Made()
    for technique in STRATEGIES:
        monkeypatch.setitem(STRATEGIES, technique, recorder.attempt)
    monkeypatch.setattr(
        Surroundings,
        "standpoint",
        Standpoint("192.0.2.1", frozenset({"198.51.100.53"}), frozenset({"10.0.0.2"})),
    )
    return recorder


def delivery(sender: int = 0) -> Delivery:
    return Delivery(KEYS[sender], bytes(8), None, b"", PEER)


def offer(number: int, round_number: int, candidates: list[tuple[str, int]], technique: str = "") -> Offer:
    return Offer(
        number.to_bytes(16, "big"),
        bytes(32),
        8000,
        round_number,
        tuple(Candidate("srflx", "tcp", *place) for place in candidates),
        technique=technique,
    )


async def settle(expected: Callable[[], bool]) -> None:
    """Until what is expected has been made, and what is too much would have been."""
    with trio.fail_after(60):
        while not expected():
            await trio.sleep(0.01)
    await trio.sleep(0.3)


async def test_rounds_without_end_have_one_budget(tmp_path: Path, made: Made) -> None:
    """Sixteen rounds of eight candidates where the peer is seen, eight hosts elsewhere, joint attempts in each."""
    async with open_world(tmp_path) as world, world.node("alice") as alice:
        async with await alice.open_listener(8000), trio.open_nursery() as nursery:
            for round_number in range(1, 17):
                near = [(PEER, 30000 + 8 * round_number + number) for number in range(4)]
                far = [(f"10.9.{round_number}.{number}", 30000) for number in range(4)]
                proposal = offer(1, round_number, near + far, "tcp-predict")
                nursery.start_soon(alice._acceptor.offered, delivery(), proposal)
                await trio.testing.wait_all_tasks_blocked()
            await settle(
                lambda: (
                    made.hosts()[PEER] == MAX_PROVEN_ENDPOINTS + MAX_JOINT_ROUNDS
                    and len(made.hosts()) == 1 + MAX_UNPROVEN_HOSTS
                )
            )
            joint = [remote for technique, remote in made.attempts if technique == "tcp-predict"]
            assert len(joint) == MAX_JOINT_ROUNDS
            assert set(joint) == {Endpoint(PEER, 0)}
            hosts = made.hosts()
            assert hosts.pop(PEER) - len(joint) == MAX_PROVEN_ENDPOINTS
            assert len(hosts) <= MAX_UNPROVEN_HOSTS
            assert set(hosts.values()) == {1}
            assert made.running["tcp-predict"] == 1  # each has ended the one before
            nursery.cancel_scope.cancel()


async def test_a_round_that_comes_when_its_dial_ends_is_too_late(tmp_path: Path, made: Made) -> None:
    """Some of many fall into the one moment in which the dial's nursery takes no task any more."""
    async with open_world(tmp_path) as world, world.node("alice") as alice:
        async with await alice.open_listener(8000), trio.open_nursery() as nursery:
            dials = alice._acceptor.dials.under_way
            for number in range(1, 60):
                nursery.start_soon(alice._acceptor.offered, delivery(), offer(number, 1, [(PEER, 30000)]))
                with trio.fail_after(60):
                    while len(made.attempts) < number:
                        await trio.lowlevel.checkpoint()
                (dial_id,) = dials
                alice._acceptor.heard(delivery(), Signal(dial_id, 1, WITHDRAWN, b""))
                for _ in range(number % 6):
                    await trio.lowlevel.checkpoint()
                await alice._acceptor.offered(delivery(), offer(number, 2, [(PEER, 30001)]))
                with trio.fail_after(60):
                    while dials:
                        await trio.lowlevel.checkpoint()
                assert len(made.attempts) == number
            nursery.cancel_scope.cancel()


async def test_dials_without_end_have_one_budget(tmp_path: Path, made: Made) -> None:
    """A victim, private addresses in bulk, and what may never be dialled, in hundreds of dials of several keys."""
    async with open_world(tmp_path) as world, world.node("alice") as alice:
        async with await alice.open_listener(8000), trio.open_nursery() as nursery:
            begin = trio.current_time()
            for number in range(3 * MAX_PENDING_PER_NODE):
                lies = [
                    (VICTIM, 30000 + number),
                    ("198.51.100.53", 30000),
                    ("10.0.0.2", 30000),
                    ("127.0.0.1", 30000),
                ]
                bulk = [(f"10.{number // 200}.{number % 200}.{low}", 30000) for low in range(4)]
                nursery.start_soon(
                    alice._acceptor.offered, delivery(number % 2), offer(number, 1, lies + bulk)
                )
            await settle(lambda: len(made.attempts) >= CHECKS_AT_ONCE)
            seconds = trio.current_time() - begin
            hosts = made.hosts()
            assert 1 <= hosts[VICTIM] <= 1 + seconds
            assert not hosts.keys() & {"198.51.100.53", "10.0.0.2", "127.0.0.1"}
            assert len(made.attempts) <= CHECKS_AT_ONCE + CHECKS_PER_SECOND * (seconds + 1)
            assert len(alice._acceptor.dials.under_way) == 2 * MAX_PENDING_PER_NODE
            assert alice._acceptor.refused["too many unproven addresses"] > 100
            nursery.cancel_scope.cancel()


async def test_joint_attempts_of_many_nodes_are_bounded(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice:
        async with await alice.open_listener(8000), trio.open_nursery() as nursery:
            for number in range(40):
                proposal = offer(number, 4, [(PEER, 30000)], "tcp-predict")
                nursery.start_soon(alice._acceptor.offered, delivery(number), proposal)
            refused = alice._acceptor.refused
            reason = "joint attempts of this pair, or of all, are under way"
            await settle(lambda: refused.get(reason, 0) >= 32)
            assert refused[reason] == 32
            assert made.most_running["tcp-predict"] == 8
            nursery.cancel_scope.cancel()


async def test_words_without_end_are_dropped(tmp_path: Path, made: Made) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice:
        async with await alice.open_listener(8000), trio.open_nursery() as nursery:
            nursery.start_soon(alice._acceptor.offered, delivery(), offer(1, 4, [], "tcp-predict"))
            await trio.testing.wait_all_tasks_blocked()
            dial_id = (1).to_bytes(16, "big")
            for number in range(10_000):
                alice._acceptor.heard(delivery(), Signal(dial_id, 4, f"word {number}", bytes(512)))
                alice._acceptor.heard(delivery(1), Signal(dial_id, 4, "a stranger's", b""))
            (pending,) = alice._acceptor.dials.under_way.values()
            words = pending.mailbox._words
            assert len(words) == MAX_SIGNALS
            assert (4, "a stranger's") not in words
            nursery.cancel_scope.cancel()


async def test_an_answer_that_lies_is_checked_once(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listener whose card, answer and repeated answers all name victims."""
    monkeypatch.setattr("ntcpsock._traversal.direct.RACE_BUDGET", 1.5)
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as bob:
        async with await alice.open_listener(8000):
            reply = alice.introductions.reply
            sent = 0

            def lying(to: Delivery, answer: Answer) -> None:
                nonlocal sent
                for _ in range(20):
                    sent += 1
                    lies = [Candidate("host", "tcp", VICTIM, 30000 + sent + number) for number in range(7)]
                    lies.append(Candidate("host", "tcp", "198.51.100.53", 30000))
                    reply(to, Answer(answer.dial_id, "accepted", answer.fingerprint, tuple(lies)))

            monkeypatch.setattr(alice.introductions, "reply", lying)
            with pytest.raises(NTCPError) as caught:
                await bob.open_stream("alice", 8000)
            assert isinstance(caught.value, TraversalFailed)
            assert made.hosts()[VICTIM] == 1
            assert not any(is_loopback(host) or host == "198.51.100.53" for host in made.hosts())


async def test_a_crowd_of_offers_is_bounded(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "MAX_PENDING", 10)
    async with open_world(tmp_path) as world, world.node("alice") as alice:
        async with await alice.open_listener(8000), trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(
                    alice._acceptor.offered, delivery(number), offer(number, 1, [(PEER, 30000)])
                )
            await settle(lambda: made.hosts()[PEER] >= 10)
            assert len(alice._acceptor.dials.under_way) == 10
            assert made.hosts() == {PEER: 10}
            nursery.cancel_scope.cancel()
