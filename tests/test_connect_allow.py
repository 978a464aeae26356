"""Who may come in: allow lists, and what those hear who are not on them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from world import open_world

from ntcpsock._errors import (
    NameNotFound,
    NTCPError,
    PeerRefused,
)
from ntcpsock._identity import Identity
from ntcpsock._traversal.broker.driver import Delivery
from ntcpsock._traversal.punch.message import Answer, Offer


@pytest.fixture(autouse=True)
def leaks_show_where_they_are_made() -> Iterator[None]:
    """A socket that nobody closed is an error (ResourceWarning) in the test that made it, not in a later one."""
    yield
    gc.collect()


async def test_allow_lists(tmp_path: Path) -> None:
    async with (
        open_world(tmp_path) as world,
        world.node("bob") as bob,
        world.node() as carol,
        world.node() as eve,
    ):
        allow = ("bob", carol.node_id)
        async with world.node("alice", allow=allow) as alice, await alice.open_listener(8000) as listener:
            for friend in (bob, carol):
                dialled = await friend.open_stream("alice", 8000)
                accepted = await listener.accept()
                assert accepted.peer.node_id == friend.node_id
                assert [stage.name for stage in dialled.report.stages][-3:] == ["answer", "punch", "bind"]
                for stream in (dialled, accepted):
                    stream.reset()
            with pytest.raises(PeerRefused):
                await bob.open_stream("alice", 1)  # a friend may know that nothing listens there
            refusals: list[NTCPError] = []
            for name in ("alice", "nobody"):
                with pytest.raises(NameNotFound) as by_name:
                    await eve.open_stream(name, 8000)
                refusals.append(by_name.value)
            first, second = (str(error).replace("alice", "X").replace("nobody", "X") for error in refusals)
            assert first == second
            texts = []
            for node_id in (alice.node_id, Identity.generate().node_id):
                with pytest.raises(NTCPError) as by_id:
                    await eve.open_stream(node_id, 8000)
                texts.append((type(by_id.value), by_id.value.errno, str(by_id.value).replace(node_id, "X")))
            assert texts[0] == texts[1]


async def test_the_listener_itself_keeps_strangers_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even when the broker lets an offer through, the listener answers a stranger nothing."""
    async with open_world(tmp_path) as world, world.node() as eve:
        async with world.node("alice", allow=("nobody-else",)) as alice, await alice.open_listener(8000):
            warm = await eve.take_port()
            answers: list[Answer] = []
            monkeypatch.setattr(alice.introductions, "reply", lambda _, answer: answers.append(answer))
            offer = Offer(bytes(16), bytes(32), 8000, 1, warm.candidates)
            await alice._acceptor.offered(Delivery(eve._identity.public_key, bytes(8), None, b""), offer)
            assert answers == []
            assert alice._acceptor.refused["not allowed"] == 1
            warm.close()


async def test_an_open_port_beside_a_private_one(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as eve:
        async with await alice.open_listener(1), await alice.open_listener(2, allow=("bob",)):
            with pytest.raises(PeerRefused) as private:
                await eve.open_stream("alice", 2)
            with pytest.raises(PeerRefused) as closed:
                await eve.open_stream("alice", 3)
            assert str(private.value).replace("2", "3") == str(closed.value)
