"""The session's driver and the server's driver over real loopback sockets: requests, deliveries, ends."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest
import trio
import trio.testing
from broker_driver_support import ALICE, BOB, StoppableBroker, running_broker, session
from broker_support import SEALED

from ntcpsock._address import Endpoint
from ntcpsock._errors import (
    BrokerUnreachable,
    ConfigurationError,
    NameNotFound,
    NameTaken,
    PeerOffline,
)
from ntcpsock._servers.broker import serve_udp_broker
from ntcpsock._servers.datagrams import endpoint_of, socket_address
from ntcpsock._traversal.broker.driver import (
    MAX_DELIVERIES,
    BrokerSession,
)
from ntcpsock._traversal.broker.fields import MAX_CARD


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


async def test_what_the_block_raises_leaves_as_it_is() -> None:
    async with running_broker() as server:
        with pytest.raises(KeyError):
            async with session(server, ALICE):
                raise KeyError("mine")
        with pytest.raises(ExceptionGroup, match="mine"):
            async with session(server, ALICE):
                raise ExceptionGroup("mine", [KeyError()])


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
        assert server.core.dropped["too many datagrams"] == 0


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
