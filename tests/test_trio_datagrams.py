"""Datagram sockets of the trio face: the methods of trio's own sockets, by name, over real nodes on loopback."""

from __future__ import annotations

import errno
import socket as stdlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from world import open_world

import ntcpsock.trio
from ntcpsock import _names
from ntcpsock._datagram_sizes import IP_MTU, IP_MTU_DISCOVER, SURELY_WHOLE
from ntcpsock._errors import NameNotFound
from ntcpsock._node import Node
from ntcpsock._trio_socket import Factory, NTCPSocket

DEADLINE = 30.0
ALICE = "alice.ntcp"
NUMBER = _names.number("alice")
IP_PMTUDISC_WANT, IP_PMTUDISC_DO = 1, 2


def udp(node: Node, family: int = stdlib.AF_INET) -> NTCPSocket:
    return Factory(lambda: node, None).socket(family, stdlib.SOCK_DGRAM)


@asynccontextmanager
async def pair(tmp_path: Path) -> AsyncIterator[tuple[NTCPSocket, NTCPSocket]]:
    """A socket of alice's at port 53, and one of bob's."""
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob") as bob:
        with trio.fail_after(DEADLINE), udp(alice) as server, udp(bob) as client:
            await server.bind((ALICE, 53))
            yield server, client


async def test_every_method(tmp_path: Path) -> None:
    async with pair(tmp_path) as (server, client):
        assert server.getsockname() == (NUMBER, 53)
        assert await client.sendto(b"one", (ALICE, 53)) == 3
        data, sender = await server.recvfrom(100)
        assert data == b"one"
        assert sender[0] == _names.number("bob")
        await server.sendto(b"two", 0, sender)
        assert await client.recvfrom(100) == (b"two", (NUMBER, 53))
        await client.sendmsg([b"th", b"ree"], (), 0, (NUMBER, 53))
        assert await server.recvmsg(100) == (b"three", [], 0, sender)
        await server.sendto(b"four", sender)
        buffer = bytearray(10)
        assert await client.recvfrom_into(buffer) == (4, (NUMBER, 53))
        await server.sendto(b"fivesix", sender)
        first, second = bytearray(4), bytearray(10)
        assert await client.recvmsg_into([first, second]) == (7, [], 0, (NUMBER, 53))
        assert first + second[:3] == b"fivesix"
        await client.connect((ALICE, 53))
        assert client.getpeername() == (NUMBER, 53)
        assert await client.send(b"seven") == 5
        assert (await server.recvmsg(3))[::2] == (b"sev", stdlib.MSG_TRUNC)
        await client.sendmsg([b"eight"])
        assert await server.recv(100, stdlib.MSG_PEEK) == b"eight"
        assert server.is_readable()
        assert await server.recv_into(buffer, 2) == 2
        assert client.peer is not None
        assert client.peer.name == "alice"
        assert client.path is not None
        assert client.report is not None


