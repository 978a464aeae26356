"""A small world on loopback for tests: a STUN server and a broker in this process, and nodes that use them."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from ntcpsock._address import BrokerAddress, Endpoint
from ntcpsock._config import Config
from ntcpsock._node import Node
from ntcpsock._nursery import open_background_nursery
from ntcpsock._servers.broker import BrokerServer, serve_broker
from ntcpsock._servers.stun import serve_stun
from ntcpsock._servers.turn_desk import TurnDesk
from ntcpsock.trio import open_node


@dataclass
class World:
    """server: the running broker; directory: where each node's state lies."""

    server: BrokerServer
    directory: Path
    nursery: trio.Nursery
    stun: Endpoint
    broker_scope: trio.CancelScope
    host: str
    tcp: bool
    turn: TurnDesk | None

    @property
    def uri(self) -> str:
        return str(BrokerAddress(*self.server.address, self.server.key))

    def config(self, name: str | None = None, **settings: Any) -> Config:
        state = self.directory / (name or "client")
        return Config(**{"broker": self.uri, "name": name, "state_dir": state, **settings})

    @asynccontextmanager
    async def node(self, name: str | None = None, **settings: Any) -> AsyncIterator[Node]:
        async with open_node(self.config(name, **settings)) as node:
            await node.wait_warm()
            yield node

    async def restart_broker(self) -> None:
        """Kill the broker and start it anew on the same port, with the same key and names."""
        self.broker_scope.cancel()
        await trio.testing.wait_all_tasks_blocked(0.01)
        await self.start_broker(self.server.address.port)

    async def start_broker(self, port: int = 0) -> None:
        self.broker_scope = trio.CancelScope()

        async def run(*, task_status: trio.TaskStatus[BrokerServer] = trio.TASK_STATUS_IGNORED) -> None:
            with self.broker_scope:
                await serve_broker(
                    self.host,
                    port,
                    state_dir=self.directory / "broker",
                    tcp=self.tcp,
                    stun=[self.stun],
                    turn=self.turn,
                    task_status=task_status,
                )

        self.server = await self.nursery.start(run)


@asynccontextmanager
async def open_world(
    directory: Path, host: str = "127.0.0.1", *, tcp: bool = False, turn: TurnDesk | None = None
) -> AsyncIterator[World]:
    """tcp: whether the broker has its TCP port, and so a relay. turn: the TURN servers that it lends to nodes."""
    async with open_background_nursery() as nursery:
        addresses = await nursery.start(partial(serve_stun, host, 0))
        world = World.__new__(World)
        world.host = host
        world.directory, world.nursery, world.stun = directory, nursery, addresses.primary
        world.tcp, world.turn = tcp, turn
        await world.start_broker()
        yield world


class Servers(threading.Thread):
    """Broker and STUN server in a thread; `uri` is the broker's."""

    def __init__(self, directory: Path, host: str = "127.0.0.1") -> None:
        super().__init__(daemon=True)
        self._directory = directory
        self._host = host
        self._ready = threading.Event()
        self.world: World
        self.token: Any = None
        self._scope: Any = None
        self.start()
        assert self._ready.wait(60)

    def run(self) -> None:
        trio.run(self._main)

    async def _main(self) -> None:
        with trio.CancelScope() as self._scope:
            self.token = trio.lowlevel.current_trio_token()
            async with open_world(self._directory, self._host) as self.world:
                self._ready.set()
                await trio.sleep_forever()

    def stop(self) -> None:
        self.token.run_sync_soon(self._scope.cancel)
        self.join(60)
