"""What the tests of datagram sockets by name share: other nodes, sockets, the engine's thread."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import trio
from fake_node import FakeNetwork
from sync_support import PATIENCE

from ntcpsock import NTCPSocket, _portal

Plain: Any = NTCPSocket.__mro__[1]
BOB = "bob.ntcp"


def add_peer(
    network: FakeNetwork, name: str, port: int, answer: Callable[[bytes], bytes] = lambda data: data
) -> list[Any]:
    """Another node with a socket that answers; the senders that it has seen."""
    seen: list[Any] = []

    def start(network: FakeNetwork, nursery: trio.Nursery) -> None:
        sock = network.peer(name, nursery).bind(port)

        async def serve() -> None:
            while True:
                data, sender = await sock.receive_from()
                seen.append(sender)
                await sock.send_to(answer(data), sender)

        nursery.start_soon(serve)

    network.at_start.append(start)
    return seen


def add_node(network: FakeNetwork, name: str) -> None:
    """Another node, with nothing at its ports."""

    def start(network: FakeNetwork, nursery: trio.Nursery) -> None:
        network.peer(name, nursery)

    network.at_start.append(start)


def datagram_socket(family: int = socket.AF_INET) -> NTCPSocket:
    sock = NTCPSocket(family, socket.SOCK_DGRAM)
    sock.settimeout(PATIENCE)
    return sock


def bound(name: str, port: int = 0, family: int = socket.AF_INET) -> NTCPSocket:
    sock = datagram_socket(family)
    try:
        sock.bind((name, port))
    except BaseException:
        sock.close()
        raise
    return sock


def in_engine(function: Callable[[], object]) -> Any:
    async def call() -> object:
        return function()

    return _portal.get().call(call)
