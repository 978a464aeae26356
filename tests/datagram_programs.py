"""What the lab's tests of datagrams run inside hosts."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

import ntcpsock
from ntcpsock._config import Config
from ntcpsock._datagram_sizes import IP_MTU, IP_MTU_DISCOVER
from ntcpsock._errors import NameNotFound
from ntcpsock.trio import NTCPDatagramSocket, open_node

PORT = 5353
PATIENCE = 60.0
# A datagram may get lost; whoever asks asks again.
_ASK_AGAIN = 1.0
# Seconds for which a size stays the same that is going to stay, and between two datagrams.
_STEADY = 3.0
_PAUSE = 0.05
_IP_PMTUDISC_DO = 2  # linux/in.h


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


@dataclass(frozen=True)
class Sized:
    """largest: what the kernel's IP_MTU left for a datagram, of each look at it; refused: what `send` said of one byte
    more, each time; whole: whether one of that size came back."""

    largest: tuple[int, ...]
    refused: tuple[tuple[int | None, str], ...]
    whole: tuple[bool, ...]


def measure(config: Config, name: str, flag: Path | None) -> Sized:
    """Find out how large a datagram goes to an echo in one packet, by a socket of which none is to be cut; with `flag`
    once more, when the path has become another one: `flag` is made, and the test changes the path and removes it."""
    settings = {"NTCP_BROKER": config.broker, "NTCP_STATE_DIR": config.state_dir}
    os.environ.update({key: str(value) for key, value in settings.items()})
    with ntcpsock.NTCPSocket(socket.AF_INET, socket.SOCK_DGRAM, config=config) as sock:
        sock.settimeout(_ASK_AGAIN)
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
        _connect(sock, name)
        looks = [_measure(sock)]
        if flag is not None:
            flag.touch()
            _wait_until(lambda: not flag.exists())
            looks.append(_measure(sock))
    return Sized(*zip(*looks, strict=True))


def _measure(sock: ntcpsock.NTCPSocket) -> tuple[int, tuple[int | None, str], bool]:
    """Send as large ones as go until none does any harm, and the size stays the same for a while."""
    steady, since, largest = 0, time.monotonic(), 0
    came = False
    deadline = time.monotonic() + PATIENCE
    while not came or time.monotonic() < since + _STEADY:
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing of {largest} bytes came back")
        largest = sock.getsockopt(socket.IPPROTO_IP, IP_MTU) - 28
        if largest != steady:
            steady, since, came = largest, time.monotonic(), False
        try:
            sock.send(bytes(largest))
            came = len(sock.recv(65536)) == largest or came
        except (TimeoutError, ConnectionRefusedError):
            continue  # lost, or nobody was there yet
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
        time.sleep(_PAUSE)
    try:
        sock.send(bytes(largest + 1))
    except OSError as error:
        return largest, (error.errno, str(error)), came
    return largest, (None, ""), came


def _connect(sock: ntcpsock.NTCPSocket, name: str) -> None:
    """As soon as the name is registered."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            sock.connect((f"{name}.ntcp", PORT))
        except NameNotFound:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


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
