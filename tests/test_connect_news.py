"""A listener whose candidates change while a dial is under way: its card is older than its answer, or both are."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from world import World, open_world

from ntcpsock._node import Node
from ntcpsock._traversal.punch.message import Candidate

PORT = 7000
PATIENCE = 60.0  # seconds until a wait is given up


@asynccontextmanager
async def misplaced_listener(world: World) -> AsyncIterator[tuple[Node, tuple[Candidate, ...]]]:
    """A node called bob whose card leads nowhere, and where it really is. It connects to nobody itself."""
    async with world.node("bob", techniques=("tcp-open",)) as bob, await bob.open_listener(PORT):
        warm = bob.listening_port
        assert warm is not None
        true = warm.candidates
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            warm.candidates = (Candidate("host", "tcp", "127.0.0.1", closed.getsockname()[1]),)
        await bob.registration.send()
        yield bob, true


async def test_an_answer_that_is_newer_than_the_card(tmp_path: Path) -> None:
    with trio.fail_after(PATIENCE):
        async with open_world(tmp_path) as world, misplaced_listener(world) as (bob, true):
            assert bob.listening_port is not None
            bob.listening_port.candidates = true
            async with world.node() as alice, await alice.open_stream("bob", PORT) as stream:
                assert stream.path.remote in [candidate.endpoint for candidate in true]


async def test_a_card_that_is_newer_than_the_answer(tmp_path: Path) -> None:
    with trio.fail_after(PATIENCE):
        async with (
            open_world(tmp_path) as world,
            misplaced_listener(world) as (bob, true),
            world.node() as alice,
            trio.open_nursery() as nursery,
        ):

            async def dial() -> None:
                async with await alice.open_stream("bob", PORT) as stream:
                    assert stream.path.remote in [candidate.endpoint for candidate in true]

            nursery.start_soon(dial)
            while not bob._acceptor.dials.under_way:
                await trio.sleep(0.01)
            # The offer has been answered: in the same step as it was let in.
            assert bob.listening_port is not None
            bob.listening_port.candidates = true
            await bob.registration.send()
