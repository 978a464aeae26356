"""The relay in the race, in virtual time: it is ready early, and used when nothing direct comes in its time."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest
import trio
from test_race import FakeCarrier, Scenario, new_report, no_authentication, planned

from ntcpsock._address import Endpoint
from ntcpsock._traversal.plan import PlannedAttempt
from ntcpsock._traversal.race import Race
from ntcpsock._traversal.relay.message import TICKET_LENGTH
from ntcpsock._traversal.signals import Mailbox, Talk
from ntcpsock._traversal.strategies import STRATEGIES
from ntcpsock._traversal.strategies import relay as relay_module
from ntcpsock._traversal.strategies.base import AttemptContext, Authenticate, Connection
from ntcpsock._traversal.strategies.relay import RelayAccess

RELAY = 9  # the scripted port that stands for it
DIAL = bytes(16)

Script = dict[int, tuple[float, bool]]
Play = Callable[[Script], Scenario]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    def start(script: Script) -> Scenario:
        scenario = Scenario(script, {})
        for technique in ("lan", "relay"):
            monkeypatch.setitem(STRATEGIES, technique, scenario.attempt)
        return scenario

    return start


async def unheard(_payload: bytes) -> None:
    """What a side says here reaches nobody."""


async def no_tickets() -> None:
    return None


async def run(*attempts: PlannedAttempt, use: float) -> tuple[Connection | None, float]:
    """The winner and the second in which it won; the relay may be used from the second `use` on."""
    begin = trio.current_time()
    async with trio.open_nursery() as nursery:
        race = Race(nursery, no_authentication, new_report(), rtt=0.1)
        race.start(attempts, 1000)
        relayed = PlannedAttempt("relay", Endpoint("192.0.2.1", RELAY), 0.0, 60.0)
        talk = Talk(DIAL, 16, Mailbox(), nursery, unheard)
        race.start_relay(relayed, 1000, talk, RelayAccess((), no_tickets), begin + use)
        winner = await race.winner()
        nursery.cancel_scope.cancel()
    return winner, trio.current_time() - begin


@pytest.mark.parametrize(
    ("script", "winner", "seconds"),
    [
        # Ready first, and the direct path comes in its time.
        ({1: (0.9, True), RELAY: (0.3, True)}, "lan", 0.9),
        # It does not.
        ({1: (3.0, True), RELAY: (0.3, True)}, "relay", 1.0),
        ({1: (9.0, False), RELAY: (0.3, True)}, "relay", 1.0),
        # It cannot come any more.
        ({1: (0.5, False), RELAY: (0.3, True)}, "relay", 0.5),
        ({1: (0.1, False), RELAY: (0.3, True)}, "relay", 0.3),
        # The relay is slow: whoever comes first.
        ({1: (2.5, True), RELAY: (2.0, True)}, "relay", 2.0),
        ({1: (1.5, True), RELAY: (2.0, True)}, "lan", 1.5),
        # It fails: the direct path has all its time.
        ({1: (5.0, True), RELAY: (0.3, False)}, "lan", 5.0),
        ({1: (5.0, False), RELAY: (0.3, False)}, None, 5.0),
    ],
)
async def test_a_direct_path_has_its_time_and_no_more(
    play: Play,
    script: Script,
    winner: str | None,
    seconds: float,
    autojump_clock: trio.testing.MockClock,
) -> None:
    scenario = play(script)
    connection, took = await run(planned(1, budget=60.0), use=1.0)
    assert (connection.technique if connection else None) == winner
    assert took == pytest.approx(seconds)
    for carrier in scenario.carriers.values():
        assert carrier.closed == (connection is None or carrier is not cast(FakeCarrier, connection.carrier))


async def test_without_direct_attempts_nothing_is_waited_for(
    play: Play, autojump_clock: trio.testing.MockClock
) -> None:
    play({RELAY: (0.3, True)})
    connection, took = await run(use=4.0)
    assert connection is not None
    assert took == pytest.approx(0.3)


def follower(relays: int, mailbox: Mailbox, nursery: trio.Nursery) -> AttemptContext:
    async def authenticate(_: object) -> FakeCarrier:
        raise AssertionError("there is no relay")

    report = new_report()
    return AttemptContext(
        PlannedAttempt("relay", Endpoint("192.0.2.1", 0), 0.0, 10.0),
        1000,
        0.1,
        cast("object", authenticate),  # type: ignore[arg-type]
        report.attempt("relay", None, None, 0.0),
        "follower",
        talk=Talk(DIAL, 16, mailbox, nursery, unheard),
        relay=RelayAccess(
            tuple(Endpoint("192.0.2.1", 6060 + number) for number in range(relays)), no_tickets
        ),
    )


async def test_a_dialers_word_sends_us_nowhere_but_to_our_brokers_relays(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    seen: list[tuple[Endpoint, bytes]] = []

    async def take_seat(relay: Endpoint, ticket: bytes) -> None:
        seen.append((relay, ticket))
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    monkeypatch.setattr(relay_module, "take_seat", take_seat)
    ticket = bytes(TICKET_LENGTH)

    def word(number: int) -> bytes:
        return ticket + str(Endpoint("192.0.2.1", 6060 + number)).encode()

    async with trio.open_nursery() as nursery:
        mailbox = Mailbox()
        mailbox._words = {(16, f"relay {number}"): word(number) for number in range(10)}
        with pytest.raises(ConnectionRefusedError):
            await relay_module.attempt(follower(2, mailbox, nursery))
        # More than one broker's relays are not tried, and of these two are known.
        assert [relay.port for relay, _ in seen] == [6060, 6061]
        mailbox._words = {(16, f"relay {number}"): word(3 - number) for number in range(4)}
        with pytest.raises(ConnectionRefusedError):
            await relay_module.attempt(follower(2, mailbox, nursery))
        # The dialer's order counts.
        assert [relay.port for relay, _ in seen[2:]] == [6061, 6060]
        mailbox._words = {(16, "relay 0"): b"http://victim/"}
        with pytest.raises(OSError, match="no ticket") as caught:
            await relay_module.attempt(follower(2, mailbox, nursery))
        assert caught.value.errno == errno.EPROTO
        mailbox._words = {(16, f"relay {number}"): word(number) for number in range(4)}
        with pytest.raises(OSError, match="no such relay"):
            await relay_module.attempt(follower(0, mailbox, nursery))
        assert len(seen) == 4


async def test_one_that_is_met_when_all_is_cancelled_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    carrier = FakeCarrier()

    async def take_seat(relay: Endpoint, ticket: bytes) -> None:
        await trio.lowlevel.checkpoint()

    async def authenticate(_: object) -> FakeCarrier:
        scope.cancel()
        return carrier

    async def tickets() -> tuple[bytes, bytes]:
        return bytes(TICKET_LENGTH), bytes(TICKET_LENGTH)

    monkeypatch.setattr(relay_module, "take_seat", take_seat)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            made = follower(1, Mailbox(), nursery)
            assert made.relay is not None
            access = RelayAccess(made.relay.relays, tickets)
            made = replace(made, role="leader", authenticate=cast("Authenticate", authenticate), relay=access)
            await relay_module.attempt(made)
    assert scope.cancelled_caught
    assert carrier.closed
