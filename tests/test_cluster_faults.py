"""What ends without warning: a broker of three, Redis, the disk. Streams go on, nodes come back, names stay."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path

import pytest
import trio
from broker_driver_support import ALICE, BOB
from broker_driver_support import session as open_session
from broker_support import SEALED, make_identity
from redis_support import (
    PATIENCE,
    BrokerProcess,
    RedisServer,
    free_port,
    needs_redis,
    running_cluster,
    running_redis,
    share_keys,
)

from ntcpsock._address import BrokerAddress, decode_node_id
from ntcpsock._config import Config
from ntcpsock._errors import (
    BrokerUnreachable,
    IdentityMismatch,
    NameNotFound,
    NameTaken,
    PeerOffline,
)
from ntcpsock._traversal.broker import reach
from ntcpsock._traversal.broker.driver import BrokerSession
from ntcpsock._traversal.broker.machine import ClientMachine
from ntcpsock.trio import NTCPStream, open_node

# Brokers, Redis and nodes are processes on a machine that may have other things to do.
session = partial(open_session, timeout=PATIENCE)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "ClientMachine", partial(ClientMachine, request_timeout=PATIENCE / 2))


CAROL, THIEF = make_identity(3), make_identity(66)

#: Bytes of a file: room for what SQLite needs to work, and for some names.
DISK = 65536

#: Seconds; the real one is 20.
KEEP_ALIVE = 1.0


def any_of(brokers: list[BrokerProcess], *, first: BrokerProcess) -> BrokerAddress:
    """All of them, in the order in which a node tries them."""
    hosts = [first.host, *(broker.host for broker in brokers if broker is not first)]
    return BrokerAddress(",".join(hosts), first.port, first.address.key)


async def comes_true(condition: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(PATIENCE):
        while not await condition():
            await trio.sleep(0.05)


async def can_meet(asker: BrokerSession, key: bytes, name: str | None = None) -> bool:
    try:
        await asker.introduce(key, 80, SEALED, name=name)
    except (PeerOffline, NameNotFound, BrokerUnreachable):
        return False
    return True


async def is_refused(asker: BrokerSession, name: str) -> bool:
    """Whether the name is another's. False: nobody can say."""
    try:
        await asker.set_registration((name,), (), None, None)
    except NameTaken:
        return True
    except BrokerUnreachable:
        return False
    raise AssertionError(f"{name} has changed hands")


