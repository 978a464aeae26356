"""What a node renews when its network changes, and whom it tells."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from netlink_support import HOME, LOOPBACK, snapshot
from test_network_driver import Clocks, Script
from world import World, open_world

from ntcpsock._address import Endpoint
from ntcpsock._lifetimes import Lifetimes
from ntcpsock._node import Node
from ntcpsock._node_network import NetworkChange, NodeNetwork
from ntcpsock._traversal.gather import WarmPort
from ntcpsock._traversal.punch.message import NATProfile, decode_card_untrusted
from ntcpsock.trio import open_node

PATIENCE = 60.0
_DESCRIPTORS = "/proc/self/fd"
AWAY, BACK = snapshot(LOOPBACK), snapshot(*HOME)
CHANGE = NetworkChange(frozenset(), frozenset(), True, False, 0.0)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """The news of all nodes of this process."""
    made = Script(BACK)
    monkeypatch.setattr(NodeNetwork, "open_source", staticmethod(lambda: made))
    return made


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    made = Clocks()
    monkeypatch.setattr(NodeNetwork, "clocks", staticmethod(made))
    return made


@asynccontextmanager
async def listening(world: World) -> AsyncIterator[Node]:
    async with world.node("alice") as alice, await alice.open_listener(8000):
        yield alice


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():
            await trio.sleep(0.01)


def ready_ports(node: Node) -> list[WarmPort]:
    return list(node._ports.for_dials._ready)


async def test_everything_is_renewed_and_told(tmp_path: Path, script: Script) -> None:
    async with open_world(tmp_path) as world, listening(world) as alice, world.node() as bob:
        order: list[str] = []
        changes: list[NetworkChange] = []
        renew = alice._session.renew

        def renewing(*, moved: bool) -> None:
            order.append(f"broker {moved}")
            renew(moved=moved)

        alice._session.renew = renewing  # type: ignore[method-assign]
        alice.network.subscribe(lambda change: order.append("subscriber"))
        unsubscribe = alice.network.subscribe(changes.append)
        old = ready_ports(alice)
        listened = alice.listening_port
        assert old
        assert listened is not None
        before = world.server.core.counters.registrations

        async def wait() -> None:
            changes.append(await alice.network.wait_change())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            script.tell(AWAY)
        assert changes[0] == changes[1]
        assert (changes[0].gone, changes[0].route_changed) == (HOME_ADDRESSES, True)
        assert order == ["broker True", "subscriber"]
        # The old ports are closed with all that they held, and there are as many new ones.
        assert all(sock.fileno() < 0 for port in old for sock in (*port.listeners, *port.stun_sockets))
        await until(lambda: len(ready_ports(alice)) == len(old))
        assert not set(map(id, ready_ports(alice))) & set(map(id, old))
        await until(lambda: alice.listening_port is not listened)
        await until(lambda: all(sock.fileno() < 0 for sock in listened.listeners))
        await until(lambda: world.server.core.counters.registrations > before)
        # Its card names the new port, and nothing of the old one.
        fresh = alice.listening_port
        assert fresh is not None
        (record,) = world.server.core._registry.instances(alice.public_key, trio.current_time())
        assert record.card is not None
        card = decode_card_untrusted(record.card, alice.public_key)
        assert {candidate.port for candidate in card.candidates if candidate.transport == "tcp"} == {
            fresh.port
        }
        async with await bob.open_stream("alice", 8000) as stream:
            assert stream.peer.name == "alice"
        unsubscribe()
        unsubscribe()
        script.tell(BACK)
        await until(lambda: order.count("subscriber") == 2)
        assert len(changes) == 2
        assert alice.network.changes == 2


HOME_ADDRESSES = frozenset({"10.0.0.2"})


async def test_after_a_sleep_what_still_lives_stays(tmp_path: Path, script: Script, clocks: Clocks) -> None:
    async with open_world(tmp_path) as world, listening(world) as alice:
        listened, ports = alice.listening_port, ready_ports(alice)
        changes: list[NetworkChange] = []
        alice.network.subscribe(changes.append)
        clocks.slept += 3600.0
        script.tell()
        await until(lambda: bool(changes))
        assert (changes[0].slept, changes[0].moved) == (True, False)
        await trio.sleep(0.3)
        assert alice.listening_port is listened
        assert ready_ports(alice) == ports
        assert alice._session.connected


async def test_after_a_sleep_what_is_dead_goes(tmp_path: Path, script: Script, clocks: Clocks) -> None:
    async with open_world(tmp_path) as world, listening(world) as alice:
        listened, ports = alice.listening_port, ready_ports(alice)
        assert listened is not None
        for port in (listened, *ports):
            for sock in port.stun_sockets:
                sock.shutdown(trio.socket.SHUT_RDWR)
        clocks.slept += 3600.0
        script.tell()
        await until(lambda: alice.listening_port is not listened)
        await until(
            lambda: (
                len(ready_ports(alice)) == len(ports)
                and not set(map(id, ports)) & set(map(id, ready_ports(alice)))
            )
        )


async def test_a_change_while_ports_are_gathered(tmp_path: Path, script: Script) -> None:
    """Many in a row: each begins anew, nothing is left behind, and the last one is what counts."""
    async with open_world(tmp_path) as world, listening(world) as alice, world.node() as bob:
        listened = alice.listening_port
        for number in range(10):
            script.tell(AWAY if number % 2 else BACK)
            alice.network._system_tells(CHANGE)
            await trio.sleep(0.002 * number)
        await until(lambda: len(ready_ports(alice)) == alice.config.warm_ports)
        await until(lambda: alice.listening_port is not listened)
        with trio.fail_after(PATIENCE):
            while True:
                try:
                    stream = await bob.open_stream("alice", 8000)
                    break
                except OSError:
                    continue
        stream.reset()


async def test_a_dial_notices_before_the_system_tells(
    tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world(tmp_path) as world, listening(world), world.node() as bob:
        stale = {id(port) for port in ready_ports(bob)}
        monkeypatch.setattr(WarmPort, "is_stale", property(lambda port: id(port) in stale))
        script.now = AWAY
        port = await bob.take_port()
        assert id(port) not in stale
        port.close()
        # Nobody has told any news.
        await until(lambda: bob.network.changes == 1)


async def test_what_is_seen_behind_the_router_is_a_change_too(tmp_path: Path, script: Script) -> None:
    async with open_world(tmp_path) as world, listening(world) as alice:
        listened = alice.listening_port
        changes: list[NetworkChange] = []
        alice.network.subscribe(changes.append)
        renewals: list[bool] = []
        alice._session.renew = lambda *, moved: renewals.append(moved)  # type: ignore[method-assign]
        alice._session.on_seen(None)
        assert changes == []
        alice._session.on_seen("host")
        (change,) = changes
        assert change == NetworkChange(frozenset(), frozenset(), True, False, change.at)
        # The broker knows us already.
        assert renewals == []
        await until(lambda: alice.listening_port is not listened)


async def test_a_mapping_that_lives_shortly_is_no_news(
    tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router that forgets sooner than the keep-alives come, each time."""
    async with open_world(tmp_path) as world, listening(world) as alice:
        checks: list[int] = []
        alice._session.on_seen("port")
        assert alice.network.changes == 1
        monkeypatch.setattr(alice._ports, "check", lambda: checks.append(1))
        for _ in range(3):
            alice._session.on_seen("port")
        assert (alice.network.changes, len(checks)) == (1, 3)
        alice._session.on_seen("host")
        assert alice.network.changes == 2


