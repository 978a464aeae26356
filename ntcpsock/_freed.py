"""Gives memory back to the system that lies free between what is in use.

The C library keeps it for later, which pays where it is needed again soon. Where thousands of connections give up their
QUIC cores at about the same time, it is a third of what the process has. glibc gives it back when asked (malloc_trim);
elsewhere nothing is done.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Final

#: Bytes worth asking for.
WORTH: Final = 4 * 1024 * 1024
#: It takes some 8 ms for 60 MB in use, in which nothing else happens here: so it may take a hundredth of the time.
_PAUSE: Final = 100


class Freed:
    """For one thread. trim: gives back what it can."""

    def __init__(self, trim: Callable[[], object]) -> None:
        self._trim = trim
        self._bytes = 0
        self._not_before = 0.0

    def add(self, count: int) -> None:
        """So many bytes are free now."""
        self._bytes += count

    def give_back(self, now: float) -> None:
        """If it is worth it, and was not done just before."""
        if self._bytes < WORTH or now < self._not_before:
            return
        self._bytes = 0
        started = time.perf_counter()
        self._trim()
        self._not_before = now + _PAUSE * (time.perf_counter() - started)


def _malloc_trim() -> None:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; TypeError: Windows
        return
    trim(ctypes.c_size_t(0))


freed = Freed(_malloc_trim)
