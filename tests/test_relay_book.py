"""Which relays nodes are told, which one two of them take, and how relays register; pure, and with real ones."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from broker_support import make_identity
from relay_support import PATIENCE, running_relay, tickets
from test_admin import admin
from test_relay_connect import check_both_ways, connect
from test_server_operation import SERVERS, running
from world import World, open_world

from ntcpsock._address import BrokerAddress, Endpoint, parse_broker
from ntcpsock._errors import BrokerRefused, ConfigurationError
from ntcpsock._identity import Identity
from ntcpsock._servers.relay import RelayDesk, RelayLimits
from ntcpsock._servers.relay_book import FULL, MOST_OFFERED, OFFER_LIFETIME, RelayBook
from ntcpsock._servers.relay_offering import brokers_of, offer_at_brokers, place_of
from ntcpsock._servers.relay_seats import Allowance
from ntcpsock._servers.relay_server import RelayServer, serve_relay
from ntcpsock._state import Pins, load_identity
from ntcpsock._traversal.broker.driver import open_broker_session
from ntcpsock._traversal.broker.fields import MAX_RELAYS, RelayPlace
from ntcpsock._traversal.broker.operation import OfferRelay
from ntcpsock._traversal.relay.message import relay_proof
from ntcpsock._traversal.relay.told import ToldRelay, told_as
from ntcpsock._traversal.relay_choice import order_relays
from ntcpsock._traversal.relay_times import measure, measure_all

SECRET, BROKER, RELAY = bytes(32), b"b" * 32, b"r" * 32
OWN = RelayPlace("0.0.0.0", 0)


def book(*static: RelayPlace, trusted: Sequence[bytes] = ()) -> RelayBook:
    return RelayBook(static, secret=SECRET, broker_key=BROKER, trusted=trusted)


def offer(place: RelayPlace, key: bytes = RELAY, secret: bytes = SECRET) -> OfferRelay:
    return OfferRelay(place, relay_proof(secret, BROKER, key))


def test_a_relay_is_told_while_it_says_that_it_is_there() -> None:
    relays = book(OWN)
    assert relays.told(0.0) == (1, (OWN,))
    assert relays.offer(RELAY, offer(RelayPlace("0.0.0.0", 6061)), "192.0.2.1", 0.0) == b""
    edition, told = relays.told(0.0)
    assert (edition, told) == (2, (OWN, RelayPlace("192.0.2.1", 6061))), "at once, where it was seen"
    assert relays.told(OFFER_LIFETIME - 1)[0] == 2
    relays.offer(RELAY, offer(RelayPlace("192.0.2.1", 6061)), "192.0.2.1", OFFER_LIFETIME - 1)
    assert relays.told(2 * OFFER_LIFETIME - 2)[0] == 2, "nothing has changed"
    assert relays.told(2 * OFFER_LIFETIME) == (3, (OWN,)), "dead"


def test_who_may_be_a_relay() -> None:
    relays, place = book(trusted=[b"t" * 32]), RelayPlace("192.0.2.1", 6061)
    assert relays.offer(RELAY, offer(place, secret=b"x" * 32), "192.0.2.1", 0.0) is None
    assert relays.offer(RELAY, offer(place, key=b"o" * 32), "192.0.2.1", 0.0) is None, "another's proof"
    assert relays.offer(RELAY, OfferRelay(place), "192.0.2.1", 0.0) is None
    assert relays.told(0.0) == (0, ())
    # One that is listed by its key learns what tickets are made with.
    assert relays.offer(b"t" * 32, OfferRelay(place), "192.0.2.1", 0.0) == SECRET
    assert RelayBook((), secret=None).offer(RELAY, offer(place), "192.0.2.1", 0.0) is None


def test_a_withdrawn_a_full_and_a_draining_relay_are_told_no_more() -> None:
    relays = book(OWN)
    place = RelayPlace("192.0.2.1", 6061)
    relays.offer(RELAY, offer(place._replace(load=FULL)), "192.0.2.1", 0.0)
    assert relays.told(0.0)[1] == (OWN,)
    relays.own_load = lambda: None
    # While there is no other, a full one is better than none.
    assert [told.host for told in relays.told(2.0)[1]] == ["192.0.2.1"]
    assert relays.withdraw(RELAY)
    assert not relays.withdraw(RELAY)
    assert relays.told(2.0) == (0, ())


def test_the_least_loaded_are_told_and_small_changes_are_not() -> None:
    relays = book()
    for number, load in enumerate((50, 20, 90, 0, 70)):
        key = bytes([number]) * 32
        relays.offer(key, offer(RelayPlace(f"192.0.2.{number}", 6061, False, load), key), "", 0.0)
    edition, told = relays.told(0.0)
    assert [place.load for place in told] == [0, 20, 50, 70]
    assert len(told) == MAX_RELAYS
    key = bytes([1]) * 32
    relays.offer(key, offer(RelayPlace("192.0.2.1", 6061, False, 24), key), "", 3.0)
    assert relays.told(3.0)[0] == edition
    relays.offer(key, offer(RelayPlace("192.0.2.1", 6061, False, 31), key), "", 6.0)
    assert relays.told(6.0)[0] == edition + 1


def test_relays_of_one_broker_are_bounded() -> None:
    relays = book()
    for number in range(MOST_OFFERED + 10):
        key = number.to_bytes(32, "big")
        taken = relays.offer(key, offer(RelayPlace("192.0.2.1", number + 1), key), "", 0.0)
        assert (taken is not None) is (number < MOST_OFFERED)


NEAR, FAR, THIRD = (ToldRelay.make(f"192.0.2.{n}", 1, f"192.0.2.{n}:1", 0) for n in (1, 2, 3))


def loaded(relay: ToldRelay, load: int) -> ToldRelay:
    return ToldRelay.make(relay.host, relay.port, relay.told, load)


@pytest.mark.parametrize(
    ("relays", "ours", "theirs", "first"),
    [
        ([FAR, NEAR], {told_as(NEAR): 0.01, told_as(FAR): 0.2}, {}, NEAR),
        # Near to us and far from them: the way over it is what counts.
        (
            [NEAR, FAR],
            {told_as(NEAR): 0.01, told_as(FAR): 0.05},
            {told_as(NEAR): 0.2, told_as(FAR): 0.05},
            FAR,
        ),
        # Nothing comes from one that is away.
        ([NEAR, FAR], {told_as(FAR): 0.2}, {told_as(FAR): 0.01}, FAR),
        ([loaded(NEAR, 90), FAR], {told_as(NEAR): 0.01, told_as(FAR): 0.05}, {}, FAR),
        ([loaded(NEAR, 20), FAR], {told_as(NEAR): 0.01, told_as(FAR): 0.05}, {}, NEAR),
        ([FAR, NEAR], {}, {}, FAR),
    ],
)
def test_the_best_relay_is_taken(
    relays: Sequence[Endpoint], ours: Mapping[str, float], theirs: Mapping[str, float], first: Endpoint
) -> None:
    for seed in range(20):
        assert order_relays(relays, ours, theirs, random.Random(seed))[0] == first


def test_the_one_that_was_lost_is_the_last() -> None:
    times = {told_as(NEAR): 0.01, told_as(FAR): 0.2, told_as(THIRD): 0.1}
    for lost, others in ((NEAR, (THIRD, FAR)), (FAR, (NEAR, THIRD))):
        where = Endpoint(lost.host, lost.port)
        assert order_relays((NEAR, FAR, THIRD), times, {}, random.Random(1), where) == (*others, lost)


def test_equal_relays_share_the_work() -> None:
    times = {told_as(relay): 0.02 for relay in (NEAR, FAR, THIRD)}
    firsts = {order_relays((NEAR, FAR, THIRD), times, {}, random.Random(seed))[0] for seed in range(50)}
    assert firsts == {NEAR, FAR, THIRD}


@pytest.mark.parametrize(
    ("public", "tls", "words"),
    [
        ("relay.example:1", False, "wss:// alone"),
        (None, True, "needs --public"),
        ("192.0.2.1:0", False, "port"),
    ],
)
def test_what_is_no_place(public: str | None, tls: bool, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        place_of(public, 6061, tls=tls)


def test_places_and_brokers_of_a_relay() -> None:
    assert place_of(None, 6061, tls=False) == RelayPlace("0.0.0.0", 6061)
    assert place_of("wss://relay.example", 6061, tls=True) == RelayPlace("relay.example", 443, True)
    key = make_identity(1).node_id
    assert brokers_of([f"ntcp://192.0.2.1?key={key}"])[0].port == 6060
    with pytest.raises(ConfigurationError, match="give its key"):
        brokers_of(["ntcp://192.0.2.1"])


# With real ones.


@asynccontextmanager
async def registered_relay(
    world: World, *, identity: Identity | None = None, limits: RelayLimits | None = None
) -> AsyncIterator[RelayServer]:
    """A relay of its own at the world's broker, from when nodes are told of it."""
    secret = load_identity(world.directory / "broker" / "relay.key").seed if identity is None else None
    before = len(world.server.core.relays.told(trio.current_time())[1])
    async with trio.open_nursery() as nursery:
        relay: RelayServer = await nursery.start(partial(serve_relay, "127.0.0.1", 0, secret, limits=limits))
        broker = BrokerAddress(*world.server.address, world.server.key)
        place = RelayPlace("0.0.0.0", relay.address.port)
        nursery.start_soon(
            offer_at_brokers, [broker], identity or Identity.generate(), secret, place, relay.desk
        )
        with trio.fail_after(PATIENCE):
            while len(world.server.core.relays.told(trio.current_time())[1]) == before:
                await trio.sleep(0.01)
        yield relay
        nursery.cancel_scope.cancel()


