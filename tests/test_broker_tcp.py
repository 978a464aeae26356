"""Sessions with a broker over TCP: where UDP does not answer, where it stops to, and through a proxy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from broker_support import SEALED, make_identity
from relay_support import running_broker

from ntcpsock._address import BrokerAddress, Endpoint
from ntcpsock._errors import BrokerUnreachable, IdentityMismatch, NameNotFound
from ntcpsock._identity import Identity
from ntcpsock._servers.broker import BrokerServer, serve_broker
from ntcpsock._state import Pins
from ntcpsock._traversal.broker import reach
from ntcpsock._traversal.broker.driver import BrokerSession, open_broker_session
from ntcpsock._traversal.broker.transport import UdpTransport
from ntcpsock._traversal.http import proxy

ALICE, BOB = make_identity(1), make_identity(2)
PATIENCE = 60.0


@asynccontextmanager
async def session_with(
    server: BrokerServer,
    identity: Identity,
    *,
    keep_alive_interval: float = 20.0,
    key: bytes | None = None,
    timeout: float = PATIENCE,
    hidden: bool = False,
) -> AsyncIterator[BrokerSession]:
    address = BrokerAddress(*server.address, server.key if key is None else key or None)
    with trio.fail_after(PATIENCE):
        async with open_broker_session(
            address,
            identity,
            pins=Pins(None),
            keep_alive_interval=keep_alive_interval,
            timeout=timeout,
            hidden=hidden,
        ) as session:
            yield session


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """A network that lets no UDP out; what would have gone."""
    lost: list[bytes] = []
    monkeypatch.setattr(UdpTransport, "send", lambda self, frame: lost.append(frame))
    return lost


async def check_introduction(alice: BrokerSession, bob: BrokerSession) -> None:
    await alice.set_registration(("alice",), (80,), b"card", None)
    assert await bob.lookup("alice") == ALICE.public_key
    introduction = await bob.introduce(ALICE.public_key, 80, SEALED, name="alice")
    assert introduction.card == b"card"
    assert introduction.tickets is not None
    delivery = await alice.deliveries.receive()
    assert (delivery.sender, delivery.sealed) == (BOB.public_key, SEALED)
    alice.send_reply(delivery.sender, delivery.sender_instance, SEALED)
    assert (await bob.deliveries.receive()).sender == ALICE.public_key
    with pytest.raises(NameNotFound):
        await bob.lookup("nobody")


async def test_a_broker_without_udp_is_reached_over_tcp() -> None:
    async with running_broker(udp=False, stun=[Endpoint("0.0.0.0", 3478)]) as server:
        async with session_with(server, ALICE) as alice, session_with(server, BOB, key=b"") as bob:
            assert (alice.transport, bob.transport) == ("tcp", "tcp")
            assert bob.broker_key == server.key
            assert alice.relays == (Endpoint("127.0.0.1", server.address.port),)
            assert alice.welcome.stun == (Endpoint("127.0.0.1", 3478),)
            await check_introduction(alice, bob)
        assert server.web is not None
        while server.web.counters.open:
            await trio.sleep(0.01)
        # Both said goodbye.
        with pytest.raises(AssertionError, match="nobody"):
            assert server.core._registry.instances(ALICE.public_key, 0.0)[0].registered, "nobody"


async def test_udp_is_used_where_it_answers_and_both_meet(deaf: list[bytes]) -> None:
    async with running_broker() as server:
        async with session_with(server, ALICE) as alice:
            assert alice.transport == "tcp"
            assert deaf
            with pytest.MonkeyPatch.context() as hearing:
                hearing.setattr(UdpTransport, "send", SEND)
                hearing.setattr(reach, "FALLBACK_DELAY", PATIENCE)
                async with session_with(server, BOB) as bob:
                    assert bob.transport == "udp"
                    await check_introduction(alice, bob)


SEND = UdpTransport.send


async def test_a_session_moves_to_tcp_when_udp_falls_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "FALLBACK_DELAY", PATIENCE)
    async with running_broker() as server:
        async with session_with(server, ALICE, keep_alive_interval=0.2) as alice:
            assert alice.transport == "udp"
            monkeypatch.undo()
            await alice.set_registration(("alice",), (80,), b"card", None)
            monkeypatch.setattr(UdpTransport, "send", lambda self, frame: None)
            while alice.transport == "udp" or not alice.connected:
                await trio.sleep(0.05)
            # It is registered there as before, and reached there.
            async with session_with(server, BOB) as bob:
                assert await bob.lookup("alice") == ALICE.public_key
                while True:
                    await bob.introduce(ALICE.public_key, 80, SEALED)
                    with trio.move_on_after(0.5):
                        assert (await alice.deliveries.receive()).sealed == SEALED
                        break


async def test_a_broken_connection_comes_back(tmp_path: Path, deaf: list[bytes]) -> None:
    """The broker is restarted on its port: the node is there again without waiting for a keep-alive."""
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def serve(port: int, task_status: trio.TaskStatus[BrokerServer]) -> None:
            with scope:
                await serve_broker("127.0.0.1", port, state_dir=tmp_path, task_status=task_status)

        server: BrokerServer = await nursery.start(serve, 0)
        async with session_with(server, ALICE) as alice:
            await alice.set_registration(("alice",), (80,), b"card", None)
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked(0.01)
            scope = trio.CancelScope()
            server = await nursery.start(serve, server.address.port)
            while not len(server.core):
                await trio.sleep(0.02)
            await alice.wait_connected()
            async with session_with(server, BOB) as bob:
                await check_introduction(alice, bob)
        nursery.cancel_scope.cancel()


async def test_a_wrong_key_is_named_over_tcp_too(deaf: list[bytes]) -> None:
    async with running_broker(udp=False) as server:
        with pytest.raises(IdentityMismatch):
            async with session_with(server, ALICE, key=BOB.public_key, timeout=3.0):
                pass


async def test_what_is_no_broker_is_said(deaf: list[bytes]) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some(1000)
        await stream.send_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
        address = BrokerAddress("127.0.0.1", listeners[0].socket.getsockname()[1])
        with trio.fail_after(PATIENCE), pytest.raises(BrokerUnreachable, match="404"):
            async with open_broker_session(address, ALICE, pins=Pins(None), timeout=3.0):
                pass
        nursery.cancel_scope.cancel()


@contextmanager
def running_proxy() -> Iterator[int]:
    with trio.socket.socket() as probe:
        probe._sock.bind(("127.0.0.1", 0))  # type: ignore[attr-defined]
        port = probe.getsockname()[1]
    argv = [sys.executable, "-m", "ntcpsock.testing.natlab.proxy", "127.0.0.1", str(port)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield port
        finally:
            process.kill()


async def test_a_proxy_leads_to_a_broker_whose_name_only_it_knows(
    deaf: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_proxy() as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(proxy, "_is_loopback", lambda host: False)

        async def unknown(*_args: object, **_keywords: object) -> object:
            raise OSError("no resolver in this network")

        monkeypatch.setattr(trio.socket, "getaddrinfo", unknown)
        async with running_broker(stun=[Endpoint("0.0.0.0", 3478)]) as server:
            named = BrokerAddress("localhost", server.address.port, server.key)
            with trio.fail_after(PATIENCE):
                async with open_broker_session(named, ALICE, pins=Pins(None), timeout=PATIENCE) as alice:
                    assert alice.transport == "tcp"
                    assert alice.relays == (Endpoint("localhost", server.address.port),)
                    # Nothing that only the proxy can reach.
                    assert alice.welcome.stun == ()
                    async with open_broker_session(named, BOB, pins=Pins(None), timeout=PATIENCE) as bob:
                        await check_introduction(alice, bob)
