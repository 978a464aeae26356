"""How a session finds its broker, proves it, and finds it again when it is lost."""

from __future__ import annotations

import errno
import socket
from collections import Counter
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from broker_driver_support import ALICE, BOB, StoppableBroker, running_broker, session
from broker_support import SEALED

from ntcpsock._address import BrokerAddress, Endpoint
from ntcpsock._errors import (
    BrokerUnreachable,
    IdentityMismatch,
    PeerOffline,
)
from ntcpsock._state import Pins
from ntcpsock._traversal.broker import link, reach
from ntcpsock._traversal.broker.driver import (
    BrokerSession,
    Delivery,
    Introduction,
)
from ntcpsock._traversal.broker.machine import ClientMachine
from ntcpsock._traversal.punch.driver import has_ipv6


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


@pytest.mark.parametrize(
    ("listen", "hosts"),
    [
        ("127.0.0.1", ["127.0.0.1"]),
        ("0.0.0.0", ["127.0.0.1", "127.0.0.2"]),
        pytest.param("::", ["127.0.0.2", "::1"], marks=needs_ipv6),
    ],
)
async def test_keep_alives_are_answered_from_where_they_went(
    listen: str, hosts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of both addresses come in one batch."""
    heard: Counter[bytes] = Counter()
    receive = ClientMachine._receive_short_ack

    def count(machine: ClientMachine, data: bytes, now: float) -> None:
        receive(machine, data, now)
        heard[machine.own_key] += 1

    monkeypatch.setattr(ClientMachine, "_receive_short_ack", count)
    async with running_broker(listen) as server, AsyncExitStack() as stack:
        for host, identity in zip(hosts, (ALICE, BOB), strict=False):
            address = BrokerAddress(host, server.address.port, server.key)
            await stack.enter_async_context(session(address, identity, keep_alive_interval=0.1))
        with trio.fail_after(60):
            while len(heard) < len(hosts) or min(heard.values()) < 5:
                await trio.sleep(0.02)
        assert not server.core.dropped
        assert not server.unsent


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


async def test_a_name_that_leads_elsewhere_by_now_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A broker that moved to another address while nodes ran: none of the known ways leads to it."""
    places = ["127.0.0.1"]

    async def resolve(address: BrokerAddress) -> list[tuple[int, tuple[str, int]]]:
        return [(socket.AF_INET, (host, address.port)) for host in places]

    monkeypatch.setattr(reach, "_resolve", resolve)
    async with trio.open_nursery() as nursery:
        broker = StoppableBroker(nursery)
        first = await broker.start(state_dir=tmp_path)
        address = BrokerAddress("broker.example", first.address.port, first.key)
        async with session(address, ALICE, keep_alive_interval=0.1) as alice:
            await alice.set_registration(("alice",), (80,), b"card", None)
            await broker.stop()
            places[:] = ["127.0.0.2"]
            await broker.start(first.address.port, tmp_path, listen=["127.0.0.2"])
            with trio.fail_after(60):
                while not (alice.connected and alice.broker_host == "127.0.0.2"):
                    await trio.sleep(0.02)
                assert await alice.lookup("alice") == ALICE.public_key
        nursery.cancel_scope.cancel()


async def test_a_list_of_brokers_of_which_one_answers() -> None:
    async with running_broker("127.0.0.3") as server:
        address = BrokerAddress("127.0.0.1,nowhere.invalid,127.0.0.3", server.address.port, server.key)
        async with session(address, ALICE) as alice:
            assert alice.broker_host == "127.0.0.3"
    with pytest.raises(BrokerUnreachable, match=r"nowhere\.invalid"):
        async with session(BrokerAddress("nowhere.invalid,nowhere.invalid", 1), ALICE):
            pass
