"""Random bytes for a server that seals a hundred thousand frames a second: drawn from the system some at a time."""

from __future__ import annotations

import os
import struct
import weakref
from collections.abc import Callable
from typing import Final

from ntcpsock._traversal.broker.frame import NONCE_LENGTH

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


class NoncePool:
    """Random nonces, each given once, whose lowest bit of the first byte is as `frame.directed_nonce` makes it."""

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes
        #: What has been drawn, for each bit; to be taken from the end.
        self.drawn: tuple[list[bytes], list[bytes]] = ([], [])
        _pools.add(self)

    def take(self, bit: bool) -> bytes:
        """The next one; bit: whether the sender's key is the larger one."""
        nonces = self.drawn[bit]
        if not nonces:
            octets = bytearray(self._random_bytes(_NONCES.size))
            octets[::NONCE_LENGTH] = octets[::NONCE_LENGTH].translate(_WITH_BIT[bit])
            nonces.extend(_NONCES.unpack(octets))
        return nonces.pop()

    def empty(self) -> None:
        """Draw anew."""
        for nonces in self.drawn:
            nonces.clear()


_NONCES: Final = struct.Struct(f"{NONCE_LENGTH}s" * 256)
_WITH_BIT: Final = [bytes(first & 0xFE | bit for first in range(256)) for bit in (0, 1)]
_pools: weakref.WeakSet[RandomPool | NoncePool] = weakref.WeakSet()


def _empty_all() -> None:
    for pool in _pools:
        pool.empty()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_empty_all)
