"""Descriptors that are seldom readable, all watched by one task of the run: a task for each of them takes 3 KB.

On Linux, where an epoll descriptor can itself be waited for.
"""

from __future__ import annotations

import logging
import os
import select
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

import trio

log = logging.getLogger("ntcpsock")

# Events taken from the kernel before others have their turn.
_EVENTS: Final = 64


class HasDescriptor(Protocol):
    def fileno(self) -> int: ...


class Readiness:
    """Of one run of trio; made by `readiness`."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._process = os.getpid()

    def watch(self, source: HasDescriptor, callback: Callable[[], None]) -> None:
        """Call `callback` whenever `source` is readable or has failed, until `forget`, which must come before its
        close: the kernel goes on watching what a forked child has a copy of. Raises OSError (ENOSPC)."""
        descriptor = source.fileno()
        self._epoll.register(descriptor, select.EPOLLIN)
        self._callbacks[descriptor] = callback

    def forget(self, source: HasDescriptor) -> None:
        """No more of `source`, not even of what the kernel has told already.

        A forked child has the same epoll, not a copy of it: what ends there, ends there alone."""
        if self._callbacks.pop(source.fileno(), None) is not None and os.getpid() == self._process:
            with suppress(OSError, ValueError):  # ValueError: the run is over
                self._epoll.unregister(source.fileno())

    async def _run(self) -> None:
        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll)
                for descriptor, _ in self._epoll.poll(0, _EVENTS):
                    callback = self._callbacks.get(descriptor)
                    if callback is not None:
                        self._call(callback)
        finally:
            self._epoll.close()

    @staticmethod
    def _call(callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as error:  # one socket's fault must not end the others
            log.error("a socket's reader failed", exc_info=error)


_of_the_run: trio.lowlevel.RunVar[Readiness | None] = trio.lowlevel.RunVar("ntcpsock.readiness", None)


def readiness() -> Readiness | None:
    """That of this run; None where the system has no epoll, or no more of them."""
    if not hasattr(select, "epoll"):
        return None
    found = _of_the_run.get()
    if found is None:
        try:
            found = Readiness()
        except OSError:  # EMFILE, ENFILE: whoever asks has a task instead
            return None
        _of_the_run.set(found)
        trio.lowlevel.spawn_system_task(found._run, name="ntcpsock readiness")
    return found
