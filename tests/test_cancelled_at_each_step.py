"""A connect that is cancelled at any step, of whatever kind its path is, leaves nothing behind at either end."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import trio
from test_connect_leftovers import settled
from test_relay_connect import reset_arrivals, until_relay_is_free
from world import open_world

from ntcpsock._traversal import accept, follow

#: Steps of all tasks that one connect takes at most.
MOST_STEPS = 5000

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


@pytest.mark.parametrize("path", PATHS)
async def test_a_connect_cancelled_at_each_step(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A listener that is left by its dialer waits no longer.
    for module in (accept, follow):
        monkeypatch.setattr(module, "DIAL_BUDGET", 1.0)
    settings = PATHS[path]
    async with open_world(tmp_path, tcp=True) as world:
        async with world.node("alice", **settings) as alice, world.node(**settings) as bob:
            async with await alice.open_listener(8000) as listening, trio.open_nursery() as nursery:
                nursery.start_soon(reset_arrivals, listening)
                (await bob.open_stream("alice", 8000)).reset()
                before = await settled(world, alice, bob)
                for number in range(1, MOST_STEPS):
                    stream = None
                    with trio.CancelScope() as scope:
                        instrument = CancelAt(number, scope)
                        trio.lowlevel.add_instrument(instrument)
                        try:
                            stream = await bob.open_stream("alice", 8000)
                        finally:
                            trio.lowlevel.remove_instrument(instrument)
                    if stream is not None:
                        stream.reset()
                        if instrument.left > 0:
                            break
                assert 20 < number < MOST_STEPS - 1
                await until_relay_is_free(world)
                gc.collect()
                assert await settled(world, alice, bob) == before
                nursery.cancel_scope.cancel()
    # What nobody closed is an error here.
    gc.collect()
