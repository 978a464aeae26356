"""A broker on loopback, one that can die, and sessions with it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import trio
import trio.testing
from broker_support import make_identity

from ntcpsock._address import BrokerAddress, Endpoint
from ntcpsock._identity import Identity
from ntcpsock._servers.broker import BrokerServer, serve_udp_broker
from ntcpsock._servers.broker_state import BrokerLimits
from ntcpsock._state import Pins
from ntcpsock._traversal.broker.driver import (
    BrokerSession,
    open_broker_session,
)

ALICE, BOB = make_identity(1), make_identity(2)


@asynccontextmanager
async def running_broker(
    listen: str = "127.0.0.1",
    port: int = 0,
    state_dir: Path | None = None,
    limits: BrokerLimits | None = None,
) -> AsyncIterator[BrokerServer]:
    serve = partial(
        serve_udp_broker,
        listen,
        port,
        state_dir=state_dir,
        stun=[Endpoint("0.0.0.0", 3478), Endpoint("::", 3478), Endpoint("192.0.2.9", 3479)],
        limits=limits,
    )
    async with trio.open_nursery() as nursery:
        server: BrokerServer = await nursery.start(serve)
        yield server
        nursery.cancel_scope.cancel()


class StoppableBroker:
    """A broker that can die while sessions live on."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()

    async def start(
        self, port: int = 0, state_dir: Path | None = None, listen: Sequence[str] = ("127.0.0.1",)
    ) -> BrokerServer:
        self._scope, self._stopped = trio.CancelScope(), trio.Event()

        async def serve(task_status: trio.TaskStatus[BrokerServer]) -> None:
            with self._scope:
                await serve_udp_broker(
                    listen, port, state_dir=state_dir, elsewhere=listen, task_status=task_status
                )
            self._stopped.set()

        server: BrokerServer = await self._nursery.start(serve)
        return server

    async def stop(self) -> None:
        self._scope.cancel()
        await self._stopped.wait()


def session(
    server: BrokerServer | BrokerAddress,
    identity: Identity,
    *,
    pins: Pins | None = None,
    keep_alive_interval: float = 20.0,
    timeout: float = 5.0,
) -> AbstractAsyncContextManager[BrokerSession]:
    if isinstance(server, BrokerServer):
        server = BrokerAddress(server.address.host, server.address.port, server.key)
    return open_broker_session(
        server,
        identity,
        pins=pins or Pins(None),
        keep_alive_interval=keep_alive_interval,
        timeout=timeout,
    )
