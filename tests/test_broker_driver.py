"""The session's driver and the server's driver over real loopback sockets."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from broker_support import SEALED, make_identity

from ntcpsock._address import BrokerAddress, Endpoint
from ntcpsock._errors import (
    BrokerUnreachable,
    ConfigurationError,
    IdentityMismatch,
    NameNotFound,
    NameTaken,
    PeerOffline,
)
from ntcpsock._identity import Identity
from ntcpsock._servers.broker import BrokerServer, serve_udp_broker
from ntcpsock._servers.broker_core import BrokerLimits
from ntcpsock._servers.datagrams import endpoint_of, socket_address
from ntcpsock._state import Pins
from ntcpsock._traversal.broker import link, reach
from ntcpsock._traversal.broker.driver import (
    MAX_DELIVERIES,
    BrokerSession,
    Delivery,
    Introduction,
    open_broker_session,
)
from ntcpsock._traversal.broker.machine import ClientMachine
from ntcpsock._traversal.broker.message import MAX_CARD
from ntcpsock._traversal.punch.driver import has_ipv6

ALICE, BOB = make_identity(1), make_identity(2)


@asynccontextmanager
async def running_broker(
    listen: str = "127.0.0.1",
    port: int = 0,
    state_dir: Path | None = None,
    limits: BrokerLimits | None = None,
) -> AsyncIterator[BrokerServer]:
    serve = partial(
        serve_udp_broker,
        listen,
        port,
        state_dir=state_dir,
        stun=[Endpoint("0.0.0.0", 3478), Endpoint("::", 3478), Endpoint("192.0.2.9", 3479)],
        limits=limits,
    )
    async with trio.open_nursery() as nursery:
        server: BrokerServer = await nursery.start(serve)
        yield server
        nursery.cancel_scope.cancel()


class StoppableBroker:
    """A broker that can die while sessions live on."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()

    async def start(
        self, port: int = 0, state_dir: Path | None = None, listen: Sequence[str] = ("127.0.0.1",)
    ) -> BrokerServer:
        self._scope, self._stopped = trio.CancelScope(), trio.Event()

        async def serve(task_status: trio.TaskStatus[BrokerServer]) -> None:
            with self._scope:
                await serve_udp_broker(
                    listen, port, state_dir=state_dir, elsewhere=listen, task_status=task_status
                )
            self._stopped.set()

        server: BrokerServer = await self._nursery.start(serve)
        return server

    async def stop(self) -> None:
        self._scope.cancel()
        await self._stopped.wait()


def session(
    server: BrokerServer | BrokerAddress,
    identity: Identity,
    *,
    pins: Pins | None = None,
    keep_alive_interval: float = 20.0,
    timeout: float = 5.0,
) -> AbstractAsyncContextManager[BrokerSession]:
    if isinstance(server, BrokerServer):
        server = BrokerAddress(server.address.host, server.address.port, server.key)
    return open_broker_session(
        server,
        identity,
        pins=pins or Pins(None),
        keep_alive_interval=keep_alive_interval,
        timeout=timeout,
    )


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this host has no IPv6 loopback")


