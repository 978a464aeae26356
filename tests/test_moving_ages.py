"""Paths that a NAT drops at an age, used or not: streams learn it from those that died, and have another one before.

In virtual time: the streams and their machinery are the real ones, the network between is a pipe that goes silent.
"""

from __future__ import annotations

import errno
import math
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing
from session_support import MemoryCarrier, Pipe
from test_session_lost_carrier import moving_stream

from ntcpsock._path_ages import DEATHS_NEEDED, MOVE_AT, PathAges, PathTransport
from ntcpsock._report import PathInfo
from ntcpsock._session.stream import NTCPStream
from ntcpsock._traversal.broker.driver import Delivery
from ntcpsock._traversal.dial import Dial
from ntcpsock._traversal.moving.ages import (
    GIVE_UP_AT,
    LONGEST_SEARCH,
    LONGEST_SILENCE,
    RETRY_AFTER,
    PathAge,
)
from ntcpsock._traversal.moving.climbing import Seekers
from ntcpsock._traversal.moving.dialler import DialledStream
from ntcpsock._traversal.moving.redial import LOST, SILENT
from ntcpsock._traversal.moving.streams import MovingStreams
from ntcpsock._traversal.pending import PendingDial

KEY = b"k" * 32
#: Seconds that a dial takes, and after which the NAT drops whatever it has.
DIAL, LIFETIME = 0.4, 60.0
#: The longest pause of a stream that lost its path: noticing it (`liveness`), and a dial.
FREEZE = 3.0 + DIAL


class Memory:
    """The real memory of ages, on trio's clock."""

    def __init__(self) -> None:
        self.ages = PathAges(None, lambda: 1.8e9 + trio.current_time())
        self.deaths: list[float] = []
        self.survived: list[float] = []

    def path_died(self, transport: PathTransport, key: bytes, age: float) -> None:
        self.deaths.append(age)
        self.ages.note_death("home", transport, key, age)

    def path_survived(self, transport: PathTransport, key: bytes, age: float) -> None:
        self.survived.append(age)
        self.ages.note_survival("home", transport, key, age)

    def expected_lifetime(self, transport: PathTransport, key: bytes) -> float | None:
        return self.ages.expected_lifetime("home", transport, key)

    def disturbed(self) -> None:
        self.ages.network_changed()


class MappedCarrier(MemoryCarrier):
    """Goes silent, both ways, at `ends`."""

    ends = math.inf
    lost = 0

    @property
    def is_dropped(self) -> bool:
        return trio.current_time() >= self.ends

    def try_send(self, data: bytes | memoryview) -> int:
        if self.is_dropped and not self.closed:
            self.lost += len(data)
            return len(data)
        return super().try_send(data)

    def unacknowledged(self) -> int | None:
        return self.lost

    def close(self, *, abort: bool = False) -> None:
        if self.is_dropped and not self.closed:
            self.closed = True
            self.interrupt()
        else:
            super().close(abort=abort)


class Stream(DialledStream):
    """Its dials are pipes through the network of the node."""

    async def _move(
        self, reason: str, useless: frozenset[str] = frozenset(), within: float = math.inf
    ) -> None:
        network = cast(Network, self._dialler)
        assert within > DIAL
        await trio.sleep(DIAL)
        network.dials += 1
        if not network.is_up:
            raise TimeoutError(errno.ETIMEDOUT, "nobody answers")
        carrier, path = network.connect(self._resuming.session_id)
        await self._exchange(carrier, carrier_id(network.dials), path, reason, trio.current_time())


def carrier_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


