"""How long a round over UDP goes on: until nobody was met, or until the way that was met is chosen."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio

from ntcpsock._address import Endpoint
from ntcpsock._traversal.strategies.udp_spray import MET_PATIENCE, wait_nominated

PATIENCE = 1.5


@pytest.mark.parametrize(
    ("met", "chosen", "ends"),
    [
        (None, None, PATIENCE),
        (0.3, 0.4, 0.4),
        # A busy machine.
        (1.4, 1.9, 1.9),
        (1.4, None, PATIENCE + MET_PATIENCE),
    ],
)
async def test_what_has_been_met_has_a_moment_more(
    autojump_clock: trio.testing.MockClock, met: float | None, chosen: float | None, ends: float
) -> None:
    begin = trio.current_time()
    path: Any = SimpleNamespace(machine=SimpleNamespace(selected=None), remote=Endpoint("0.0.0.0", 0))

    async def nominated() -> None:
        await trio.sleep_until(begin + (1000.0 if chosen is None else chosen))
        path.machine.selected = (0, path.remote)

    async def meet() -> None:
        if met is not None:
            await trio.sleep_until(begin + met)
            path.remote = Endpoint("192.0.2.1", 7000)

    path.wait_nominated = nominated
    async with trio.open_nursery() as nursery:
        nursery.start_soon(meet)
        await wait_nominated(path, PATIENCE)
    assert trio.current_time() - begin == pytest.approx(ends)
    assert (path.machine.selected is None) == (chosen is None)
