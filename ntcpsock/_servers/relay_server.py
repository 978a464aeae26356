"""A relay with a port of its own, for brokers elsewhere that share its secret."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NoReturn

import trio

from ntcpsock._address import Endpoint
from ntcpsock._servers.certificate import CertificateFiles
from ntcpsock._servers.listener import open_listener
from ntcpsock._servers.metrics import Sources
from ntcpsock._servers.pages import Readiness, make_operator_pages, readers
from ntcpsock._servers.places import all_listens
from ntcpsock._servers.relay import RelayDesk, RelayLimits
from ntcpsock._servers.status_page.pages import StatusPage
from ntcpsock._servers.web import WebLimits, WebServer


@dataclass(frozen=True, slots=True)
class RelayServer:
    """A running relay, and where it listens."""

    address: Endpoint
    desk: RelayDesk
    web: WebServer
    readiness: Readiness
    certificate: CertificateFiles | None = None

    @property
    def ready(self) -> str:
        """The line that says so."""
        return f"ready {self.address}"

    async def drain(self, seconds: float) -> None:
        """Give no seats any more, and return when nobody is here, or after so many seconds."""
        self.readiness.reason = "draining"
        with trio.move_on_after(seconds):
            await self.desk.drain()

    def reload(self) -> None:
        """Read the certificate again. Raises ConfigurationError."""
        if self.certificate is not None:
            self.certificate.reload()


async def serve_relay(
    listen: str | Sequence[str],
    port: int,
    secret: bytes | None,
    *,
    limits: RelayLimits | None = None,
    web_limits: WebLimits | None = None,
    behind: Collection[str] = (),
    certificate: CertificateFiles | None = None,
    metrics_from: Collection[str] = (),
    task_status: trio.TaskStatus[RelayServer] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve until cancelled; `started` gets the RelayServer. secret: None where brokers are to tell it.

    Raises OSError where it cannot; arguments as those of
    `serve_broker`."""
    desk = RelayDesk(secret, limits)
    readiness = Readiness()
    may_read = readers(metrics_from)

    def sources() -> Sources:
        return Sources(web=web.counters, relay=desk)

    status = StatusPage("Relay", "An ntcpsock relay.\n", sources, readiness, may_read)
    web = WebServer(
        {
            "/relay": desk.serve,
            **make_operator_pages(sources, readiness, may_read),
            **status.handlers(),
        },
        web_limits,
        behind=behind,
        certificate=certificate,
    )
    with ExitStack() as stack:
        stack.callback(desk.close)
        listeners: list[trio.SocketListener] = []
        for host in all_listens([listen] if isinstance(listen, str) else listen):
            listeners.append(open_listener(host, port))
            stack.callback(listeners[-1].socket.close)
            # Where the system chose the port, all addresses have the same.
            port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.sweep)
            nursery.start_soon(status.run)
            nursery.start_soon(web.serve, listeners)
            address = Endpoint(*listeners[0].socket.getsockname()[:2])
            task_status.started(RelayServer(address, desk, web, readiness, certificate))
    raise AssertionError("the tasks of a server end only by cancellation")