class Network:
    """The dialling node, whose NAT drops mappings, and the listening one behind it."""

    linger, closing, prefer = 60.0, False, "tcp"
    techniques = ("public", "relay")

    def __init__(self, nursery: trio.Nursery, lifetime: float = LIFETIME) -> None:
        self.nursery = nursery
        self.lifetime = lifetime
        self.surroundings = Memory()
        self.introductions = SimpleNamespace(tell_dialer=self._tell_dialer, tell=lambda *_: None)
        self.network = SimpleNamespace(suspect=lambda: None)
        self.is_up = self.hidden = True
        self.dials = 0
        self.peer = "192.0.2.2"
        self.dialling_end = MovingStreams(cast(Any, self))
        self.listening_end = MovingStreams(cast(Any, self))
        for task in (self.dialling_end.watch, self.dialling_end.mind_ages, self.listening_end.watch):
            nursery.start_soon(task)

    async def _tell_dialer(self, *_: object) -> None:
        """What the listener notices: the dialler has noticed as well."""
        await trio.lowlevel.checkpoint()

    async def wait_network_changed(self) -> None:
        await trio.sleep_forever()

    def carriers(self) -> tuple[MappedCarrier, MappedCarrier]:
        one, other = Pipe(65536), Pipe(65536)
        pair = MappedCarrier(one, other), MappedCarrier(other, one)
        for carrier in pair:
            carrier.ends = trio.current_time() + self.lifetime
        return pair

    def connect(self, session_id: bytes) -> tuple[MappedCarrier, PathInfo]:
        here, there = self.carriers()
        arrived = self.listening_end.accepted_streams.arrived
        self.nursery.start_soon(arrived, there, carrier_id(self.dials), KEY, "public")
        return here, PathInfo("tcp", "public", ("192.0.2.1", 1), (self.peer, 2))

    def open(self) -> tuple[NTCPStream, NTCPStream]:
        dialled, accepted = map(moving_stream, self.carriers())
        dial = Dial(KEY, "peer", 80, since=trio.current_time())
        dial.observed_host = self.peer
        book = self.dialling_end.dialled_streams._streams
        book[dial.dial_id] = Stream(
            cast(Any, self), dialled, dial, cast(Any, book), Seekers(), trio.CapacityLimiter(1)
        )
        self.dialling_end._some.set()
        self.dialling_end._some_dialled.set()
        offer = SimpleNamespace(dial_id=dial.dial_id, token=dial.token)
        delivery = Delivery(KEY, b"", "peer", b"", "192.0.2.1", (), None)
        pending = cast(PendingDial, SimpleNamespace(offer=offer, delivery=delivery))
        self.listening_end.accepted(accepted, pending)
        return dialled, accepted


async def work(one: NTCPStream, other: NTCPStream, seconds: float) -> float:
    """Ask and be answered, twice a second; the longest pause."""
    deadline, longest = trio.current_time() + seconds, 0.0
    async with trio.open_nursery() as nursery:

        async def echo() -> None:
            while data := await other.receive_some():
                await other.send_all(data)

        nursery.start_soon(echo)
        while trio.current_time() < deadline:
            asked = trio.current_time()
            await one.send_all(b"x")
            assert await one.receive_some() == b"x"
            longest = max(longest, trio.current_time() - asked)
            await trio.sleep(0.5)
        nursery.cancel_scope.cancel()
    return longest


async def end(*streams: NTCPStream) -> None:
    for stream in streams:
        stream.reset()
    await trio.testing.wait_all_tasks_blocked()


