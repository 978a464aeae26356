"""Brokers of a cluster as processes, with a real redis-server: nodes at different ones find and reach each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from broker_driver_support import ALICE, BOB, session
from broker_support import SEALED, make_identity
from redis_support import needs_redis, running_cluster, running_redis

from ntcpsock._errors import NameNotFound, NameTaken, PeerOffline
from ntcpsock._traversal.broker.driver import Delivery, Introduction

pytestmark = needs_redis

CAROL = make_identity(3)


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
