"""Tells, while a command carries a connection, to which other paths it moves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from ntcpsock._report import Move
    from ntcpsock.trio import NTCPStream


@asynccontextmanager
async def telling_moves(stream: NTCPStream | None, tell: Callable[[Move], None]) -> AsyncIterator[None]:
    """Call `tell` with each move of `stream` during the block. None: there is nothing that could move."""
    if stream is None:
        yield
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_tell, stream, tell)
        yield
        nursery.cancel_scope.cancel()


async def _tell(stream: NTCPStream, tell: Callable[[Move], None]) -> None:
    told = stream.report.moves[-1] if stream.report.moves else None
    while True:
        try:
            await stream.wait_moved()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            return  # it has ended, or is one that never moves
        # More than one, perhaps, since we were woken.
        moves = stream.report.moves
        known = next((at for at, move in enumerate(moves, 1) if move is told), 0)
        for move in moves[known:]:
            tell(move)
            told = move
