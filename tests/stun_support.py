"""A STUN server on loopback, for the tests that need one."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

from ntcpsock._address import Endpoint
from ntcpsock._servers.certificate import CertificateFiles
from ntcpsock._servers.stun import IDLE_TIMEOUT, StunAddresses, serve_stun


@asynccontextmanager
async def serving(
    listen: str = "127.0.0.1",
    port: int = 0,
    *,
    other_address: str | None = None,
    other_port: int | None = None,
    idle_timeout: float = IDLE_TIMEOUT,
    most_connections: int | None = None,
    connect_back: bool = True,
    link_key: bytes | None = None,
    certificate: CertificateFiles | None = None,
    tls_port: int | None = None,
) -> AsyncIterator[StunAddresses]:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            yield await nursery.start(
                partial(
                    serve_stun,
                    listen,
                    port,
                    other_address=other_address,
                    other_port=other_port,
                    idle_timeout=idle_timeout,
                    most_connections=most_connections,
                    connect_back=connect_back,
                    link_key=link_key,
                    certificate=certificate,
                    tls_port=tls_port,
                )
            )
            nursery.cancel_scope.cancel()


async def udp_socket(host: str = "127.0.0.1") -> trio.socket.SocketType:
    sock = trio.socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    await sock.bind((host, 0))
    return sock


def own_endpoint(sock: trio.socket.SocketType) -> Endpoint:
    return Endpoint(*sock.getsockname()[:2])
