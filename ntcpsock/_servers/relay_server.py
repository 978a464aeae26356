"""A relay with a port of its own, for brokers elsewhere that share its secret."""

from __future__ import annotations

from typing import NoReturn

import trio

from ntcpsock._address import Endpoint
from ntcpsock._servers.relay import RelayDesk, RelayLimits
from ntcpsock._servers.visitor import Visitor
from ntcpsock._servers.web import WebLimits, WebServer, open_listener


async def serve_relay(
    listen: str,
    port: int,
    secret: bytes,
    *,
    limits: RelayLimits | None = None,
    web_limits: WebLimits | None = None,
    task_status: trio.TaskStatus[Endpoint] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve until cancelled; `started` gets where it listens. Raises OSError where it cannot."""
    desk = RelayDesk(secret, limits)
    web = WebServer({"/relay": desk.serve, "/": _say_what_this_is}, web_limits)
    listener = open_listener(listen, port, dual=listen == "::")
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.sweep)
            nursery.start_soon(web.serve, [listener])
            task_status.started(Endpoint(*listener.socket.getsockname()[:2]))
    finally:
        desk.close()
    raise AssertionError("the tasks of a server end only by cancellation")


async def _say_what_this_is(visitor: Visitor) -> None:
    await visitor.answer(200, "An ntcpsock relay.\n")