async def test_the_next_stream_has_no_pause(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        network = Network(nursery)
        first = network.open()
        pause = await work(*first, DEATHS_NEEDED * (LIFETIME + 5))
        assert 1.0 < pause <= FREEZE
        assert network.surroundings.deaths == [pytest.approx(LIFETIME, abs=0.5)] * DEATHS_NEEDED
        reasons = [move.reason for move in first[0].report.moves]
        assert set(reasons[:DEATHS_NEEDED]) <= {LOST, SILENT}
        await end(*first)

        second = network.open()
        assert await work(*second, 4 * LIFETIME) < 0.5
        reasons = [move.reason for move in second[0].report.moves]
        assert set(reasons) == {"it grew old"}
        assert all(move.pause == 0 for move in second[0].report.moves)
        # No oftener than that.
        assert len(reasons) <= 4 / MOVE_AT + 1
        await end(*second)
        nursery.cancel_scope.cancel()


async def test_an_idle_one_moves_as_well_and_says_nothing_else(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        network = Network(nursery)
        for _ in range(DEATHS_NEEDED):
            network.surroundings.path_died("tcp", KEY, LIFETIME)
            await trio.sleep(30)
        idle = network.open()
        await trio.sleep(10 * LIFETIME)
        moves = idle[0].report.moves
        assert {move.reason for move in moves} == {"it grew old"}
        assert 10 <= len(moves) <= 10 / MOVE_AT + 1
        assert network.dials == len(moves)
        assert await work(*idle, 1.0) < 0.5
        await end(*idle)
        nursery.cancel_scope.cancel()


async def test_without_such_a_nat_nothing_is_done(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        network = Network(nursery, math.inf)
        one, other = network.open()
        await work(one, other, 100.0)
        assert not network.dials
        await end(one, other)
        assert not network.surroundings.deaths
        assert network.surroundings.survived == [pytest.approx(100.0, abs=2.0)]
        nursery.cancel_scope.cancel()


async def test_where_the_rule_has_gone_it_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    """A successor cannot be found in time, and the path lives all the same."""
    async with trio.open_nursery() as nursery:
        network = Network(nursery, math.inf)
        for _ in range(DEATHS_NEEDED):
            network.surroundings.path_died("tcp", KEY, LIFETIME)
            await trio.sleep(30)
        network.is_up = False
        one, other = network.open()
        assert await work(one, other, 3 * LIFETIME) < 0.5
        assert 2 <= network.dials <= (GIVE_UP_AT - MOVE_AT) / RETRY_AFTER + 1
        assert network.surroundings.expected_lifetime("tcp", KEY) is None
        await end(one, other)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("reason", ["reset", "the network", "the peer is elsewhere", "an outage"])
async def test_what_explains_itself_is_no_death(autojump_clock: trio.testing.MockClock, reason: str) -> None:
    async with trio.open_nursery() as nursery:
        network = Network(nursery, math.inf)
        one, other = network.open()
        for number in range(DEATHS_NEEDED + 1):
            await work(one, other, LIFETIME)
            if reason == "reset":
                one.lose(ConnectionResetError(errno.ECONNRESET, "reset"))
            else:
                for stream in (one, other):
                    cast(MappedCarrier, stream.carrier).ends = trio.current_time()
                nursery.start_soon(partial(work, one, other, 1.0))
                await trio.sleep(1.0)
                if reason == "the network":
                    network.surroundings.disturbed()
                elif reason == "the peer is elsewhere":
                    network.peer = f"192.0.2.{100 + number}"
                else:
                    network.is_up = False
                    await trio.sleep(LONGEST_SEARCH + 3)
                    network.is_up = True
            await trio.sleep(20.0)
        assert len(one.report.moves) == DEATHS_NEEDED + 1
        assert not network.surroundings.ages.knows_deaths
        await end(one, other)
        nursery.cancel_scope.cancel()


def test_late_news_of_an_idle_stream_say_little() -> None:
    notes: list[tuple[str, float]] = []
    memory = SimpleNamespace(
        path_died=lambda _, __, age: notes.append(("died", age)),
        path_survived=lambda _, __, age: notes.append(("survived", age)),
        expected_lifetime=lambda *_: 40.0,
    )
    path = PathInfo("tcp", "public", ("192.0.2.1", 1), ("192.0.2.2", 2))
    silent = TimeoutError(errno.ETIMEDOUT, "silent")

    def age() -> PathAge:
        return PathAge(cast(Any, memory), KEY, path, 1000.0)

    idle = age()
    idle.lost(1100.0, silent, LONGEST_SILENCE + 1)
    idle.replaced(path, 1101.0, 1101.0, None)
    assert notes == [("survived", 100.0 - LONGEST_SILENCE - 1)]
    notes.clear()
    nobody_looked = age()
    nobody_looked.lost(1100.0, silent, None)
    nobody_looked.replaced(path, 1101.0, 1101.0, None)
    nobody_looked.ended(1200.0, None)
    assert not notes
    # Who is not found again has gone, whatever his path did.
    gone = age()
    gone.lost(1100.0, silent, 2.0)
    gone.ended(1160.0, 62.0)
    assert not notes
    at_work = age()
    at_work.lost(1100.0, silent, 2.0)
    at_work.replaced(path, 1101.0, 1101.0, None)
    assert notes == [("died", 98.0)]
    # Neighbours have no NAT between them.
    near = PathAge(cast(Any, memory), KEY, PathInfo("lan", "lan", path.local, path.remote), 1000.0)
    assert not near.wants_successor(1035.0, 0.0)
    assert not at_work.wants_successor(1101.0 + GIVE_UP_AT * 40.0 + 1.0, 50.0)
    assert at_work.wants_successor(1101.0 + MOVE_AT * 40.0, 0.0)
    assert not at_work.wants_successor(1101.0 + MOVE_AT * 40.0 + 1.0, 0.0)