async def test_a_registered_relay_is_used_and_a_draining_one_is_not(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, registered_relay(world) as relay:
        async with world.node("alice", relay="only") as alice, world.node(relay="only") as bob:
            assert [relay.port for relay in bob.relays] == [relay.address.port]
            async with await alice.open_listener(8000) as listening:
                mine, theirs = await connect(bob, listening)
                assert mine.path.remote == relay.address
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(relay.drain, PATIENCE)
                    with trio.fail_after(PATIENCE):
                        while world.server.core.relays.told(trio.current_time())[1]:
                            await trio.sleep(0.01)
                    # What is there goes on, and is what the end of the drain waits for.
                    await check_both_ways(mine, theirs)
            async with world.node() as late:
                assert late.relays == ()


async def test_a_relay_known_by_its_key_needs_no_shared_secret(tmp_path: Path) -> None:
    identity = make_identity(50)
    async with open_world(tmp_path) as world:
        world.server.core.relays.trusted = frozenset({identity.public_key})
        async with registered_relay(world, identity=identity):
            async with world.node("alice", relay="only") as alice, world.node(relay="only") as bob:
                async with await alice.open_listener(8000) as listening:
                    await check_both_ways(*await connect(bob, listening))


async def test_both_sides_end_on_one_relay_whatever_their_lists_say(tmp_path: Path) -> None:
    """The dialer has it from a keep-alive that the listener has not had yet: then another one is taken."""
    async with open_world(tmp_path, tcp=True) as world:
        async with world.node("alice", relay="only") as alice:
            async with registered_relay(world) as relay, world.node(relay="only") as bob:
                assert len(bob.relays) == 2
                assert len(alice.relays) == 1
                async with await alice.open_listener(8000) as listening:
                    for _ in range(3):
                        mine, theirs = await connect(bob, listening)
                        assert mine.path.remote[1] == world.server.address.port
                        await check_both_ways(mine, theirs)
                assert relay.desk.counters.joined == 0


async def test_nodes_hear_of_relays_with_their_keep_alives(tmp_path: Path) -> None:
    async with open_world(tmp_path, tcp=True) as world:
        async with world.node("alice", keep_alive="fixed", keep_alive_interval=0.2) as alice:
            async with registered_relay(world) as relay:
                with trio.fail_after(PATIENCE):
                    while len(alice.relays) < 2 or len(alice.relay_times) < 2:
                        await trio.sleep(0.01)
                assert all(0 < seconds < PATIENCE for seconds in alice.relay_times.values())
                await relay.drain(0)
                with trio.fail_after(PATIENCE):
                    while len(alice.relays) > 1:
                        await trio.sleep(0.01)


async def test_a_relay_registers_again_after_the_broker_s_restart(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, registered_relay(world):
        await world.restart_broker()
        assert not world.server.core.relays.told(trio.current_time())[1]
        with trio.fail_after(PATIENCE):
            while not world.server.core.relays.told(trio.current_time())[1]:
                await trio.sleep(0.05)


async def test_a_stranger_is_no_relay(tmp_path: Path) -> None:
    """A node that wants to have all relayed bytes pass it by."""
    async with open_world(tmp_path) as world:
        broker = BrokerAddress(*world.server.address, world.server.key)
        async with open_broker_session(broker, make_identity(9), pins=Pins(None)) as session:
            for secret in (None, b"guessed".ljust(32)):
                with pytest.raises(BrokerRefused, match=r"relay\.key"):
                    await session.offer_relay(RelayPlace("192.0.2.66", 6061), secret)
        assert world.server.core.relays.told(trio.current_time())[1] == ()


async def test_round_trips_are_of_relays_that_take_connections(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        relay: RelayServer = await nursery.start(serve_relay, "127.0.0.1", 0, SECRET)
        dead = Endpoint("127.0.0.1", 1)
        assert 0 < await measure(relay.address) < PATIENCE
        assert list(await measure_all([relay.address, dead])) == [str(relay.address)]
        relay.readiness.reason = "draining"
        with pytest.raises(OSError, match="503"):
            await measure(relay.address)
        assert await measure_all([relay.address, dead]) == {}
        with trio.fail_after(PATIENCE):
            while relay.web.counters.open:
                await trio.sleep(0.01)
        assert relay.web.counters.broken == 0
        nursery.cancel_scope.cancel()


async def test_quotas_of_an_address_and_several_secrets() -> None:
    async with running_relay(RelayLimits(sessions_of_an_address=3)) as relay:
        relay.desk.secrets = {b"another".ljust(32), *relay.desk.secrets}
        streams = await relay.pair(1)
        await relay.seat(tickets(2)[0])
        with pytest.raises(OSError, match="429"):
            await relay.seat(tickets(3)[0])
        assert relay.desk.counters.refused["too many connections of this address"] == 1
        for stream in streams:
            await stream.aclose()
        with trio.fail_after(PATIENCE):
            while relay.desk.counters.open > 1:
                await trio.sleep(0.01)
        await relay.seat(tickets(4)[0])
    desk = RelayDesk(SECRET, RelayLimits(sessions=1))
    assert desk.load == 0


async def test_the_rate_of_an_address_is_kept(autojump_clock: trio.testing.MockClock) -> None:
    allowance = Allowance(1000.0)
    for _ in range(5):
        await allowance.spend(1000)
    assert trio.current_time() == pytest.approx(4.0)


def test_the_script_registers_and_leaves(tmp_path: Path) -> None:
    broker_dir = tmp_path / "broker"
    options = ("--listen", "127.0.0.1", "--port", "0")
    with running(
        str(SERVERS / "tcp_broker.py"), *options, "--state-dir", str(broker_dir), NTCP_STATE=str(broker_dir)
    ) as (line, broker):
        uri = line.split()[1]
        assert parse_broker(uri).key
        relay_options = ("--relay-key", str(broker_dir / "relay.key"), "--broker", uri)

        def told() -> int:
            return len(json.loads(admin("status", "--json", NTCP_STATE=str(broker_dir)).stdout)["relays"])

        with running(
            str(SERVERS / "relay.py"), *options, *relay_options, NTCP_STATE=str(tmp_path / "relay")
        ) as (_, relay):
            while told() < 2:
                assert relay.poll() is None
            relay.send_signal(signal.SIGTERM)
            assert relay.wait(PATIENCE) == 0
        while told() > 1:
            assert broker.poll() is None