@pytest.mark.parametrize("listen", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
async def test_two_nodes_find_each_other(listen: str) -> None:
    async with (
        running_broker(listen) as server,
        session(server, ALICE) as alice,
        session(server, BOB) as bob,
    ):
        assert alice.connected
        assert alice.welcome.observed.host == listen
        assert alice.welcome.stun == (Endpoint(listen, 3478), Endpoint("192.0.2.9", 3479))
        assert 0 < alice.rtt < 5
        assert alice.broker_key == server.key
        await alice.set_registration(("alice",), (8000,), b"card", None)
        await bob.set_registration(("bob",), (), None, None)
        assert await bob.lookup("alice") == ALICE.public_key
        introduction = await bob.introduce(ALICE.public_key, 8000, SEALED, name="alice")
        assert introduction == Introduction(ALICE.public_key, alice.instance, b"card", listen)
        delivery = await alice.deliveries.receive()
        assert delivery == Delivery(BOB.public_key, bob.instance, "bob", SEALED, listen)
        alice.send_reply(BOB.public_key, bob.instance, SEALED + b"answer")
        delivery = await bob.deliveries.receive()
        assert delivery == Delivery(ALICE.public_key, alice.instance, "alice", SEALED + b"answer", listen)


@needs_ipv6
async def test_a_wildcard_broker_is_reached_over_both_families() -> None:
    async with running_broker("::") as server:
        port = server.address.port
        for host in ("127.0.0.1", "::1"):
            async with session(BrokerAddress(host, port, server.key), ALICE) as alice:
                assert alice.welcome.observed.host == host
                assert alice.welcome.stun[0] == Endpoint(host, 3478)


async def test_a_name_with_a_dead_address_first_costs_a_quarter_of_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running_broker() as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.2", server.address.port))

            async def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
                assert host == "broker.example"
                return [
                    (socket.AF_INET, socket.SOCK_DGRAM, 17, "", (address, port))
                    for address in ("127.0.0.2", "127.0.0.1")
                ]

            monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)
            address = BrokerAddress("broker.example", server.address.port, server.key)
            async with session(address, ALICE) as alice:
                assert alice.welcome.stun[0].host == "127.0.0.1"
    assert len(server.core) == 1


async def test_a_lost_broker_is_looked_for_at_all_its_addresses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A machine whose IPv6 breaks while it runs: the session goes on over IPv4, as the same instance."""
    places = [(socket.AF_INET, ("127.0.0.2", 0)), (socket.AF_INET, ("127.0.0.1", 0))]

    async def resolve(address: BrokerAddress) -> list[tuple[int, tuple[str, int]]]:
        return [(family, (host, address.port)) for family, (host, _) in places]

    monkeypatch.setattr(reach, "_resolve", resolve)
    monkeypatch.setattr(reach, "ClientMachine", partial(ClientMachine, request_timeout=0.5))
    monkeypatch.setattr(link, "CONNECTION_PATIENCE", 0.5)
    async with trio.open_nursery() as nursery:
        broker = StoppableBroker(nursery)
        first = await broker.start(state_dir=tmp_path, listen=["127.0.0.1", "127.0.0.2"])
        address = BrokerAddress("broker.example", first.address.port, first.key)
        async with session(address, ALICE, keep_alive_interval=0.1) as alice:
            await alice.set_registration(("alice",), (80,), b"card", None)
            assert alice.broker_host == "127.0.0.2"
            for host in ("127.0.0.1", "127.0.0.2"):
                await broker.stop()
                await broker.start(first.address.port, tmp_path, listen=[host])
                with trio.fail_after(60):
                    while not (alice.connected and alice.broker_host == host):
                        await trio.sleep(0.02)
                    assert await alice.lookup("alice") == ALICE.public_key
        nursery.cancel_scope.cancel()


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
async def test_a_lost_broker_is_looked_for_where_it_said_that_it_is_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An address in the node's settings, one of the other family in the broker's Welcome."""
    monkeypatch.setattr(reach, "ClientMachine", partial(ClientMachine, request_timeout=0.5))
    monkeypatch.setattr(link, "CONNECTION_PATIENCE", 0.5)
    async with trio.open_nursery() as nursery:
        broker = StoppableBroker(nursery)
        first = await broker.start(state_dir=tmp_path, listen=["127.0.0.1", "::1"])
        address = BrokerAddress("127.0.0.1", first.address.port, first.key)
        async with session(address, ALICE, keep_alive_interval=0.1) as alice:
            await alice.set_registration(("alice",), (80,), b"card", None)
            for host in ("::1", "127.0.0.1", "::1"):
                await broker.stop()
                await broker.start(first.address.port, tmp_path, listen=[host])
                with trio.fail_after(60):
                    while not (alice.connected and alice.broker_host == host):
                        await trio.sleep(0.02)
                    assert await alice.lookup("alice") == ALICE.public_key
            assert len(alice._link._transports) == 3
        nursery.cancel_scope.cancel()


