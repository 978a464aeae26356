"""What is cancelled at any step, whichever that is, leaves nothing behind, at either end."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from test_connect_leftovers import settled, tasks_and_descriptors
from test_relay_connect import reset_arrivals, until_relay_is_free
from world import World, open_world

from ntcpsock._traversal import accept, follow
from ntcpsock.trio import open_node

#: Steps of all tasks that one of these takes at most.
MOST_STEPS = 20_000

PATHS: dict[str, dict[str, Any]] = {
    "tcp": {"techniques": ("lan", "public", "tcp-open")},
    "udp": {"techniques": ("udp-punch",)},
    "plain": {"encryption": "off", "relay": "never", "techniques": ("lan", "public", "tcp-open")},
    "relay": {"relay": "only"},
}


class CancelAt(trio.abc.Instrument):
    """Cancels a scope before the step of that number, of any task."""

    def __init__(self, number: int, scope: trio.CancelScope) -> None:
        self.left = number
        self._scope = scope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.left -= 1
        if self.left == 0:
            self._scope.cancel()


async def cancel_at_each_step(operation: Callable[[], Awaitable[object]], stride: int = 1) -> int:
    """Run it again and again, each time up to a later step, until it is through. The number of steps."""
    for number in range(1, MOST_STEPS, stride):
        with trio.CancelScope() as scope:
            instrument = CancelAt(number, scope)
            trio.lowlevel.add_instrument(instrument)
            try:
                await operation()
            finally:
                trio.lowlevel.remove_instrument(instrument)
        if instrument.left > 0:
            return number
    raise AssertionError("it takes too many steps")


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that is left by its dialer waits no longer."""
    for module in (accept, follow):
        monkeypatch.setattr(module, "DIAL_BUDGET", 1.0)


@pytest.mark.parametrize("path", PATHS)
async def test_a_connect(tmp_path: Path, path: str) -> None:
    settings = PATHS[path]
    async with open_world(tmp_path, tcp=True) as world:
        async with world.node("alice", **settings) as alice, world.node(**settings) as bob:
            async with await alice.open_listener(8000) as listening, trio.open_nursery() as nursery:

                async def connect() -> None:
                    (await bob.open_stream("alice", 8000)).reset()

                nursery.start_soon(reset_arrivals, listening)
                await connect()
                before = await settled(world, alice, bob)
                assert await cancel_at_each_step(connect) > 20
                await until_relay_is_free(world)
                gc.collect()
                assert await settled(world, alice, bob) == before
                nursery.cancel_scope.cancel()
    # What nobody closed is an error here.
    gc.collect()


async def counted(world: World) -> tuple[int, int]:
    """Tasks and descriptors when the servers have nothing left to do."""
    await trio.testing.wait_all_tasks_blocked(0.2)
    gc.collect()
    return tasks_and_descriptors()


@pytest.mark.parametrize("tcp", [False, True])
async def test_a_node_and_its_listener(tmp_path: Path, tcp: bool) -> None:
    async with open_world(tmp_path, tcp=tcp) as world:
        config = world.config("alice")

        async def listen() -> None:
            async with open_node(config) as node, await node.open_listener(8000):
                await node.wait_warm()

        await listen()
        before = await counted(world)
        assert await cancel_at_each_step(listen) > 50
        assert await counted(world) == before