@pytest.mark.skipif(sys.platform != "linux", reason="the option has another number elsewhere")
async def test_never_to_be_cut(tmp_path: Path) -> None:
    async with pair(tmp_path) as (server, client):
        client.setsockopt(stdlib.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        with pytest.raises(OSError, match="not connected"):
            client.getsockopt(stdlib.IPPROTO_IP, IP_MTU)
        await client.connect((ALICE, 53))
        assert client.getsockopt(stdlib.IPPROTO_IP, IP_MTU) == SURELY_WHOLE + 28  # there is no path yet
        await client.send(bytes(1500))
        assert len(await server.recv(2000)) == 1500
        largest = client.getsockopt(stdlib.IPPROTO_IP, IP_MTU) - 28
        assert largest >= SURELY_WHOLE
        await client.send(bytes(largest))
        assert len(await server.recv(2000)) == largest
        for send in (
            partial(client.send, bytes(1500)),
            partial(client.sendto, bytes(1500), (ALICE, 53)),
            partial(client.sendmsg, [bytes(750), bytes(750)]),
        ):
            with pytest.raises(
                OSError, match=r"Message too long: 1500 bytes; [0-9]+ go to alice\.ntcp"
            ) as caught:
                await send()
            assert caught.value.errno == errno.EMSGSIZE
        client.setsockopt(stdlib.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_WANT)
        await client.send(bytes(1500))
        assert len(await server.recv(2000)) == 1500


async def test_errors(tmp_path: Path) -> None:
    async with pair(tmp_path) as (server, client):
        with pytest.raises(NameNotFound):
            await client.sendto(b"x", ("nobody.ntcp", 53))
        with pytest.raises(NameNotFound):
            await client.connect(("nobody.ntcp", 53))
        with pytest.raises(OSError, match="too long") as caught:
            await client.sendto(bytes(65508), (ALICE, 53))
        assert caught.value.errno == errno.EMSGSIZE
        with pytest.raises(OSError, match="Invalid argument"):
            await client.sendto(b"x", (ALICE, 0))
        with pytest.raises(OverflowError):
            await client.sendto(b"x", (ALICE, 65536))
        with pytest.raises(OSError, match="MSG_PEEK"):
            await client.recvfrom(1, stdlib.MSG_OOB)
        with pytest.raises(OSError, match="Invalid argument"):
            await server.bind((ALICE, 54))
        await client.connect((ALICE, 54))
        await client.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            await client.recv(1)
        with pytest.raises(OSError, match="no kernel socket"):
            client.fileno()


async def test_closing_ends_a_wait(tmp_path: Path) -> None:
    async with pair(tmp_path) as (server, client), trio.open_nursery() as nursery:
        await client.sendto(b"x", (ALICE, 53))
        await server.recv(1)

        async def wait() -> None:
            with pytest.raises(OSError, match="Bad file descriptor"):
                await server.recv(1)

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        server.close()


async def test_names_and_addresses_on_one_socket(tmp_path: Path) -> None:
    async with pair(tmp_path) as (server, client):
        with trio.socket.socket(stdlib.AF_INET, stdlib.SOCK_DGRAM) as plain:
            await plain.bind(("127.0.0.1", 0))
            await client.sendto(b"plain", plain.getsockname())
            _, sender = await plain.recvfrom(10)
            for _ in range(3):
                await client.sendto(b"named", (ALICE, 53))
                _, named = await server.recvfrom(10)
                await plain.sendto(b"from plain", sender)
                await server.sendto(b"from alice", named)
                found = {await client.recvfrom(100) for _ in range(2)}
                assert found == {(b"from plain", plain.getsockname()), (b"from alice", (NUMBER, 53))}


# What follows does not know ntcpsock.


async def unmodified_echo(*, task_status: trio.TaskStatus[None]) -> None:
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        await sock.bind(("alice.ntcp", 7))
        task_status.started()
        while True:
            data, address = await sock.recvfrom(65536)
            await sock.sendto(data.upper(), address)


async def unmodified_client() -> Any:
    [(family, kind, proto, _, address), *_] = await trio.socket.getaddrinfo(
        "alice.ntcp", 7, type=trio.socket.SOCK_DGRAM
    )
    with trio.socket.socket(family, kind, proto) as sock:
        await sock.connect(address)
        await sock.send(b"hello")
        return await sock.recv(100)


async def test_unmodified_trio_code(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice"):
        ntcpsock.trio.install()
        try:
            with trio.fail_after(DEADLINE):
                async with trio.open_nursery() as nursery:
                    await nursery.start(unmodified_echo)
                    assert await unmodified_client() == b"HELLO"
                    nursery.cancel_scope.cancel()
        finally:
            ntcpsock.trio.uninstall()


async def test_the_high_level_socket(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice"):
        async with await ntcpsock.trio.open_datagram_socket(53) as server:
            async with world.node("bob"), await ntcpsock.trio.open_datagram_socket() as client:
                with trio.fail_after(DEADLINE):
                    await client.send_to(b"x", (ALICE, 53))
                    data, sender = await server.receive_from()
                    assert data == b"x"
                    assert sender == ntcpsock.trio.DatagramAddress("bob.ntcp", client.port)
