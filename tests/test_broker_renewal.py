"""A session whose node is elsewhere now: the broker knows it again within two round trips, over UDP and TCP."""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing
from broker_driver_support import StoppableBroker, session
from relay_support import running_broker
from test_broker_tcp import ALICE, BOB, PATIENCE, check_introduction, session_with

from ntcpsock._address import BrokerAddress, Endpoint
from ntcpsock._errors import BrokerUnreachable
from ntcpsock._servers.broker import BrokerServer
from ntcpsock._traversal.broker import climb, keep_alives, link, reach, side, transport
from ntcpsock._traversal.broker.driver import BrokerSession
from ntcpsock._traversal.broker.observed import Difference, Observed
from ntcpsock._traversal.broker.transport import UdpTransport
from ntcpsock._traversal.interfaces import source_towards


def test_what_the_broker_sees_tells_of_changes_behind_the_router() -> None:
    observed = Observed()
    home, other = Endpoint("192.0.2.1", 1000), Endpoint("192.0.2.2", 1000)
    assert observed.take("udp", "a", home) is None
    assert observed.take("udp", "a", home) is None
    # Another socket has another port; the same one has not, as long as its mapping lives.
    assert observed.take("udp", "b", home._replace(port=2000)) is None
    assert observed.take("udp", "b", home._replace(port=2001)) == "port"
    assert observed.take("udp", "b", other) == "host"
    assert observed.take("udp", "b", other) is None
    # TCP, and the other family, may have addresses of their own.
    assert observed.take("tcp", "c", Endpoint("192.0.2.3", 7)) is None
    assert observed.take("udp", "d", Endpoint("2001:db8::1", 7)) is None
    assert observed.take("udp", "b", other) is None
    assert observed.take("tcp", "e", Endpoint("192.0.2.4", 7)) == "host"
    observed.forget()
    assert observed.take("udp", "b", home) is None


class Elsewhere:
    """While `now` holds, this machine would send from another address than before."""

    now = False


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    own, place = source_towards, Elsewhere()
    monkeypatch.setattr(transport, "source_towards", lambda host: "192.0.2.99" if place.now else own(host))
    return place


def move(session: BrokerSession, place: Elsewhere) -> None:
    place.now = True
    session.renew(moved=True)
    place.now = False


async def until_elsewhere(session: BrokerSession, before: Endpoint) -> None:
    """Until the broker sees the session in another place than `before`, and nowhere else."""
    with trio.fail_after(PATIENCE):
        while not session.connected or session.welcome.observed == before:
            await trio.sleep(0.01)


@asynccontextmanager
async def two_sessions(server: BrokerServer) -> AsyncIterator[tuple[BrokerSession, BrokerSession]]:
    async with session_with(server, ALICE) as alice, session_with(server, BOB) as bob:
        yield alice, bob


@pytest.mark.parametrize("name", ["udp", "tcp"])
async def test_a_session_goes_on_from_another_address(
    monkeypatch: pytest.MonkeyPatch, elsewhere: Elsewhere, name: str
) -> None:
    if name == "udp":
        monkeypatch.setattr(reach, "FALLBACK_DELAY", PATIENCE)
    else:
        monkeypatch.setattr(UdpTransport, "send", lambda self, frame: None)
    async with running_broker() as server, two_sessions(server) as (alice, bob):
        seen: list[Difference | None] = []
        alice.on_seen = seen.append
        for _ in range(3):
            before, count = alice.welcome.observed, len(seen)
            move(alice, elsewhere)
            await until_elsewhere(alice, before)
            assert alice.transport == name
            assert len(seen) > count
            await check_introduction(alice, bob)
        # It knew, so the broker tells it no news.
        assert not any(seen)
        assert len(server.core) == 2


async def test_asking_again_from_the_same_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "FALLBACK_DELAY", PATIENCE)
    async with running_broker() as server, two_sessions(server) as (alice, bob):
        before = alice._machine.welcome
        for moved in (False, True, True):
            alice.renew(moved=moved)
            await check_introduction(alice, bob)
        assert alice._machine.welcome is before
        assert alice.connected


