"""The race in virtual time: one winner, losers closed, additions while it runs, failure only at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import pytest
import trio

from ntcpsock._address import Endpoint
from ntcpsock._report import Report
from ntcpsock._session.tls import Carrier
from ntcpsock._traversal import race as race_module
from ntcpsock._traversal.plan import PlannedAttempt
from ntcpsock._traversal.punch.given import GivenSocket
from ntcpsock._traversal.race import Race
from ntcpsock._traversal.strategies import STRATEGIES
from ntcpsock._traversal.strategies.base import AttemptContext, Connection


class FakeCarrier:
    def __init__(self) -> None:
        self.closed = False

    def close(self, *, abort: bool = False) -> None:
        self.closed = True


@dataclass
class Scenario:
    """What the attempt to each port of 192.0.2.1 does: seconds, then success or failure."""

    script: dict[int, tuple[float, bool]]
    carriers: dict[int, FakeCarrier]

    async def attempt(self, context: AttemptContext) -> Connection:
        seconds, success = self.script[context.remote.port]
        await trio.sleep(seconds)
        if not success:
            raise ConnectionRefusedError(111, f"scripted, port {context.remote.port}")
        carrier = self.carriers[context.remote.port] = FakeCarrier()
        return Connection(cast(Carrier, carrier), context.planned.technique, context.entry)


Play = Callable[[dict[int, tuple[float, bool]]], Scenario]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    def start(script: dict[int, tuple[float, bool]]) -> Scenario:
        scenario = Scenario(script, {})
        monkeypatch.setitem(STRATEGIES, "lan", scenario.attempt)
        return scenario

    return start


async def no_authentication(_: trio.socket.SocketType | GivenSocket) -> Carrier:
    raise AssertionError("the script authenticates by itself")


def planned(port: int, delay: float = 0.0, budget: float = 10.0) -> PlannedAttempt:
    return PlannedAttempt("lan", Endpoint("192.0.2.1", port), delay, budget)


async def run(report: Report, *attempts: PlannedAttempt) -> tuple[Connection | None, Race]:
    async with trio.open_nursery() as nursery:
        race = Race(nursery, no_authentication, report, rtt=0.1)
        race.start(attempts, 1000)
        winner = await race.winner()
        nursery.cancel_scope.cancel()
    return winner, race


def new_report() -> Report:
    return Report("test", "dialer", trio.current_time())


def outcomes(report: Report) -> dict[int, str]:
    return {cast(Endpoint, entry.remote)[1]: entry.outcome for entry in report.attempts}


async def test_the_fastest_wins_and_the_others_stop(
    play: Play, autojump_clock: trio.testing.MockClock
) -> None:
    scenario = play({1: (5.0, True), 2: (1.0, True), 3: (0.5, False)})
    started = trio.current_time()
    report = new_report()
    winner, race = await run(report, planned(1), planned(2), planned(3))
    assert winner is not None
    assert trio.current_time() - started == 1.0
    assert winner.carrier is cast(Carrier, scenario.carriers[2])
    assert list(scenario.carriers) == [2]
    assert outcomes(report) == {1: "cancelled", 2: "ok", 3: "scripted, port 3"}
    assert len(race.errors) == 1


async def test_two_at_once_one_winner_one_closed(play: Play, autojump_clock: trio.testing.MockClock) -> None:
    scenario = play({1: (1.0, True), 2: (1.0, True)})
    winner, _ = await run(new_report(), planned(1), planned(2))
    assert winner is not None
    closed = [carrier.closed for carrier in scenario.carriers.values()]
    assert sum(closed) == len(closed) - 1
    assert not cast(FakeCarrier, winner.carrier).closed


async def test_delays_and_budgets(play: Play, autojump_clock: trio.testing.MockClock) -> None:
    play({1: (60.0, True), 2: (0.5, True)})
    started = trio.current_time()
    report = new_report()
    winner, race = await run(report, planned(1, delay=1.0, budget=2.0), planned(2, delay=3.0))
    assert winner is not None
    assert trio.current_time() - started == 3.5
    assert "no answer" in outcomes(report)[1]
    assert isinstance(race.errors[0], TimeoutError)


async def test_all_fail(play: Play, autojump_clock: trio.testing.MockClock) -> None:
    play({1: (0.1, False), 2: (0.2, False)})
    winner, race = await run(new_report(), planned(1), planned(2))
    assert winner is None
    assert len(race.errors) == 2


async def test_while_held_open_failure_waits_for_more(
    play: Play, autojump_clock: trio.testing.MockClock
) -> None:
    play({1: (0.1, False), 2: (1.0, True)})
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        race = Race(nursery, no_authentication, new_report(), rtt=0.1)
        race.start([planned(1)], 1000)

        async def later(*, task_status: trio.TaskStatus[None]) -> None:
            with race.more_may_come():
                task_status.started()
                await trio.sleep(5)
                race.start([planned(2), planned(1)], 1000)

        await nursery.start(later)
        winner = await race.winner()
        nursery.cancel_scope.cancel()
    assert winner is not None
    assert trio.current_time() - started == 6.0
    assert len(race.errors) == 1  # the attempt that ran already was not started again


async def test_a_verdict_ends_it(play: Play, autojump_clock: trio.testing.MockClock) -> None:
    play({1: (60.0, True)})
    async with trio.open_nursery() as nursery:
        race = Race(nursery, no_authentication, new_report(), rtt=0.1)
        race.start([planned(1)], 1000)
        race.end(ConnectionRefusedError("no"))
        assert await race.winner() is None
        nursery.cancel_scope.cancel()
    assert isinstance(race.verdict, ConnectionRefusedError)


async def test_an_abandoned_winner_is_closed(play: Play, autojump_clock: trio.testing.MockClock) -> None:
    scenario = play({1: (0.1, True)})
    _, race = await run(new_report(), planned(1))
    race.abandon()
    assert scenario.carriers[1].closed


async def test_strangers_at_the_port_are_bounded_and_do_not_win(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Whoever reaches the punching port without the peer's certificate costs one slot for some seconds."""
    seen = 0

    async def never_authenticates(sock: trio.socket.SocketType | GivenSocket) -> Carrier:
        nonlocal seen
        assert not isinstance(sock, GivenSocket)
        seen += 1
        try:
            await trio.sleep_forever()
        finally:
            sock.close()
        raise AssertionError

    listener = trio.socket.socket()
    await listener.bind(("127.0.0.1", 0))
    listener.listen(100)
    strangers = []
    report = Report("test", "dialer", trio.current_time())
    async with trio.open_nursery() as nursery:
        race = Race(nursery, never_authenticates, report, rtt=0.1)
        race.listen([listener], lambda _: "lan")
        for _ in range(race_module.MAX_UNAUTHENTICATED + 20):
            stranger = trio.socket.socket()
            await stranger.connect(listener.getsockname())
            strangers.append(stranger)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert seen == race_module.MAX_UNAUTHENTICATED
        await trio.sleep(race_module.AUTHENTICATION_DEADLINE + 1)
        assert all("not the peer" in entry.outcome for entry in report.attempts)
        nursery.cancel_scope.cancel()
    for sock in [listener, *strangers]:
        sock.close()
