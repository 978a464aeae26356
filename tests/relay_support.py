"""Servers on loopback for the tests of the TCP port and of the relay."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

from ntcpsock._address import Endpoint
from ntcpsock._servers.broker import BrokerServer, serve_broker
from ntcpsock._servers.listener import open_listener
from ntcpsock._servers.relay import RelayDesk, RelayLimits
from ntcpsock._servers.splice import Forwarder
from ntcpsock._servers.web import WebLimits, WebServer
from ntcpsock._traversal.relay.driver import take_seat
from ntcpsock._traversal.relay.message import SECRET_LENGTH, SESSION_LENGTH, issue_pair

SECRET = bytes(range(SECRET_LENGTH))
DIALER, LISTENER = b"d" * 32, b"l" * 32
PATIENCE = 60.0


def tickets(
    session: int = 0, *, dialer: bytes = DIALER, listener: bytes = LISTENER, age: float = 0.0
) -> tuple[bytes, bytes]:
    return issue_pair(SECRET, session.to_bytes(SESSION_LENGTH, "big"), dialer, listener, time.time() - age)


class RunningRelay:
    """A relay on loopback."""

    def __init__(self, desk: RelayDesk, web: WebServer, address: Endpoint) -> None:
        self.desk, self.web, self.address = desk, web, address
        self._opened: list[trio.socket.SocketType] = []

    async def seat(self, ticket: bytes) -> trio.socket.SocketType:
        """A connection, closed at the end of the test at the latest."""
        sock = await take_seat(self.address, ticket)
        self._opened.append(sock)
        return sock

    async def connect(self) -> trio.SocketStream:
        """A connection that has not said anything yet, likewise."""
        stream = await trio.open_tcp_stream(*self.address)
        self._opened.append(stream.socket)
        return stream

    def close(self) -> None:
        for sock in self._opened:
            sock.close()

    async def pair(self, session: int = 0) -> list[trio.SocketStream]:
        """Both ends of a relayed connection."""
        return [trio.SocketStream(await self.seat(ticket)) for ticket in tickets(session)]

    async def settle(self) -> None:
        """Until no node is connected."""
        while self.desk.counters.open or self.web.counters.open:
            await trio.sleep(0.01)


@asynccontextmanager
async def running_relay(
    limits: RelayLimits | None = None, web_limits: WebLimits | None = None, *, use_splice: bool | None = None
) -> AsyncIterator[RunningRelay]:
    forwarder = Forwarder() if use_splice is None else Forwarder(use_splice=use_splice)
    desk = RelayDesk(SECRET, limits, forwarder=forwarder)
    web = WebServer({"/relay": desk.serve}, web_limits)
    listener = open_listener("127.0.0.1", 0)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.sweep)
            nursery.start_soon(web.serve, [listener])
            relay = RunningRelay(desk, web, Endpoint(*listener.socket.getsockname()[:2]))
            try:
                yield relay
            finally:
                relay.close()
            nursery.cancel_scope.cancel()
        desk.close()


@asynccontextmanager
async def running_broker(**settings: object) -> AsyncIterator[BrokerServer]:
    """A broker with a TCP port, on loopback, without a state directory."""
    serve = partial(serve_broker, "127.0.0.1", 0, state_dir=None, **settings)  # type: ignore[arg-type]
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            yield await nursery.start(serve)
            nursery.cancel_scope.cancel()


async def say(address: Endpoint, text: bytes) -> bytes:
    """What the server answers to these bytes, until it ends the connection."""
    stream = await trio.open_tcp_stream(address.host, address.port)
    async with stream:
        await stream.send_all(text)
        return b"".join([bytes(data) async for data in stream])