async def test_over_tcp_udp_is_tried_soon_in_another_network(
    monkeypatch: pytest.MonkeyPatch, elsewhere: Elsewhere
) -> None:
    monkeypatch.setattr(climb, "AFTER_CHANGE", 0.05)
    async with running_broker() as server:
        with monkeypatch.context() as deaf:
            deaf.setattr(UdpTransport, "send", lambda self, frame: None)
            context = session_with(server, ALICE)
            alice = await context.__aenter__()
            assert alice.transport == "tcp"
        try:
            move(alice, elsewhere)
            with trio.fail_after(PATIENCE):
                while alice.transport != "udp" or not alice.connected:
                    await trio.sleep(0.01)
        finally:
            await context.__aexit__(None, None, None)


async def test_a_lost_session_begins_again_with_udp(
    monkeypatch: pytest.MonkeyPatch, elsewhere: Elsewhere
) -> None:
    """The network was away for a while, and all has been tried in vain."""
    monkeypatch.setattr(keep_alives, "PROBE_TIMEOUT", 0.3)
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def serve(task_status: trio.TaskStatus[BrokerServer]) -> None:
            with scope:
                async with running_broker() as server:
                    task_status.started(server)
                    await trio.sleep_forever()

        server: BrokerServer = await nursery.start(serve)
        async with session_with(server, ALICE) as alice:
            await alice.set_registration(("alice",), (80,), b"card", None)
            with monkeypatch.context() as away:
                away.setattr(UdpTransport, "send", lambda self, frame: None)
                away.setattr(transport, "open_connection", _refuse)
                move(alice, elsewhere)
                with trio.fail_after(PATIENCE):
                    while alice.connected or alice.transport == "udp":
                        await trio.sleep(0.01)
            move(alice, elsewhere)
            assert alice.transport == "udp"
            with trio.fail_after(PATIENCE):
                await alice.wait_connected()
            assert alice.transport == "udp"
        nursery.cancel_scope.cancel()


async def _refuse(*_: object) -> trio.socket.SocketType:
    raise OSError("no network")


async def test_a_lazy_session_sends_nothing(monkeypatch: pytest.MonkeyPatch, elsewhere: Elsewhere) -> None:
    monkeypatch.setattr(reach, "FALLBACK_DELAY", PATIENCE)
    async with running_broker() as server:
        async with session_with(server, ALICE, keep_alive_interval=math.inf) as alice:
            sent: list[bytes] = []
            with monkeypatch.context() as recorded:
                recorded.setattr(UdpTransport, "send", lambda self, frame: sent.append(frame))
                move(alice, elsewhere)
                await trio.testing.wait_all_tasks_blocked(0.01)
            assert sent == []
            # And works when it is needed, from the other address.
            before = alice.welcome.observed
            await alice.set_registration(("alice",), (80,), b"card", None)
            assert alice.welcome.observed != before


class Nat:
    """A router on loopback, whose port is another one after a restart."""

    def __init__(self, server: Endpoint) -> None:
        self._server = server
        self.inner = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
        self.port = 0
        self._client: Any = None
        self._restarted = trio.Event()
        self.is_silent = False

    def restart(self) -> None:
        self._restarted.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await self.inner.bind(("127.0.0.1", 0))
        self.port = self.inner.getsockname()[1]
        with self.inner:
            while True:
                self._restarted = trio.Event()
                with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as outer:
                    await outer.connect(self._server)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._out, outer)
                        nursery.start_soon(self._in, outer)
                        task_status.started()
                        task_status = trio.TASK_STATUS_IGNORED
                        await self._restarted.wait()
                        nursery.cancel_scope.cancel()

    async def _out(self, outer: trio.socket.SocketType) -> None:
        while True:
            data, self._client = await self.inner.recvfrom(2048)
            if not self.is_silent:
                await outer.send(data)

    async def _in(self, outer: trio.socket.SocketType) -> None:
        while True:
            data = await outer.recv(2048)
            await self.inner.sendto(data, self._client)


