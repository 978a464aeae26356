"""A wall clock that jumps: only tickets to relays look at it, and those for as long as they are good."""

from __future__ import annotations

import trio
import trio.testing
from broker_support import SimulatedNetwork, registration

from ntcpsock._servers.relay import RelayDesk, RelayLimits
from ntcpsock._servers.relay_book import RelayBook
from ntcpsock._traversal.broker.fields import RelayPlace
from ntcpsock._traversal.broker.message import Found, Introduced
from ntcpsock._traversal.relay.message import (
    LIFETIME,
    SECRET_LENGTH,
    SESSION_LENGTH,
    issue_pair,
    verify_untrusted,
)

SECRET = bytes(SECRET_LENGTH)
YEAR = 365 * 86400.0


class WallClock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def test_sessions_names_and_introductions_do_not_notice() -> None:
    network = SimulatedNetwork()
    clock = WallClock()
    network.core._wall_clock = clock
    network.core.relays = RelayBook(
        (RelayPlace("192.0.2.1", 6061),), secret=SECRET, broker_key=network.core.key, edition=1
    )
    network.core._relay_secret = SECRET
    listener, dialer = network.add(1), network.add(2)
    listener.ask(registration("alice"))
    for jump in (YEAR, -3 * YEAR, 60.0, 2 * YEAR):
        clock.now += jump
        network.run(seconds=45)
        assert dialer.lookup("alice") == Found(listener.identity.public_key)
        introduced = dialer.introduce(listener.identity.public_key, name="alice")
        assert isinstance(introduced, Introduced)
        # Issued and used by the same time, tickets are good.
        assert introduced.tickets is not None
        ticket = verify_untrusted(SECRET, introduced.tickets[0], clock.now)
        assert ticket.expires == int(clock.now) + LIFETIME
    for node in (listener, dialer):
        assert len(node.welcomes) == 1
        assert node.machine.connected


async def test_a_relay_whose_clock_is_set_back_takes_new_tickets(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Those that are used are remembered for as long as they were good, and not until that time has come again."""
    clock = WallClock()
    desk = RelayDesk(SECRET, RelayLimits(used_tickets=4), wall_clock=clock)
    number = 0

    def refusal() -> str | None:
        nonlocal number
        number += 1
        session = number.to_bytes(SESSION_LENGTH, "big")
        (data, _) = issue_pair(SECRET, session, b"d" * 32, b"l" * 32, clock.now)
        return desk._why_not(verify_untrusted(SECRET, data, clock.now), "192.0.2.1")

    assert [refusal() for _ in range(5)] == [None] * 4 + ["too many tickets lately"]
    clock.now -= YEAR
    assert refusal() == "too many tickets lately"
    await trio.sleep(LIFETIME + 1)
    clock.now += LIFETIME + 1
    assert [refusal() for _ in range(4)] == [None] * 4
    # Set forward it forgets nothing early.
    clock.now += YEAR
    assert refusal() == "too many tickets lately"
    desk.close()