async def test_suspicion_is_cheap(tmp_path: Path, script: Script) -> None:
    async with open_world(tmp_path) as world, listening(world) as alice:
        listened = alice.listening_port
        renewals: list[bool] = []
        alice._session.renew = lambda *, moved: renewals.append(moved)  # type: ignore[method-assign]
        for _ in range(100):
            alice.network.suspect()
        assert renewals == [False]
        await trio.sleep(0.2)
        assert alice.listening_port is listened
        assert alice.network.changes == 0


async def test_what_was_known_of_the_nat_is_forgotten_and_learnt_anew(
    tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world(tmp_path) as world, listening(world) as alice:
        learned, mapper = alice._ports._learned, alice._ports.mappings.mapper
        assert mapper is not None
        learned._profile, learned._public = (
            NATProfile(filtering="address-dependent"),
            frozenset({"192.0.2.1"}),
        )
        mapper._silent_until, mapper._failures = math.inf, 3
        asked: list[int] = []

        async def learn() -> bool:
            asked.append(1)
            return True

        monkeypatch.setattr(learned, "learn", learn)
        script.tell(AWAY)
        await until(lambda: bool(asked))
        assert (learned._profile, learned._public) == (NATProfile(), frozenset())
        assert (mapper._silent_until, mapper._failures) == (-math.inf, 0)


async def test_keep_alives_follow_the_network(tmp_path: Path, script: Script) -> None:
    Lifetimes(tmp_path / "alice").put("192.0.2.7", 5.0)
    async with open_world(tmp_path) as world, listening(world) as alice:
        interval, consent = alice._session._machine._keep_alives.interval, alice.consent_interval
        alice.network._public_host = "192.0.2.8"
        network = alice.network
        network._keep_alive_for("192.0.2.7")
        assert alice._session._machine._keep_alives.interval == pytest.approx(3.0)
        assert alice._ports.for_dials.pace == alice._ports.listening.pace == pytest.approx(0.15)
        assert alice.consent_interval < consent
        # In a network that nobody has measured all is as usual; the next Welcome says which one it is.
        alice._session.on_seen(None)
        assert network._public_host == "127.0.0.1"
        assert alice._session._machine._keep_alives.interval == interval
        assert (alice._ports.for_dials.pace, alice.consent_interval) == (1.0, consent)


async def test_other_stun_servers(tmp_path: Path, script: Script) -> None:
    async with open_world(tmp_path) as world, listening(world) as alice:
        alice.network._announced = ()
        alice.stun_servers = tuple[Endpoint]()
        alice._ports.set_servers(())
        alice._session.on_seen(None)
        assert list(alice.stun_servers) == [world.stun]
        assert alice._ports.for_dials.servers == alice._ports.listening.servers == (world.stun,)
        assert alice.surroundings._servers == (world.stun,)


async def test_a_lazy_node_watches_and_sends_nothing(tmp_path: Path, script: Script) -> None:
    async with open_world(tmp_path) as world, listening(world), world.node(keep_alive="lazy") as bob:
        await trio.testing.wait_all_tasks_blocked(0.01)  # until it watches, too
        script.tell(AWAY)
        await until(lambda: bob.network.changes == 1)
        assert bob._session.connected
        assert ready_ports(bob) == []
        (await bob.open_stream("alice", 8000)).reset()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's list of descriptors")
async def test_nothing_is_left_of_it(tmp_path: Path) -> None:
    """The real source, opened and closed."""
    async with open_world(tmp_path) as world:
        async with open_node(world.config()):
            pass
        before = len(os.listdir(_DESCRIPTORS))
        for _ in range(3):
            async with open_node(world.config()) as node:
                await node.wait_warm()
        assert len(os.listdir(_DESCRIPTORS)) == before
