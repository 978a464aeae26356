"""A node that the engine opens when it is needed, keeps open, and opens anew after it failed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import trio

from ntcpsock._config import Config

NodeOpener = Callable[[Config], AbstractAsyncContextManager[Any]]

log = logging.getLogger("ntcpsock")


class NodeSlot:
    """One node of the engine, opened when it is first needed and again after it failed."""

    def __init__(self, nursery: trio.Nursery, opener: NodeOpener) -> None:
        self._nursery = nursery
        self._opener = opener
        self._lock = trio.Lock()
        self._closed = trio.Event()
        self._scope = trio.CancelScope()
        self.node: Any = None

    async def get(self, config: Config) -> Any:
        """The open node. Raises what opening it raises; then the next call tries again."""
        async with self._lock:
            if self.node is None:
                await self._nursery.start(self._keep_open, config)
        return self.node

    async def _keep_open(self, config: Config, task_status: trio.TaskStatus[None]) -> None:
        self._scope = trio.CancelScope()
        self._closed = trio.Event()
        started = False
        try:
            with self._scope:
                async with self._opener(config) as self.node:
                    started = True
                    task_status.started()
                    await trio.sleep_forever()
        except Exception as error:
            if not started:
                raise
            log.error("node %s failed", config.name or "(nameless)", exc_info=error)
        finally:
            self.node = None
            self._closed.set()

    async def close(self) -> None:
        if self.node is not None:
            self._scope.cancel()
            await self._closed.wait()