async def test_errors_of_requests() -> None:
    async with (
        running_broker() as server,
        session(server, ALICE) as alice,
        session(server, BOB) as bob,
    ):
        await alice.set_registration(("alice",), (), None, ("nobody",))
        with pytest.raises(NameTaken) as taken:
            await bob.set_registration(("alice",), (), None, None)
        assert taken.value.errno == errno.EADDRINUSE
        with pytest.raises(NameNotFound) as not_found:
            await bob.lookup("alice")
        assert not_found.value.errno == socket.EAI_NONAME
        with pytest.raises(NameNotFound):
            await bob.introduce(ALICE.public_key, 1, SEALED, name="alice")
        with pytest.raises(PeerOffline) as offline:
            await bob.introduce(ALICE.public_key, 1, SEALED)
        assert offline.value.errno == errno.ECONNREFUSED
        with pytest.raises(ConfigurationError):
            await bob.lookup("Not A Name")
        with pytest.raises(ConfigurationError):
            await bob.set_registration(("b",), (), b"c" * (MAX_CARD + 1), None)
        with pytest.raises(ConfigurationError):
            bob.send_reply(b"short", bob.instance, SEALED)
        for start in (0, 8):
            await bob.set_registration(tuple(f"n{start + i}" for i in range(8)), (), None, None)
        with pytest.raises(ConfigurationError, match="as many names"):
            await bob.set_registration(("one-more",), (), None, None)


async def test_a_private_registration_keeps_its_card() -> None:
    async with (
        running_broker() as server,
        session(server, ALICE) as alice,
        session(server, BOB) as bob,
    ):
        await bob.set_registration(("bob",), (), None, None)
        await alice.set_registration(("alice",), (80,), b"card", ("bob",))
        introduction = await bob.introduce(ALICE.public_key, 80, SEALED, name="alice")
        assert introduction.card is None


async def test_more_ports_than_fit_are_cut() -> None:
    async with running_broker() as server, session(server, ALICE) as alice:
        await alice.set_registration((), tuple(range(1, 500)), None, None)


async def test_the_first_key_is_pinned_and_another_one_refused(tmp_path: Path) -> None:
    pins = Pins(tmp_path)
    async with running_broker() as server:
        port = server.address.port
        address = BrokerAddress("127.0.0.1", port)
        async with session(address, ALICE, pins=pins) as alice:
            assert alice.broker_key == server.key
        assert pins.get("brokers", f"127.0.0.1:{port}") == server.key
        async with session(address, ALICE, pins=pins):
            pass
    async with running_broker(port=port) as impostor:
        assert impostor.key != server.key
        with pytest.raises(IdentityMismatch) as mismatch:
            async with session(address, ALICE, pins=pins):
                pass
        assert mismatch.value.errno == errno.ECONNABORTED


async def test_a_key_in_the_address_that_the_broker_has_not() -> None:
    async with running_broker() as server:
        address = BrokerAddress("127.0.0.1", server.address.port, BOB.public_key)
        with pytest.raises(IdentityMismatch):
            async with session(address, ALICE):
                pass
        assert len(server.core) == 0


async def test_a_silent_broker_is_unreachable(autojump_clock: trio.testing.MockClock) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        begin = trio.current_time()
        with pytest.raises(BrokerUnreachable) as unreachable:
            async with session(BrokerAddress("127.0.0.1", silent.getsockname()[1]), ALICE, timeout=3.0):
                pass
    assert unreachable.value.errno == errno.ENETUNREACH
    assert trio.current_time() - begin == pytest.approx(3.0)


