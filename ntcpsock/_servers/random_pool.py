"""Random bytes for a server that seals a hundred thousand frames a second: drawn from the system some at a time."""

from __future__ import annotations

import os
import weakref

_DRAWN = 8192


class RandomPool:
    """Called like `os.urandom`. What was given is never given again, not to a forked child either."""

    def __init__(self) -> None:
        self._pool = b""
        self._at = 0
        _pools.add(self)

    def __call__(self, length: int) -> bytes:
        at, end = self._at, self._at + length
        if end > len(self._pool):
            if length > _DRAWN:
                return os.urandom(length)
            self._pool = os.urandom(_DRAWN)
            at, end = 0, length
        self._at = end
        return self._pool[at:end]

    def empty(self) -> None:
        """Draw anew."""
        self._pool = b""
        self._at = 0


_pools: weakref.WeakSet[RandomPool] = weakref.WeakSet()


def _empty_all() -> None:
    for pool in _pools:
        pool.empty()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_empty_all)
