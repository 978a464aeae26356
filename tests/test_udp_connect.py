"""connect() over UDP from end to end on loopback: checks, QUIC, the race with TCP."""

from __future__ import annotations

import errno
import gc
import select
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from world import open_world

from ntcpsock._node import Node
from ntcpsock._readiness import HasDescriptor, Readiness
from ntcpsock._session.stream import NTCPStream


@pytest.fixture(autouse=True)
def leaks_show_where_they_are_made() -> Iterator[None]:
    yield
    gc.collect()


async def accept_one(node: Node, port: int, dialer: Node, name: str) -> tuple[NTCPStream, NTCPStream]:
    async with await node.open_listener(port) as listener:
        dialled = await dialer.open_stream(name, port)
        with trio.fail_after(5):
            return dialled, await listener.accept()


async def test_a_stream_over_udp(tmp_path: Path) -> None:
    async with (
        open_world(tmp_path) as world,
        world.node("alice") as alice,
        world.node("bob", techniques=("udp-punch",)) as bob,
    ):
        for name in ("alice", alice.node_id):
            dialled, accepted = await accept_one(alice, 8000, bob, name)
            async with dialled, accepted:
                await dialled.send_all(b"there")
                assert await accepted.receive_some() == b"there"
                await accepted.send_all(b"and back")
                assert await dialled.receive_some() == b"and back"
                assert dialled.path.kind == accepted.path.kind == "udp"
                assert dialled.path.technique == accepted.path.technique == "udp-punch"
                assert dialled.path.remote[1] == accepted.path.local[1]


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="what watches needs Linux")
@pytest.mark.parametrize("watched", [0, 1])
async def test_where_nothing_more_can_be_watched_ports_have_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watched: int
) -> None:
    """The system's watches are used up before the port's first socket, or after it."""
    refusing = []
    watch = Readiness.watch

    def watch_few(self: Readiness, source: HasDescriptor, callback: Callable[[], None]) -> None:
        if len(self._callbacks) >= watched:
            refusing.append(self)
            raise OSError(errno.ENOSPC, "no more watches")
        watch(self, source, callback)

    monkeypatch.setattr(Readiness, "watch", watch_few)
    async with (
        open_world(tmp_path) as world,
        world.node("alice") as alice,
        world.node("bob", techniques=("udp-punch",)) as bob,
    ):
        dialled, accepted = await accept_one(alice, 8000, bob, "alice")
        async with dialled, accepted:
            assert dialled.path.technique == "udp-punch"
            await dialled.send_all(b"there")
            assert await accepted.receive_some() == b"there"
    assert refusing
    assert not refusing[0]._callbacks
