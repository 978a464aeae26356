"""What a dial leaves behind: nothing, at both ends, whether it succeeds, fails or is cancelled."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from world import World, open_world

from ntcpsock._address import Endpoint
from ntcpsock._errors import TraversalFailed
from ntcpsock._node import Node
from ntcpsock._traversal import accept, follow
from ntcpsock._traversal.aim import Standpoint
from ntcpsock._traversal.strategies import STRATEGIES
from ntcpsock._traversal.strategies.base import AttemptContext, Connection


@pytest.fixture(autouse=True)
def leaks_show_where_they_are_made() -> Iterator[None]:
    """A socket that nobody closed is an error (ResourceWarning) in the test that made it, not in a later one."""
    yield
    gc.collect()


def tasks_and_descriptors() -> tuple[int, int]:
    return trio.lowlevel.current_statistics().tasks_living, len(os.listdir("/proc/self/fd"))


def closing_paths(node: Node) -> list[str]:
    """Connections over UDP that lost a race: they say so, and are there for a moment to say it again (RFC 9000
    section 10.2)."""
    tasks = [task.name for task in node.nursery.child_tasks]
    return [name for name in tasks if "PunchedPath" in name or "QuicDriver" in name]


async def settled(world: World, *nodes: Node) -> tuple[int, int]:
    """Tasks and descriptors when nothing of a dial is left to be done: pools are full, no dial is pending."""
    with trio.fail_after(60):
        while True:
            for node in nodes:
                await node.wait_warm()
            full = all(
                len(node._ports.for_dials._ready) == node.config.warm_ports
                and not node._ports.for_dials._gathering
                for node in nodes
            )
            if full and not any(
                node._acceptor.dials.under_way or node.introductions._dials or closing_paths(node)
                for node in nodes
            ):
                await trio.testing.wait_all_tasks_blocked(0.05)
                return tasks_and_descriptors()
            await trio.sleep(0.02)


async def connections_of(port: int) -> int | None:
    """What the kernel has at a TCP port, closed ones that it still remembers apart; None where nobody tells."""
    if shutil.which("ss") is None:
        return None
    seen = await trio.run_process(
        ["ss", "-Htn", f"( sport = :{port} or dport = :{port} )"], capture_stdout=True
    )
    return len(seen.stdout.splitlines())


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Attempts that hold a socket and get no answer; how each has ended. And a listener that is patient."""
    ended: list[str] = []

    async def attempt(context: AttemptContext) -> Connection:
        sock = trio.socket.socket()
        try:
            await trio.sleep_forever()
        finally:
            sock.close()
            ended.append(context.role)
        raise AssertionError

    for technique in STRATEGIES:
        monkeypatch.setitem(STRATEGIES, technique, attempt)
    for module in (accept, follow):
        monkeypatch.setattr(module, "DIAL_BUDGET", 10_000.0)
    monkeypatch.setattr("ntcpsock._traversal.direct.RACE_BUDGET", 0.5)
    return ended


async def test_a_dial_that_fails_leaves_nothing_at_either_end(tmp_path: Path, never: list[str]) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as bob:
        async with await alice.open_listener(8000):
            before = await settled(world, alice, bob)
            for _ in range(3):
                with pytest.raises(TraversalFailed):
                    await bob.open_stream("alice", 8000)
            assert await settled(world, alice, bob) == before
            assert set(never) == {"leader", "follower"}


async def test_a_dial_that_is_cancelled_leaves_nothing_at_either_end(
    tmp_path: Path, never: list[str]
) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as bob:
        async with await alice.open_listener(8000):
            before = await settled(world, alice, bob)
            with trio.move_on_after(60) as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(bob.open_stream, "alice", 8000)
                    while not alice._acceptor.dials.under_way:
                        await trio.sleep(0.01)
                    scope.cancel()
            assert await settled(world, alice, bob) == before


async def test_only_the_winner_is_left_and_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends reach each other at several addresses at once: one connection stays, and passes data."""
    places = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
    targets = Standpoint.targets

    def everywhere(self: Standpoint, *args: object) -> tuple[object, ...]:
        found = targets(self, *args)  # type: ignore[arg-type]
        return tuple(
            type(found[0])("host", found[0].transport, place, found[0].port) for place in places if found
        )

    monkeypatch.setattr(Standpoint, "targets", everywhere)
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as bob:
        async with await alice.open_listener(8000) as listener:
            before = await settled(world, alice, bob)
            for _ in range(5):
                dialled = await bob.open_stream("alice", 8000)
                accepted = await listener.accept()
                _, descriptors = await settled(world, alice, bob)
                assert descriptors == before[1] + 2
                assert await connections_of(dialled.path.local[1]) in (2, None)  # its two ends
                for sender, receiver in ((dialled, accepted), (accepted, dialled)):
                    await sender.send_all(b"x" * 1000)
                    assert len(await receiver.receive_some(1000)) == 1000
                assert len({entry.remote for entry in dialled.report.attempts}) >= 2
                for stream in (dialled, accepted):
                    stream.reset()
            assert await settled(world, alice, bob) == before
            assert Endpoint(*accepted.path.remote).host.startswith("127.")
