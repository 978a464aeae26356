"""The nursery of a context manager that runs tasks behind its block."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_background_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery that is cancelled at the end of the block, and lets the block's own exception out as it is.

    A plain nursery wraps it into an ExceptionGroup, and whoever writes `async with open_node()` would have to
    know that there are tasks behind it. A crash of a task still comes out as a group.
    """
    error: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except trio.Cancelled:
            raise
        except BaseException as caught:
            error = caught
        finally:
            nursery.cancel_scope.cancel()
    if error is not None:
        raise error