async def test_a_refusing_host_is_unreachable_before_the_time_out() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with trio.fail_after(60), pytest.raises(BrokerUnreachable, match="refused"):
        async with session(BrokerAddress("127.0.0.1", port, ALICE.public_key), ALICE, timeout=3600):
            pass


async def test_no_route_and_no_such_host_are_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    # A broadcast address may not be connected to without SO_BROADCAST: the system says so at once.
    with pytest.raises(BrokerUnreachable):
        async with session(BrokerAddress("255.255.255.255", 6060, ALICE.public_key), ALICE):
            pass

    async def getaddrinfo(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(BrokerUnreachable, match=r"nowhere\.invalid"):
        async with session(BrokerAddress("nowhere.invalid", 6060), ALICE):
            pass


async def test_a_broker_that_comes_a_moment_late_is_found() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with trio.open_nursery() as nursery:

        async def serve_later() -> None:
            await trio.sleep(0.1)
            async with running_broker(port=port):
                await trio.sleep_forever()

        nursery.start_soon(serve_later)
        async with session(BrokerAddress("127.0.0.1", port), ALICE) as alice:
            assert alice.connected
        nursery.cancel_scope.cancel()


async def test_what_the_block_raises_leaves_as_it_is() -> None:
    async with running_broker() as server:
        with pytest.raises(KeyError):
            async with session(server, ALICE):
                raise KeyError("mine")
        with pytest.raises(ExceptionGroup, match="mine"):
            async with session(server, ALICE):
                raise ExceptionGroup("mine", [KeyError()])


async def test_a_restarted_broker_is_told_everything_again(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        broker = StoppableBroker(nursery)
        first = await broker.start(state_dir=tmp_path)
        async with session(first, ALICE, keep_alive_interval=0.2) as alice:
            await alice.set_registration(("alice",), (80,), b"card", None)
            await broker.stop()
            second = await broker.start(first.address.port, tmp_path)
            assert second.key == first.key
            with trio.fail_after(60):
                async with session(second, BOB) as bob:
                    # Perhaps offline still, but known: names outlive the broker.
                    assert await bob.lookup("alice") == ALICE.public_key
                    introduction = await _introduce_when_online(bob)
                await alice.wait_connected()
            assert introduction.card == b"card"
        nursery.cancel_scope.cancel()


async def _introduce_when_online(bob: BrokerSession) -> Introduction:
    while True:
        try:
            return await bob.introduce(ALICE.public_key, 80, SEALED, name="alice")
        except PeerOffline:
            await trio.sleep(0.05)


async def test_requests_fail_when_the_broker_has_gone(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        broker = StoppableBroker(nursery)
        server = await broker.start()
        async with session(server, ALICE) as alice:
            await broker.stop()
            begin = trio.current_time()
            with pytest.raises(BrokerUnreachable):
                await alice.lookup("bob")
            assert trio.current_time() - begin == pytest.approx(5.0)
            assert not alice.connected
            with trio.move_on_after(100) as scope:
                await alice.wait_connected()
            assert scope.cancelled_caught


async def test_cancelled_requests_leave_nothing_behind() -> None:
    async with running_broker() as server, session(server, ALICE) as alice:
        for _ in range(10):
            with trio.CancelScope() as scope:
                scope.cancel()
                await alice.lookup("bob")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(alice.lookup, "bob")
                nursery.start_soon(alice.set_registration, ("alice",), (), None, None)
                await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        assert alice._answers == {}
        with pytest.raises(NameNotFound):
            await alice.lookup("bob")
        await alice.set_registration(("alice",), (), None, None)


async def test_a_cancelled_registration_stays_said() -> None:
    async with running_broker() as server, session(server, ALICE) as alice, session(server, BOB) as bob:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alice.set_registration, ("alice",), (), None, None)
            while not alice._answers:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        with trio.fail_after(60):
            while True:
                try:
                    assert await bob.lookup("alice") == ALICE.public_key
                    break
                except NameNotFound:
                    await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("address", "endpoint", "back"),
    [
        (("192.0.2.1", 5), Endpoint("192.0.2.1", 5), ("192.0.2.1", 5)),
        (("::ffff:192.0.2.1", 5, 0, 0), Endpoint("192.0.2.1", 5), ("::ffff:192.0.2.1", 5, 0, 0)),
        (("2001:db8::1", 5, 0, 0), Endpoint("2001:db8::1", 5), ("2001:db8::1", 5, 0, 0)),
        (("fe80::1", 5, 0, 3), Endpoint("fe80::1%3", 5), ("fe80::1", 5, 0, 3)),
    ],
)
def test_sources_as_nodes_see_them(
    address: tuple[str, int] | tuple[str, int, int, int],
    endpoint: Endpoint,
    back: tuple[str, int] | tuple[str, int, int, int],
) -> None:
    assert endpoint_of(address) == endpoint
    assert socket_address(endpoint, ipv6=len(back) == 4) == back


async def test_a_closed_session_says_so() -> None:
    async with running_broker() as server:
        async with session(server, ALICE) as alice, session(server, BOB) as bob:
            await alice.set_registration(("alice",), (), None, None)
        with pytest.raises(trio.ClosedResourceError):
            await alice.lookup("bob")
        with pytest.raises(trio.EndOfChannel):
            await alice.deliveries.receive()
        await alice.wait_connected()
        assert not alice.connected
        # Bye was heard: nobody is introduced to what is gone.
        async with session(server, BOB) as bob:
            with pytest.raises(PeerOffline):
                await bob.introduce(ALICE.public_key, 1, SEALED)


async def test_closing_wakes_whoever_waits(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        broker = StoppableBroker(nursery)
        server = await broker.start()

        async def wait(alice: BrokerSession) -> None:
            with pytest.raises(BrokerUnreachable):
                await alice.lookup("bob")

        async with session(server, ALICE) as alice:
            await broker.stop()
            begin = trio.current_time()
            nursery.start_soon(wait, alice)
            await trio.testing.wait_all_tasks_blocked()
    assert trio.current_time() == begin


async def test_deliveries_that_nobody_takes_are_dropped_and_counted() -> None:
    async with (
        running_broker() as server,
        session(server, ALICE) as alice,
        session(server, BOB) as bob,
    ):
        await alice.set_registration(("alice",), (), None, None)
        for _ in range(MAX_DELIVERIES + 10):
            await bob.introduce(ALICE.public_key, 1, SEALED)
        # An answer to it comes after everything that was sent before.
        with pytest.raises(NameNotFound):
            await alice.lookup("nobody")
        assert alice.deliveries_dropped > 0
        assert alice.deliveries.statistics().current_buffer_used == MAX_DELIVERIES


async def test_many_requests_at_once() -> None:
    async with running_broker() as server, session(server, ALICE) as alice:
        await alice.set_registration(("alice",), (), None, None)
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(alice.lookup, "alice")


async def test_noise_does_not_disturb_the_server() -> None:
    async with running_broker() as server, session(server, ALICE) as alice:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as noisy:
            for size in (0, 1, 57, 64, 1199, 1200, 1201, 60000):
                noisy.sendto(bytes(size), server.address)
                noisy.sendto(b"\x01" * size, server.address)
        with pytest.raises(NameNotFound):
            await alice.lookup("nobody")
        assert len(server.core) == 1


async def test_an_unusable_address_or_state_directory(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="assign"):
        await serve_udp_broker("203.0.113.77", 0, state_dir=None)
    (tmp_path / "names.sqlite").write_bytes(b"not a database, certainly not" * 100)
    with pytest.raises(ConfigurationError):
        await serve_udp_broker("127.0.0.1", 0, state_dir=tmp_path)
    with pytest.raises(ValueError, match="STUN"):
        await serve_udp_broker("127.0.0.1", 0, state_dir=None, stun=[Endpoint("192.0.2.1", 1)] * 9)
