"""connect() over UDP from end to end on loopback: checks, QUIC, the race with TCP."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from world import open_world

from ntcpsock._node import Node
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