async def test_a_router_that_was_restarted_is_noticed_by_a_keep_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reach, "FALLBACK_DELAY", PATIENCE)
    async with running_broker() as server, trio.open_nursery() as nursery:
        nat = Nat(server.address)
        await nursery.start(nat.run)
        behind = cast(BrokerServer, SimpleNamespace(address=Endpoint("127.0.0.1", nat.port), key=server.key))
        async with session_with(behind, ALICE, keep_alive_interval=0.2) as alice:
            seen: list[Difference | None] = []
            alice.on_seen = seen.append
            before = alice.welcome.observed
            nat.restart()
            await until_elsewhere(alice, before)
            assert seen == ["port"]
            # Whoever has another reason to doubt need not wait for the next one.
            alice.keep_alive_every(3600.0)
            before = alice.welcome.observed
            nat.restart()
            alice.renew(moved=False)
            await until_elsewhere(alice, before)
            assert seen == ["port", "port"]
        nursery.cancel_scope.cancel()


async def test_further_addresses_are_found_out_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "FALLBACK_DELAY", PATIENCE)
    uplinks: list[str] = []
    monkeypatch.setattr(side, "further_uplinks", lambda: tuple(uplinks))
    monkeypatch.setattr(side, "is_loopback", lambda host: False)
    async with running_broker() as server, session_with(server, ALICE) as alice:

        def proved() -> set[str]:
            (record,) = server.core._registry.instances(ALICE.public_key, trio.current_time())
            return {host for host, _ in record.proved}

        uplinks.append("127.0.0.5")
        alice.renew(moved=True)
        with trio.fail_after(PATIENCE):
            while "127.0.0.5" not in proved():
                await trio.sleep(0.01)
        uplinks[:] = ["127.0.0.6", "127.0.0.7"]
        alice.renew(moved=True)
        with trio.fail_after(PATIENCE):
            while not proved() >= {"127.0.0.6", "127.0.0.7"}:
                await trio.sleep(0.01)
        uplinks.clear()
        alice.renew(moved=True)
        alice.renew(moved=True)
        assert alice._machine._proofs.next_timer() is None


async def test_a_broker_whose_name_leads_elsewhere_now(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It has moved, or the network in which we are now has another address for it."""
    hosts = ["127.0.0.1"]
    asked: list[str] = []

    async def resolve(address: BrokerAddress) -> list[tuple[int, tuple[str, int]]]:
        asked.append(address.host)
        if not hosts:
            raise BrokerUnreachable("no name server either")
        return [(socket.AF_INET, (host, address.port)) for host in hosts]

    monkeypatch.setattr(reach, "_resolve", resolve)
    monkeypatch.setattr(link, "CONNECTION_PATIENCE", 0.5)
    async with trio.open_nursery() as nursery:
        broker = StoppableBroker(nursery)
        first = await broker.start(state_dir=tmp_path)
        address = BrokerAddress("broker.example", first.address.port, first.key)
        async with session(address, ALICE, keep_alive_interval=0.2) as alice:
            await alice.set_registration(("alice",), (80,), b"card", None)
            await broker.stop()
            hosts.clear()
            with trio.fail_after(PATIENCE):
                while len(asked) < 4:
                    await trio.sleep(0.02)
            await broker.start(first.address.port, tmp_path, listen=["127.0.0.3"])
            hosts.append("127.0.0.3")
            with trio.fail_after(PATIENCE):
                while not (alice.connected and alice.broker_host == "127.0.0.3"):
                    await trio.sleep(0.02)
                assert await alice.lookup("alice") == ALICE.public_key
            # However many addresses a name server makes up.
            await broker.stop()
            hosts[:] = [f"127.0.{third}.{last}" for third in (1, 2) for last in range(1, 250)]
            count = len(asked)
            with trio.fail_after(PATIENCE):
                while len(asked) < count + 3:
                    await trio.sleep(0.02)
            assert len(alice._link._transports) <= link.MAX_WAYS
        nursery.cancel_scope.cancel()
