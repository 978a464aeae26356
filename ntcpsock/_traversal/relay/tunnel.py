"""Relays behind TLS: a connection over loopback stands for the one inside TLS.

What goes through a relay is TLS from end to end, and that code works on kernel sockets. So here, too, it gets one; its
other end is pumped into the TLS connection, by two tasks that the session with the broker owns.
"""

from __future__ import annotations

import errno
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from ntcpsock._address import Endpoint
from ntcpsock._traversal.http.tls import TlsConnection, client_context
from ntcpsock._traversal.relay.told import ToldRelay

_CHUNK: Final = 65536
_RESET: Final = b"\1\0\0\0\0\0\0\0"
# The kernel asks a silent relay after a minute whether it is still there (RFC 9293 section 3.8.4).
_KEEP_ALIVE: Final = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 8}


class Tunnels:
    """The TLS connections to relays of one session with a broker; `run` owns their tasks."""

    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Until cancelled, which resets all of them."""
        async with trio.open_nursery() as self._nursery:
            await trio.sleep_forever()

    async def carry(self, outer: TlsConnection) -> trio.socket.SocketType:
        """A socket that is as good as `outer`, which is closed with it. Raises OSError."""
        if self._nursery is None or self._nursery.cancel_scope.cancel_called:
            raise OSError(errno.ENETDOWN, "the session with the broker has ended")
        near, far = await _loopback_pair()
        self._nursery.start_soon(_carry, far, outer)
        return near


class TlsRelay(ToldRelay):
    """A relay to which one speaks TLS. As an endpoint it is equal to the same one without."""

    context: ssl.SSLContext
    tunnels: Tunnels

    @classmethod
    def at(
        cls,
        host: str,
        port: int,
        ca_file: Path | None,
        tunnels: Tunnels,
        told: str | None = None,
        load: int = 0,
    ) -> TlsRelay:
        """Raises ConfigurationError for an unusable `ca_file`."""
        relay = cls(host, port)
        relay.told, relay.load = told or f"wss://{Endpoint(host, port)}", load
        relay.context, relay.tunnels = client_context(ca_file), tunnels
        return relay


async def _carry(near: trio.socket.SocketType, outer: TlsConnection) -> None:
    """Both ways, each until it ends. An end is TCP's own, without TLS's goodbye: what goes through the tunnel proves by
    itself where it ends."""
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):
            with suppress(OSError):
                outer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                outer.socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    ended = 0

    async def copy_out() -> None:
        nonlocal ended
        try:
            while data := await near.recv(_CHUNK):
                await outer.send(data)
            outer.socket.shutdown(socket.SHUT_WR)
            ended += 1
        except OSError:
            nursery.cancel_scope.cancel()

    async def copy_in() -> None:
        nonlocal ended
        try:
            while data := await outer.recv(_CHUNK):
                unsent = memoryview(data)
                while unsent:
                    unsent = unsent[await near.send(unsent) :]
            near.shutdown(socket.SHUT_WR)
            ended += 1
        except OSError:
            nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(copy_out)
            nursery.start_soon(copy_in)
    finally:
        if ended < 2:
            for sock in (near, outer.socket):
                with suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        near.close()
        outer.close()


async def _loopback_pair() -> tuple[trio.socket.SocketType, trio.socket.SocketType]:
    """Two TCP sockets that are connected with each other, and with nobody else. Raises OSError."""
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        near = trio.socket.socket()
        try:
            await near.connect(listener.getsockname())
            while True:
                far, address = await listener.accept()
                if address == near.getsockname():
                    break
                far.close()  # somebody else on this machine was quicker
        except BaseException:
            near.close()
            raise
    for sock in (near, far):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far
