"""What the lab's tests of datagrams run inside hosts."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from ntcpsock._config import Config
from ntcpsock.trio import NTCPDatagramSocket, open_node

PORT = 5353
PATIENCE = 60.0
# A datagram may get lost; whoever asks asks again.
_ASK_AGAIN = 1.0


@dataclass(frozen=True)
class Asked:
    """first: seconds until the first answer, the dial included; seconds: of a later one; sizes: those that came back
    whole."""

    first: float
    seconds: float
    technique: str
    kind: str
    sizes: tuple[int, ...]


def run_echo(config: Config) -> None:
    """A node that sends each datagram back. Runs until killed."""
    trio.run(_echo, config)


async def _echo(config: Config) -> None:
    async with open_node(config) as node, await node.open_datagram_socket(PORT) as sock:
        while True:
            data, sender = await sock.receive_from()
            await sock.send_to(data, sender)


def ask(config: Config, name: str, sizes: tuple[int, ...]) -> Asked:
    """Send datagrams to an echo, and wait for each to come back."""
    return trio.run(_ask, config, name, sizes)


async def _ask(config: Config, name: str, sizes: tuple[int, ...]) -> Asked:
    with trio.fail_after(PATIENCE):
        async with open_node(config) as node, await node.open_datagram_socket() as sock:
            await node.wait_warm()
            begin = trio.current_time()
            await _exchange(sock, name, b"first")
            first = trio.current_time() - begin
            begin = trio.current_time()
            await _exchange(sock, name, b"second")
            seconds = trio.current_time() - begin
            for size in sizes:
                await _exchange(sock, name, bytes(size))
            path = sock.path(name)
            assert path is not None
            return Asked(first, seconds, path.technique, path.kind, sizes)


async def _exchange(sock: NTCPDatagramSocket, name: str, data: bytes) -> None:
    while True:
        await sock.send_to(data, (name, PORT))
        with trio.move_on_after(_ASK_AGAIN):
            while (await sock.receive_from())[0] != data:
                pass
            return


def ask_each_other(config: Config, name: str) -> bool:
    """Both ends run this at once: each is the other's echo."""
    return trio.run(_ask_each_other, config, name)


async def _ask_each_other(config: Config, name: str) -> bool:
    with trio.fail_after(PATIENCE):
        async with (
            open_node(config) as node,
            await node.open_datagram_socket(PORT) as server,
            await node.open_datagram_socket() as client,
            trio.open_nursery() as nursery,
        ):

            async def serve() -> None:
                while True:
                    data, sender = await server.receive_from()
                    await server.send_to(data, sender)

            nursery.start_soon(serve)
            for number in range(20):
                await _exchange(client, name, b"%d" % number)
                await trio.sleep(0.02)
            await trio.sleep(1.0)  # the other end may be later
            nursery.cancel_scope.cancel()
    return True
