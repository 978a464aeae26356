"""Brokers of a cluster as processes, with a real redis-server: nodes at different ones find and reach each other."""

from __future__ import annotations

import subprocess
import sys
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
import trio
from broker_driver_support import ALICE, BOB
from broker_driver_support import session as open_session
from broker_support import SEALED, make_identity
from redis_support import (
    PATIENCE,
    SERVERS,
    BrokerProcess,
    free_port,
    needs_redis,
    running_cluster,
    running_redis,
    running_relay,
)
from test_relay_connect import check_both_ways

from ntcpsock._address import encode_node_id
from ntcpsock._config import Config
from ntcpsock._errors import NameNotFound, NameTaken, PeerOffline
from ntcpsock._traversal.broker import reach
from ntcpsock._traversal.broker.driver import BrokerSession, Delivery, Introduction
from ntcpsock._traversal.broker.machine import ClientMachine
from ntcpsock.trio import open_node

pytestmark = needs_redis

# Brokers, Redis and nodes are processes on a machine that may have other things to do.
session = partial(open_session, timeout=PATIENCE)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "ClientMachine", partial(ClientMachine, request_timeout=PATIENCE / 2))


CAROL, THIEF = make_identity(3), make_identity(66)


async def test_nodes_at_three_brokers_find_and_meet_each_other(tmp_path: Path) -> None:
    with (
        running_redis(tmp_path / "redis") as redis,
        running_cluster(tmp_path, 3, "--store", redis.url) as (one, two, three),
    ):
        async with (
            session(one.address, ALICE) as alice,
            session(two.address, BOB) as bob,
            session(three.address, CAROL) as carol,
        ):
            await alice.set_registration(("alice",), (8000,), b"card", None)
            await bob.set_registration(("bob",), (), None, None)
            # Known everywhere at once, whether or not it has come round.
            for asker in (bob, carol):
                assert await asker.lookup("alice") == ALICE.public_key
                with pytest.raises(NameTaken):
                    await asker.set_registration(("alice",), (), None, None)
                introduction = await asker.introduce(ALICE.public_key, 8000, SEALED, name="alice")
                assert introduction == Introduction(
                    ALICE.public_key, alice.instance, b"card", "127.0.0.1", (), introduction.tickets
                )
                delivery = await alice.deliveries.receive()
                name = "bob" if asker is bob else None
                sender = BOB if asker is bob else CAROL
                assert delivery == Delivery(sender.public_key, asker.instance, name, SEALED, "127.0.0.1")
                alice.send_reply(sender.public_key, asker.instance, SEALED + b"answer")
                with trio.fail_after(30):
                    answer = await asker.deliveries.receive()
                assert answer == Delivery(
                    ALICE.public_key, alice.instance, "alice", SEALED + b"answer", "127.0.0.1"
                )
            with pytest.raises(NameNotFound):
                await carol.lookup("nobody")
            with pytest.raises(PeerOffline):
                await carol.introduce(make_identity(9).public_key, 1, SEALED)


async def test_a_name_that_many_claim_at_once_has_one_owner(tmp_path: Path) -> None:
    with (
        running_redis(tmp_path / "redis") as redis,
        running_cluster(tmp_path, 3, "--store", redis.url) as brokers,
    ):
        owners: list[bytes] = []
        losers: list[bytes] = []
        claimants = [make_identity(number) for number in range(100, 118)]
        async with AsyncExitStack() as stack:
            sessions = [
                await stack.enter_async_context(session(brokers[number % 3].address, identity))
                for number, identity in enumerate(claimants)
            ]

            async def claim(number: int) -> None:
                key = claimants[number].public_key
                try:
                    await sessions[number].set_registration(("prize", f"own-{number}"), (), None, None)
                    owners.append(key)
                except NameTaken:
                    losers.append(key)

            async with trio.open_nursery() as nursery:
                for number in range(len(claimants)):
                    nursery.start_soon(claim, number)
            assert len(owners) == 1
            assert len(losers) == len(claimants) - 1
            for asker in sessions[:3]:
                assert await asker.lookup("prize") == owners[0]
                # All of a registration's names, or none.
                for number, identity in enumerate(claimants):
                    if identity.public_key == owners[0]:
                        assert await asker.lookup(f"own-{number}") == owners[0]
                    else:
                        with pytest.raises(NameNotFound):
                            await asker.lookup(f"own-{number}")


@pytest.mark.parametrize("script", ["tcp_broker.py", "serve"])
async def test_streams_between_nodes_of_different_brokers(tmp_path: Path, script: str) -> None:
    """Over WebSockets alone, and with everything; directly, and through the relay of a broker that one of the two has
    never heard of: all of them share its key."""
    places = ["--relay", f"127.0.0.1:{free_port()}"]
    extra = ["--stun-port", "0"] if script == "serve" else []
    with (
        running_redis(tmp_path / "redis") as redis,
        running_relay(tmp_path, int(places[1].rpartition(":")[2])),
        running_cluster(tmp_path, 2, "--store", redis.url, *places, *extra, script=script) as (one, two),
    ):
        async with (
            open_node(
                Config(broker=str(one.address), name="alice", state_dir=tmp_path / "alice"),
                keep_alive="fixed",
            ) as alice,
            open_node(Config(broker=str(two.address), name="bob", state_dir=tmp_path / "bob")) as bob,
            open_node(
                Config(broker=str(two.address), name="carol", state_dir=tmp_path / "carol", relay="only")
            ) as carol,
        ):
            async with await alice.open_listener(8000) as listener:
                for dialler, name, relayed in ((bob, "bob", False), (carol, "carol", True)):
                    with trio.fail_after(PATIENCE):
                        async with await dialler.open_stream("alice", 8000) as mine:
                            async with await listener.accept() as theirs:
                                assert theirs.peer.name == name
                                assert (mine.path.kind == "relay") is relayed
                                await check_both_ways(mine, theirs)
        if script == "tcp_broker.py":
            assert "udp" not in one.said()


