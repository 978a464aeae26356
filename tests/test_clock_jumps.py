"""A wall clock that jumps: only tickets to relays look at it, and those for as long as they are good."""

from __future__ import annotations

from pathlib import Path

import trio
import trio.testing
from broker_driver_support import session
from broker_support import SimulatedNetwork, make_identity, registration
from redis_support import PATIENCE, BrokerProcess, free_port
from test_cluster_faults import KEEP_ALIVE, can_meet, comes_true, counting, is_refused
from test_cluster_front import sessions
from test_relay_connect import check_both_ways, connect

from ntcpsock._config import Config
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
from ntcpsock.trio import open_node

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


async def test_streams_registrations_and_names_outlive_every_jump_of_a_server(tmp_path: Path) -> None:
    """A broker with its relay as a process: what there is goes on, and what is asked for then is had."""
    clock = tmp_path / "ahead"
    clock.write_text("0", encoding="ascii")
    broker = BrokerProcess(
        "serve", "127.0.0.1", free_port(), tmp_path / "state", "--stun-port", "0", clock=clock
    )
    address = broker.start()
    try:
        config = Config(broker=str(address), keep_alive="fixed", keep_alive_interval=KEEP_ALIVE)
        async with (
            open_node(config, name="alice", state_dir=tmp_path / "alice") as alice,
            open_node(config, state_dir=tmp_path / "bob") as bob,
            open_node(config, relay="only", state_dir=tmp_path / "carol") as carol,
            session(address, make_identity(66), timeout=PATIENCE) as thief,
            await alice.open_listener(8000) as listener,
        ):
            direct, relayed = await connect(bob, listener), await connect(carol, listener)
            assert direct[0].path.kind != "relay"
            assert relayed[0].path.kind == "relay"
            async with counting(*direct) as count, counting(*relayed) as count_relayed:
                key, before = await thief.lookup("alice"), sessions(broker)
                for ahead in (YEAR, -YEAR, -YEAR + 60.0, 0.0):
                    clock.write_text(str(ahead), encoding="ascii")
                    marks = count(), count_relayed()

                    async def went_on(marks: tuple[int, int] = marks) -> bool:
                        return count() > marks[0] + 10 and count_relayed() > marks[1] + 10

                    await comes_true(went_on)
                    assert await can_meet(thief, key, "alice")
                    assert await is_refused(thief, "alice")
                    for dialer in (bob, carol):
                        await check_both_ways(*await connect(dialer, listener))
                # Nobody was a stranger at any time.
                assert sessions(broker) == before
            for stream in (*direct, *relayed):
                await stream.aclose()
    finally:
        broker.kill()
