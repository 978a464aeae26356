"""A TCP port with the status page, /metrics, /healthz and /readyz alone, for servers that speak no HTTP themselves."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NoReturn

import trio

from ntcpsock._address import Endpoint, parse_host_port
from ntcpsock._errors import ConfigurationError
from ntcpsock._servers.listener import open_listener
from ntcpsock._servers.metrics import Sources
from ntcpsock._servers.pages import Readiness, make_operator_pages, readers
from ntcpsock._servers.status_page.pages import StatusPage
from ntcpsock._servers.web import WebServer


async def serve_operator_pages(
    where: str,
    sources: Callable[[], Sources],
    *,
    title: str,
    metrics_from: Collection[str] = (),
    task_status: trio.TaskStatus[Endpoint] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve until cancelled at `where` (ADDR:PORT, numeric). Started with the endpoint. Raises OSError,
    ConfigurationError, ValueError for networks that are none."""
    host, port = parse_host_port(where, -1)
    if port < 0:
        raise ConfigurationError(f"metrics: {where!r}: expected ADDR:PORT")
    readiness, may_read = Readiness(), readers(metrics_from)
    status = StatusPage(title, f"{title} of ntcpsock.\n", sources, readiness, may_read)
    web = WebServer({**make_operator_pages(sources, readiness, may_read), **status.handlers()})
    listener = open_listener(host, port)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(status.run)
        nursery.start_soon(web.serve, [listener])
        task_status.started(Endpoint(*listener.socket.getsockname()[:2]))
    raise AssertionError("the tasks of a server end only by cancellation")