async def test_a_store_of_other_brokers_is_refused(tmp_path: Path) -> None:
    with running_redis(tmp_path / "redis") as redis:
        with running_cluster(tmp_path / "first", 1, "--store", redis.url):
            done = await trio.run_process(
                [
                    *(sys.executable, str(SERVERS / "udp_broker.py"), "--listen", "127.0.0.1", "--port", "0"),
                    *("--state-dir", str(tmp_path / "other"), "--store", redis.url),
                ],
                capture_stderr=True,
                check=False,
            )
    assert done.returncode == 1
    assert b"broker.key and relay.key" in done.stderr
    assert done.stderr.startswith(b"udp_broker: the store belongs to brokers with the key ")


async def test_a_single_broker_brings_its_names_along(tmp_path: Path) -> None:
    with running_cluster(tmp_path, 2) as (one, two):
        async with session(one.address, ALICE) as alice:
            await alice.set_registration(("alice",), (), None, None)
        one.stop()
        two.stop()
        with running_redis(tmp_path / "redis") as redis:
            one.start("--store", redis.url)
            two.start("--store", redis.url)
            async with session(two.address, BOB) as bob:
                assert await bob.lookup("alice") == ALICE.public_key
                with pytest.raises(NameTaken):
                    await bob.set_registration(("alice",), (), None, None)


async def test_a_node_that_leaves_or_moves_is_met_where_it_is(tmp_path: Path) -> None:
    """Two instances of one node at two brokers: who asks for a port gets the one with it; after a Bye, the other."""
    with (
        running_redis(tmp_path / "redis") as redis,
        running_cluster(tmp_path, 3, "--store", redis.url) as (one, two, three),
    ):
        async with session(three.address, BOB) as bob, session(two.address, ALICE) as second:
            async with session(one.address, ALICE) as first:
                await first.set_registration(("alice",), (8000,), b"first", None)
                assert (await met(bob, 8000, b"first")).card == b"first"
                await second.set_registration(("alice",), (9000,), b"second", None)
                for port, card in ((8000, b"first"), (9000, b"second"), (1, b"second")):
                    assert (await met(bob, port, card)).card == card
                # At a broker that has one of them, without the port that is asked for.
                async with session(one.address, CAROL) as carol:
                    assert (await met(carol, 9000, b"second")).card == b"second"
                    assert (await met(carol, 7, b"first")).card == b"first"
                # To a certain instance, whichever ports it has.
                for one_of_them in (first, second):
                    introduction = await bob.introduce(
                        ALICE.public_key, 1, SEALED, instance=one_of_them.instance
                    )
                    assert introduction.instance == one_of_them.instance
                with pytest.raises(PeerOffline):
                    await bob.introduce(ALICE.public_key, 8000, SEALED, instance=b"nobody's")
            assert (await met(bob, 8000, b"second")).card == b"second"


async def met(asker: BrokerSession, port: int, card: bytes) -> Introduction:
    """What a node is told comes round in a moment."""
    with trio.fail_after(PATIENCE):
        while True:
            try:
                introduction = await asker.introduce(ALICE.public_key, port, SEALED)
            except PeerOffline:
                continue
            if introduction.card == card:
                return introduction
            await trio.sleep(0.02)


async def test_an_operator_s_word_about_a_name_holds_at_all_brokers(tmp_path: Path) -> None:
    def operate(broker: BrokerProcess, *words: str) -> subprocess.CompletedProcess[str]:
        socket = ("--socket", str(broker.state / "admin-udp_broker.sock"))
        return subprocess.run(
            [sys.executable, "-m", "ntcpsock", "admin", "names", *words, *socket],
            capture_output=True,
            text=True,
        )

    with (
        running_redis(tmp_path / "redis") as redis,
        running_cluster(tmp_path, 2, "--store", redis.url) as (one, two),
    ):
        async with session(one.address, ALICE) as alice, session(two.address, BOB) as bob:
            await alice.set_registration(("alice",), (), None, None)
            assert await bob.lookup("alice") == ALICE.public_key
            done = await trio.to_thread.run_sync(
                operate, two, "give", "alice", encode_node_id(CAROL.public_key)
            )
            assert done.returncode == 0, done.stderr
            async with session(one.address, THIEF) as thief:
                with trio.fail_after(PATIENCE):
                    while await thief.lookup("alice") != CAROL.public_key:
                        await trio.sleep(0.02)
                done = await trio.to_thread.run_sync(operate, one, "free", "alice")
                assert done.returncode == 0, done.stderr
                with trio.fail_after(PATIENCE):
                    while True:
                        try:
                            await bob.set_registration(("alice",), (), None, None)
                            break
                        except NameTaken:
                            await trio.sleep(0.02)
                assert await thief.lookup("alice") == BOB.public_key
                redis.kill()
                with trio.fail_after(PATIENCE):
                    while "goes on alone" not in one.said():
                        await trio.sleep(0.02)
                done = await trio.to_thread.run_sync(operate, one, "free", "alice")
                assert done.returncode == 1
                assert "the store is away" in done.stdout + done.stderr