@asynccontextmanager
async def counting(mine: NTCPStream, theirs: NTCPStream) -> AsyncIterator[Callable[[], int]]:
    """Numbers go over a stream and back for as long as the block lasts, each checked; how many have come back."""
    count = 0

    async def echo() -> None:
        while True:
            await theirs.send_all(await theirs.receive_some(65536))

    async def ask() -> None:
        nonlocal count
        while True:
            word = b"%08d" % count
            await mine.send_all(word)
            got = b""
            while len(got) < len(word):
                got += await mine.receive_some(65536)
            assert got == word
            count += 1
            await trio.sleep(0.002)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        nursery.start_soon(ask)
        yield lambda: count
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def stream_between_two(
    broker: BrokerAddress, folder: Path
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """A stream between two nodes of a broker, in use for as long as the block lasts; waits until it has gone on."""
    config = Config(broker=str(broker), keep_alive="fixed", keep_alive_interval=KEEP_ALIVE)
    async with (
        open_node(config, name="erin", state_dir=folder / "erin") as erin,
        open_node(config, state_dir=folder / "frank") as frank,
        await erin.open_listener(8000) as listener,
        await frank.open_stream("erin", 8000) as mine,
        await listener.accept() as theirs,
        counting(mine, theirs) as count,
    ):

        async def goes_on() -> None:
            before = count()

            async def went_on() -> bool:
                return count() > before + 10

            await comes_true(went_on)

        await goes_on()
        yield goes_on


@needs_redis
async def test_a_killed_broker_s_nodes_come_back_at_the_others(tmp_path: Path) -> None:
    with (
        running_redis(tmp_path / "redis") as redis,
        running_cluster(tmp_path, 3, "--store", redis.url, "--stun-port", "0", script="serve") as brokers,
    ):
        first, second, third = brokers
        home = any_of(brokers, first=first)
        alice_config = Config(broker=str(home), name="alice", state_dir=tmp_path / "alice")
        bob_config = Config(broker=str(home), name="bob", state_dir=tmp_path / "bob")
        settings: dict[str, object] = {"keep_alive": "fixed", "keep_alive_interval": KEEP_ALIVE}
        async with (
            open_node(alice_config, **settings) as alice,
            open_node(bob_config, **settings) as bob,
            session(third.address, CAROL) as carol,
            session(second.address, THIEF) as thief,
        ):
            async with await alice.open_listener(8000) as listener:
                async with await bob.open_stream("alice", 8000) as mine, await listener.accept() as theirs:
                    async with counting(mine, theirs) as count:
                        key = await carol.lookup("alice")
                        assert await can_meet(carol, key, "alice")
                        first.kill()
                        assert await is_refused(thief, "alice")
                        before = count()
                        await comes_true(lambda: can_meet(carol, key, "alice"))
                        assert await is_refused(thief, "alice")
                        assert await is_refused(thief, "bob")
                        assert await carol.lookup("alice") == key

                        async def went_on() -> bool:
                            return count() > before + 10

                        await comes_true(went_on)
                        # And when it has come back, as another incarnation with the same key, all of it works on.
                        first.start()
                        with trio.fail_after(PATIENCE):
                            async with await bob.open_stream("alice", 8000) as again:
                                async with await listener.accept() as theirs_again:
                                    await again.send_all(b"again")
                                    assert await theirs_again.receive_some(100) == b"again"


@needs_redis
@pytest.mark.slow
@pytest.mark.parametrize("script", ["udp_broker.py", "tcp_broker.py"])
async def test_each_broker_of_three_may_end_in_turn(tmp_path: Path, script: str) -> None:
    with (
        running_redis(tmp_path / "redis") as redis,
        running_cluster(tmp_path, 3, "--store", redis.url, script=script) as brokers,
    ):
        async with (
            session(any_of(brokers, first=brokers[0]), ALICE, keep_alive_interval=KEEP_ALIVE) as alice,
            session(any_of(brokers, first=brokers[1]), BOB, keep_alive_interval=KEEP_ALIVE) as bob,
        ):
            await alice.set_registration(("alice",), (80,), b"card", None)
            for broker in brokers:
                broker.kill()
                await comes_true(lambda: can_meet(bob, ALICE.public_key, "alice"))
                broker.start()
                async with session(broker.address, THIEF) as thief:
                    await comes_true(lambda: can_meet(thief, ALICE.public_key, "alice"))
                    assert await is_refused(thief, "alice")


@needs_redis
@pytest.mark.parametrize("keep", [True, False], ids=["same data", "empty"])
async def test_redis_is_killed_and_comes_back(tmp_path: Path, keep: bool) -> None:
    """Also when it has lost all that it had: the brokers give it back."""
    with (
        running_redis(tmp_path / "redis", keep=keep) as redis,
        running_cluster(tmp_path, 3, "--store", redis.url) as (one, two, three),
    ):
        async with (
            session(one.address, ALICE) as alice,
            session(two.address, BOB) as bob,
            session(two.address, THIEF) as thief,
            session(one.address, CAROL) as carol,
            stream_between_two(one.address, tmp_path) as stream_goes_on,
        ):
            await alice.set_registration(("alice",), (80,), b"card", None)
            await comes_true(lambda: can_meet(bob, ALICE.public_key, "alice"))
            redis.kill()
            await stream_goes_on()

            async def is_away() -> bool:
                return "this broker goes on alone" in one.said() and "goes on alone" in two.said()

            await comes_true(is_away)
            # What is local goes on: names, and nodes at the same broker.
            assert await bob.lookup("alice") == ALICE.public_key
            assert await can_meet(carol, ALICE.public_key, "alice")
            with pytest.raises(PeerOffline):
                await bob.introduce(ALICE.public_key, 80, SEALED, name="alice")
            # What is known stays so; nobody gets a name that another broker could give away meanwhile.
            assert await is_refused(thief, "alice")
            for claimant in (thief, carol):
                with pytest.raises(BrokerUnreachable, match="no more registrations now"):
                    await claimant.set_registration(("fresh",), (), None, None)
            # Its owner may say it again, with another policy, and a broker that starts now knows its names.
            await alice.set_registration(("alice",), (80,), None, ("bob",))
            three.kill()
            three.start()
            async with session(three.address, CAROL) as other:
                with pytest.raises(NameNotFound):
                    await carol.lookup("alice")
                await comes_true(lambda: is_refused(other, "alice"))

            await stream_goes_on()
            redis.start()
            await bob.set_registration((), (), None, None)

            async def is_back() -> bool:
                try:
                    await bob.set_registration(("bob",), (), None, None)
                except BrokerUnreachable:
                    return False
                return await can_meet(bob, ALICE.public_key, "alice")

            await comes_true(is_back)
            async with session(three.address, THIEF) as other:
                await comes_true(lambda: is_refused(other, "alice"))

                async def follows() -> bool:
                    # The policy that was said while it was away.
                    try:
                        await other.lookup("alice")
                    except NameNotFound:
                        return True
                    return False

                await comes_true(follows)
            await stream_goes_on()
            # Those of alice, bob and erin.
            assert redis.ask("HLEN", "ntcp:names") == "3"


@needs_redis
async def test_redis_that_hangs_holds_nobody_up_for_long(tmp_path: Path) -> None:
    with (
        running_redis(tmp_path / "redis") as redis,
        running_cluster(tmp_path, 2, "--store", redis.url) as (one, two),
    ):
        async with session(one.address, ALICE) as alice, session(two.address, BOB) as bob:
            await alice.set_registration(("alice",), (80,), b"card", None)
            await comes_true(lambda: can_meet(bob, ALICE.public_key, "alice"))
            redis.signal(signal.SIGSTOP)
            try:
                assert not await can_meet(bob, ALICE.public_key, "alice")
                assert await bob.lookup("alice") == ALICE.public_key
                assert await is_refused(bob, "alice")
            finally:
                redis.signal(signal.SIGCONT)
            await comes_true(lambda: can_meet(bob, ALICE.public_key, "alice"))
            assert bob.connected


@needs_redis
async def test_places_that_expire_early_are_told_again(tmp_path: Path) -> None:
    """What a jump of Redis' clock does: all that has a time to live is gone, and nothing else is."""
    with (
        running_redis(tmp_path / "redis") as redis,
        running_cluster(tmp_path, 2, "--store", redis.url) as (one, two),
    ):
        async with session(one.address, ALICE) as alice, session(two.address, BOB) as bob:
            await alice.set_registration(("alice",), (80,), b"card", None)
            await comes_true(lambda: can_meet(bob, ALICE.public_key, "alice"))
            script = (
                "for _, key in ipairs(redis.call('KEYS', '*')) do "
                "if redis.call('TTL', key) > 0 then redis.call('DEL', key) end end"
            )
            redis.ask("EVAL", f'"{script}"', "0")
            assert not await can_meet(bob, ALICE.public_key, "alice")
            assert await bob.lookup("alice") == ALICE.public_key
            await comes_true(lambda: can_meet(bob, ALICE.public_key, "alice"))
            assert "clock has jumped" in one.said()


async def test_a_single_broker_is_killed_and_restarted(tmp_path: Path) -> None:
    with running_cluster(tmp_path, 1, "--stun-port", "0", script="serve") as (broker,):
        config = Config(broker=str(broker.address), state_dir=tmp_path / "bob")
        settings: dict[str, object] = {"keep_alive": "fixed", "keep_alive_interval": KEEP_ALIVE}
        async with (
            open_node(config, name="alice", state_dir=tmp_path / "alice", **settings) as alice,
            open_node(config, name="bob", **settings) as bob,
        ):
            async with await alice.open_listener(8000) as listener:
                async with await bob.open_stream("alice", 8000) as mine, await listener.accept() as theirs:
                    async with counting(mine, theirs) as count:
                        broker.kill()
                        before = count()
                        broker.start()
                        async with session(broker.address, THIEF) as thief:
                            assert await is_refused(thief, "alice")
                            assert await is_refused(thief, "bob")
                            key = await thief.lookup("alice")
                            await comes_true(lambda: can_meet(thief, key, "alice"))

                        async def went_on() -> bool:
                            return count() > before + 10

                        await comes_true(went_on)


async def test_a_restart_with_a_new_key_fools_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key file is lost: nodes do not talk to what they take for an impostor, streams go on, and the old key heals
    all of it."""
    # A dial is to hear of the other key before its own time is over.
    monkeypatch.setattr(reach, "ClientMachine", ClientMachine)
    with running_cluster(tmp_path, 1, "--stun-port", "0", script="serve") as (broker,):
        config = Config(broker=str(broker.address), state_dir=tmp_path / "bob")
        settings: dict[str, object] = {"keep_alive": "fixed", "keep_alive_interval": KEEP_ALIVE}
        async with (
            open_node(config, name="alice", state_dir=tmp_path / "alice", **settings) as alice,
            open_node(config, name="bob", **settings) as bob,
        ):
            async with await alice.open_listener(8000) as listener:
                async with await bob.open_stream("alice", 8000) as mine, await listener.accept() as theirs:
                    async with counting(mine, theirs) as count:
                        old, key = broker.address, decode_node_id(alice.node_id)
                        assert key is not None
                        broker.kill()
                        (broker.state / "broker.key").unlink()
                        new = broker.start()
                        assert new.key != old.key

                        async def says_so() -> bool:
                            try:
                                await bob.open_stream("carol", 1)
                            except IdentityMismatch:
                                return True
                            except OSError:
                                pass
                            return False

                        await comes_true(says_so)
                        async with session(new, THIEF) as thief:
                            assert not await can_meet(thief, key)
                            assert await is_refused(thief, "alice")
                        broker.kill()
                        share_keys(tmp_path, broker.state)
                        assert broker.start() == old
                        before = count()
                        with trio.fail_after(PATIENCE):
                            while True:
                                try:
                                    await (await bob.open_stream("alice", 8000)).aclose()
                                    break
                                except OSError:
                                    await trio.sleep(0.1)
                        async with session(old, THIEF) as thief:
                            assert await is_refused(thief, "alice")

                        async def went_on() -> bool:
                            return count() > before + 10

                        await comes_true(went_on)


@pytest.mark.parametrize("clustered", [False, pytest.param(True, marks=needs_redis)])
async def test_a_full_disk_costs_new_names_and_nothing_else(tmp_path: Path, clustered: bool) -> None:
    """In a cluster not even those: the others have them."""
    state = tmp_path / "state"
    share_keys(tmp_path, state)
    server: AbstractContextManager[RedisServer | None] = (
        running_redis(tmp_path / "redis") if clustered else nullcontext()
    )
    with server as redis:
        store = [] if redis is None else ["--store", redis.url]
        broker = BrokerProcess("udp_broker.py", "127.0.0.1", free_port(), state, *store)
        broker.start()
        try:
            async with session(broker.address, ALICE) as alice:
                await alice.set_registration(("alice",), (80,), b"card", None)
            broker.stop()
            assert (state / "names.sqlite").stat().st_size < DISK
            broker.start(limit_file_size=DISK)
            async with (
                session(broker.address, ALICE, keep_alive_interval=KEEP_ALIVE) as alice,
                session(broker.address, BOB) as bob,
                stream_between_two(broker.address, tmp_path) as stream_goes_on,
            ):
                await alice.set_registration(("alice",), (80,), b"card", None)
                names = [f"{'long-' * 12}{number}" for number in range(200)]
                written = 0
                for at in range(0, len(names), 8):
                    async with session(broker.address, make_identity(1000 + at)) as claimant:
                        try:
                            await claimant.set_registration(tuple(names[at : at + 8]), (), None, None)
                            written += 1
                        except BrokerUnreachable:
                            assert not clustered
                assert written == 25 if clustered else 0 < written < 25
                # It goes on, and says so.
                assert await bob.lookup("alice") == ALICE.public_key
                assert await can_meet(bob, ALICE.public_key, "alice")
                assert await is_refused(bob, "alice")
                assert await bob.lookup(names[0])

                async def says_so() -> bool:
                    return "the disk takes no" in broker.said()

                await comes_true(says_so)
                await stream_goes_on()
                # Its disk is as full when it starts again: who was registered is again, under the same names.
                broker.kill()
                broker.start(limit_file_size=DISK)
                await comes_true(lambda: can_meet(bob, ALICE.public_key, "alice"))
                assert await is_refused(bob, "alice")
                assert await is_refused(bob, "erin")
                await stream_goes_on()
            broker.kill()
            broker.start()
            async with session(broker.address, BOB) as bob:
                assert await bob.lookup("alice") == ALICE.public_key
                assert await is_refused(bob, "alice")
                await bob.set_registration(("bob",), (), None, None)
        finally:
            broker.kill()
