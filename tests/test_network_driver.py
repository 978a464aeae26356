"""The watcher: on scripted sources and clocks, on this machine, and in hosts of the lab, without privileges."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import network_programs as programs
import pytest
import trio
import trio.testing
from netlink_support import HOME, LOOPBACK, snapshot

from ntcpsock._traversal.network import driver
from ntcpsock._traversal.network.clocks import WakeUp, read_clocks
from ntcpsock._traversal.network.driver import (
    POLL_INTERVAL,
    TICK_INTERVAL,
    NetlinkSource,
    NetworkWatcher,
    PollingSource,
    Source,
)
from ntcpsock._traversal.network.machine import SETTLE, NetworkChange
from ntcpsock._traversal.network.snapshot import Snapshot
from ntcpsock.testing.pytest_plugin import NatLabFactory

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's rtnetlink")


@dataclass
class Script:
    """A source whose news are made by the test."""

    now: Snapshot
    poll_interval: float = math.inf
    asked: list[Sequence[str]] = field(default_factory=list)
    failure: OSError | None = None
    closed: int = 0

    def __post_init__(self) -> None:
        self._news = trio.Event()
        self._broken: OSError | None = None

    def read(self, destinations: Sequence[str]) -> Snapshot:
        self.asked.append(destinations)
        if self.failure is not None:
            raise self.failure
        return self.now

    async def wait(self) -> None:
        await self._news.wait()
        if self._broken is not None:
            raise self._broken

    def tell(self, now: Snapshot | None = None, broken: OSError | None = None) -> None:
        self.now = now or self.now
        self._broken = broken
        news, self._news = self._news, trio.Event()
        news.set()

    def close(self) -> None:
        self.closed += 1


class Clocks:
    """Of a machine that sleeps when a test says so."""

    def __init__(self) -> None:
        self.slept = 0.0

    def __call__(self) -> tuple[float, float]:
        return trio.current_time(), trio.current_time() + self.slept


@pytest.fixture
def no_wake_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> WakeUp:
        raise OSError("none here")

    monkeypatch.setattr(driver, "WakeUp", fail)


async def started(
    nursery: trio.Nursery, source: Source, clocks: Callable[[], tuple[float, float]] = read_clocks
) -> tuple[NetworkWatcher, list[NetworkChange]]:
    changes: list[NetworkChange] = []
    watcher = NetworkWatcher(
        changes.append,
        lambda: ("203.0.113.9", "127.0.0.1", "alice.example", "203.0.113.9"),
        open_source=lambda: source,
        clocks=clocks,
    )
    await nursery.start(watcher.run)
    await trio.testing.wait_all_tasks_blocked()  # until it waits for news
    return watcher, changes


async def test_news_are_told_when_they_have_settled(autojump_clock: trio.testing.MockClock) -> None:
    source = Script(snapshot(*HOME))
    async with trio.open_nursery() as nursery:
        _, changes = await started(nursery, source)
        # Where names and loopback lead is no question.
        assert source.asked == [["192.88.99.1", "2001:db8::1", "203.0.113.9"]]
        await trio.sleep(1000)
        assert len(source.asked) == 1
        source.tell(snapshot(LOOPBACK))
        await trio.sleep(SETTLE / 2)
        assert changes == []
        await trio.sleep(SETTLE)
        assert [found.gone for found in changes] == [{"10.0.0.2"}]
        assert changes[0].at == pytest.approx(trio.current_time(), abs=SETTLE)
        nursery.cancel_scope.cancel()
    assert source.closed == 1


async def test_looking_at_once(autojump_clock: trio.testing.MockClock) -> None:
    source = Script(snapshot(*HOME))
    async with trio.open_nursery() as nursery:
        watcher, changes = await started(nursery, source)
        source.now = snapshot(LOOPBACK)
        watcher.look()
        await trio.sleep(0.001)
        assert len(changes) == 1
        nursery.cancel_scope.cancel()
    NetworkWatcher(changes.append, list).look()  # not running: nothing happens


async def test_a_sleep_is_noticed_by_a_slow_tick(
    autojump_clock: trio.testing.MockClock, no_wake_up: None
) -> None:
    source, mine = Script(snapshot(*HOME)), Clocks()
    async with trio.open_nursery() as nursery:
        _, changes = await started(nursery, source, mine)
        await trio.sleep(10 * TICK_INTERVAL)
        assert changes == []
        assert len(source.asked) == 1
        mine.slept += 3600.0
        await trio.sleep(TICK_INTERVAL + 1)
        assert [(found.slept, found.moved) for found in changes] == [(True, False)]
        nursery.cancel_scope.cancel()


async def test_a_sleep_is_noticed_with_other_news(
    autojump_clock: trio.testing.MockClock, no_wake_up: None
) -> None:
    source, mine = Script(snapshot(*HOME)), Clocks()
    async with trio.open_nursery() as nursery:
        _, changes = await started(nursery, source, mine)
        await trio.sleep(1)
        mine.slept += 3600.0
        source.tell(snapshot(LOOPBACK))
        await trio.sleep(2 * SETTLE)
        (found,) = changes
        assert found.slept
        assert found.gone == {"10.0.0.2"}
        nursery.cancel_scope.cancel()


async def test_looks_that_fail_are_repeated(autojump_clock: trio.testing.MockClock) -> None:
    source = Script(snapshot(*HOME))
    async with trio.open_nursery() as nursery:
        _, changes = await started(nursery, source)
        source.failure = OSError("no room")
        source.tell(snapshot(LOOPBACK))
        await trio.sleep(5)
        assert changes == []
        source.failure = None
        await trio.sleep(5)
        assert len(changes) == 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("when", ["at first", "later"])
async def test_without_news_addresses_are_looked_at_now_and_then(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    own = {"192.88.99.1": "10.0.0.2", "203.0.113.9": "10.0.0.2"}
    monkeypatch.setattr(driver, "source_towards", own.get)
    monkeypatch.setattr(driver, "further_uplinks", lambda: ())
    source = Script(PollingSource().read(list(own)))
    async with trio.open_nursery() as nursery:
        if when == "at first":
            source.failure = OSError("forbidden")
        _, changes = await started(nursery, source)
        if when == "later":
            source.tell(broken=OSError("the socket is gone"))
            await trio.sleep(1)
        assert source.closed == 1
        await trio.sleep(10 * POLL_INTERVAL)
        assert changes == []
        own.update({"192.88.99.1": "10.9.0.2", "203.0.113.9": "10.9.0.2"})
        await trio.sleep(POLL_INTERVAL + 0.1)
        (found,) = changes
        assert found.gone == {"10.0.0.2"}
        assert found.new == {"10.9.0.2"}
        assert found.route_changed
        nursery.cancel_scope.cancel()
    assert source.closed == 1


@linux
async def test_this_machine_stays_as_it_is() -> None:
    """Two looks of each kind at real tables; and nothing is left open."""
    before = len(os.listdir("/proc/self/fd"))
    for source in (NetlinkSource(), PollingSource()):
        first = source.read(["192.88.99.1", "127.0.0.1"])
        assert source.read(["192.88.99.1", "127.0.0.1"]) == first
        assert not any(host.startswith("127.") for host in first.addresses)
        source.close()
    async with trio.open_nursery() as nursery:
        await started(nursery, NetlinkSource())
        nursery.cancel_scope.cancel()
    assert len(os.listdir("/proc/self/fd")) == before


@linux
async def test_a_table_too_long_is_left_and_the_next_one_read(monkeypatch: pytest.MonkeyPatch) -> None:
    source = NetlinkSource()
    whole = source.read([])
    monkeypatch.setattr(driver, "_MOST_OF_A_TABLE", 1)
    source.read([])
    monkeypatch.undo()
    assert source.read([]) == whole
    source.close()


@linux
async def test_the_timer_of_sleep_waits() -> None:
    wake_up = WakeUp()
    try:
        with trio.move_on_after(0.05) as scope:
            await wake_up.wait()
        assert scope.cancelled_caught
    finally:
        wake_up.close()
        wake_up.close()


def test_clocks_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    awake, total = read_clocks()
    assert total >= awake
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    assert read_clocks()[0] == pytest.approx(awake, abs=60)


@pytest.mark.lab
@pytest.mark.timeout(300)
@pytest.mark.parametrize("source", ["netlink", "polling"])
def test_a_real_network(nat_lab: NatLabFactory, source: str) -> None:
    """Each step changes something in the kernel; what the watcher tells is what was meant."""
    lab = nat_lab("default", "default")
    found, expected = lab.host_a.call(programs.watch, source == "polling", timeout=240.0)
    assert found == expected
