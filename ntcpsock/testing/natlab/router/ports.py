"""Which public port a new mapping gets."""

from __future__ import annotations

import random
from collections.abc import Callable

from ntcpsock.testing.natlab.router.behaviour import Allocation, TcpBehaviour, UdpBehaviour

LOWEST = 1024
_HIGHEST = 65535
_RANDOM_DRAWS = 16


class PortAllocator:
    """The ports of one protocol at one public address."""

    def __init__(self, words: UdpBehaviour | TcpBehaviour, rng: random.Random) -> None:
        self._words = words
        self._rng = rng
        # Where a counter stands when a router has run for a while.
        self._next = rng.randrange(LOWEST, _HIGHEST + 1)
        self._blocks: dict[int, int] = {}

    def choose(self, inner_address: int, inner_port: int, is_free: Callable[[int], bool]) -> int | None:
        """A free port for a new mapping, or None where there is none."""
        allocation = self._words.allocation
        if allocation is Allocation.PRESERVING:
            return self._free_from(_wrap(inner_port + self._words.offset, lowest=1), 1, is_free)
        if allocation is Allocation.SEQUENTIAL:
            port = self._free_from(self._next, self._words.delta, is_free)
            if port is not None:
                self._next = _wrap(port + self._words.delta)
            return port
        if allocation is Allocation.RANDOM:
            return self._draw(LOWEST, _HIGHEST + 1, is_free)
        first = self._block_of(inner_address)
        return self._draw(first, first + self._words.band, is_free)

    def _block_of(self, inner_address: int) -> int:
        """The first port of the block that belongs to an inner address."""
        block = self._blocks.get(inner_address)
        if block is None:
            size = self._words.band
            number = self._rng.randrange(-(-LOWEST // size), (_HIGHEST + 1) // size)
            taken = set(self._blocks.values())
            for _ in range((_HIGHEST + 1) // size):  # blocks are shared once all are given
                if number * size not in taken:
                    break
                number = number + 1 if (number + 2) * size <= _HIGHEST + 1 else -(-LOWEST // size)
            block = self._blocks[inner_address] = number * size
        return block

    def _draw(self, start: int, stop: int, is_free: Callable[[int], bool]) -> int | None:
        for _ in range(_RANDOM_DRAWS):
            port = self._rng.randrange(start, stop)
            if is_free(port):
                return port
        free = [port for port in range(start, stop) if is_free(port)]
        return self._rng.choice(free) if free else None

    def _free_from(self, port: int, delta: int, is_free: Callable[[int], bool]) -> int | None:
        for _ in range(_HIGHEST):
            if is_free(port):
                return port
            port = _wrap(port + delta)
        return None


def _wrap(port: int, lowest: int = LOWEST) -> int:
    if lowest <= port <= _HIGHEST:
        return port
    return LOWEST + (port - LOWEST) % (_HIGHEST + 1 - LOWEST)
