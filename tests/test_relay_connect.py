"""connect() by way of a relay, over loopback."""

from __future__ import annotations

import errno
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from world import World, open_world

from ntcpsock._address import BrokerAddress, Endpoint
from ntcpsock._config import Config
from ntcpsock._errors import ConfigurationError, TraversalFailed
from ntcpsock._listener import NTCPListener
from ntcpsock._node import Node
from ntcpsock._servers.broker import serve_broker
from ntcpsock._session.stream import NTCPStream
from ntcpsock._traversal import relay_plan
from ntcpsock._traversal.plan import RAW_TECHNIQUES
from ntcpsock._traversal.punch.driver import has_ipv6
from ntcpsock._traversal.punch.message import Card
from ntcpsock._traversal.relayed import why_no_relay
from ntcpsock.trio import open_node

PATIENCE = 60.0


async def connect(node: Node, listener: NTCPListener) -> tuple[NTCPStream, NTCPStream]:
    streams: list[NTCPStream] = []

    async def accept() -> None:
        streams.append(await listener.accept())

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            mine = await node.open_stream("alice", 8000)
    return mine, streams[0]


async def check_both_ways(one: NTCPStream, two: NTCPStream) -> None:
    async with one, two:
        data = bytes(range(256)) * 4096

        async def send(stream: NTCPStream) -> None:
            await stream.send_all(data)
            await stream.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, one)
            nursery.start_soon(send, two)
            assert b"".join([bytes(part) async for part in two]) == data
            assert b"".join([bytes(part) async for part in one]) == data


@pytest.mark.parametrize(("dialer", "listener"), [("only", "auto"), ("auto", "only"), ("only", "only")])
async def test_relay_only(tmp_path: Path, dialer: str, listener: str) -> None:
    """Whichever end says it: everything goes over the relay, at once, and neither end learns of an address."""
    async with open_world(tmp_path, tcp=True) as world:
        async with world.node("alice", relay=listener) as alice, world.node(relay=dialer) as bob:
            async with await alice.open_listener(8000) as listening:
                mine, theirs = await connect(bob, listening)
                for stream in (mine, theirs):
                    assert (stream.path.kind, stream.path.technique) == ("relay", "relay")
                    assert stream.path.remote == world.server.address
                await check_both_ways(mine, theirs)
                attempts = [entry for entry in mine.report.attempts if entry.technique != "relay"]
                assert attempts == []
        await until_relay_is_free(world)


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
async def test_a_world_without_ipv4(tmp_path: Path) -> None:
    """Nothing is aimed at, so it does not matter that joint techniques need an IPv4 address."""
    async with open_world(tmp_path, "::1", tcp=True) as world:
        async with world.node("alice", relay="only") as alice, world.node(relay="only") as bob:
            async with await alice.open_listener(8000) as listening:
                mine, theirs = await connect(bob, listening)
                assert mine.path.kind == "relay"
                assert mine.path.remote[0] == "::1"
                await check_both_ways(mine, theirs)


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
async def test_a_relay_joins_two_families(tmp_path: Path) -> None:
    hosts = ("127.0.0.1", "::1")
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve_broker, hosts, 0, state_dir=None, elsewhere=hosts))
        uris = [str(BrokerAddress(host, server.address.port, server.key)) for host in hosts]
        async with (
            open_node(broker=uris[0], name="alice", state_dir=tmp_path / "alice", relay="only") as alice,
            open_node(broker=uris[1], state_dir=tmp_path / "bob", relay="only") as bob,
        ):
            async with await alice.open_listener(8000) as listening:
                mine, theirs = await connect(bob, listening)
                assert (theirs.path.remote[0], mine.path.remote[0]) == hosts
                await check_both_ways(mine, theirs)
        nursery.cancel_scope.cancel()


async def test_without_a_relay_no_other_technique_counts_as_chosen(tmp_path: Path) -> None:
    """Who only forbids the relay has not asked for raw packets, and is not told what they lack."""
    async with open_world(tmp_path) as world:
        async with world.node("alice") as alice, world.node(relay="never") as bob:
            async with await alice.open_listener(8000) as listening:
                mine, theirs = await connect(bob, listening)
                assert not {entry.technique for entry in mine.report.attempts} & set(RAW_TECHNIQUES)
                await check_both_ways(mine, theirs)


async def test_a_relayed_dial_is_no_success_of_the_network(tmp_path: Path) -> None:
    """It says nothing of the direct techniques, and the next dial tries them in another order."""
    async with open_world(tmp_path, tcp=True) as world:
        async with world.node("alice", relay="only") as alice, world.node() as bob:
            async with await alice.open_listener(8000) as listening:
                mine, theirs = await connect(bob, listening)
                await check_both_ways(mine, theirs)
                assert bob.surroundings.earlier_failures(await bob.resolve("alice")) == 1


async def until_relay_is_free(world: World) -> None:
    assert world.server.relay is not None
    with trio.fail_after(PATIENCE):
        while world.server.relay.counters.open:
            await trio.sleep(0.01)


async def test_a_direct_path_asks_no_relay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_plan, "SHORTEST_GRACE", PATIENCE)
    monkeypatch.setattr(relay_plan, "LONGEST_GRACE", PATIENCE)
    async with open_world(tmp_path, tcp=True) as world:
        async with world.node("alice") as alice, world.node() as bob:
            async with await alice.open_listener(8000) as listening:
                mine, theirs = await connect(bob, listening)
                assert mine.path.kind == "lan"
                await check_both_ways(mine, theirs)
        assert world.server.relay is not None
        assert world.server.relay.counters.joined == 0


@pytest.mark.parametrize(
    ("dialer", "listener"),
    [("auto", "auto"), ("never", "auto"), ("auto", "never")],
)
async def test_never_at_either_end_is_never(tmp_path: Path, dialer: str, listener: str) -> None:
    """With no other technique allowed: over the relay, or not at all."""
    async with open_world(tmp_path, tcp=True) as world:
        settings: dict[str, Any] = {"techniques": ("relay",)}
        async with world.node("alice", relay=listener, **settings) as alice:
            async with world.node(relay=dialer, **settings) as bob:
                async with await alice.open_listener(8000) as listening:
                    if "never" not in (dialer, listener):
                        await check_both_ways(*await connect(bob, listening))
                        return
                    with trio.fail_after(PATIENCE), pytest.raises(TraversalFailed) as caught:
                        await bob.open_stream("alice", 8000, timeout=PATIENCE)
                    assert caught.value.errno == errno.EHOSTUNREACH
                    assert "relay" in str(caught.value)
                    assert caught.value.report is not None
                    assert caught.value.report.stages[-1].ended is not None
                    if listener == "never":
                        # Its card says so, and nothing is tried.
                        assert "over no relay" in str(caught.value)
                        assert caught.value.report.attempts == []


async def test_a_relay_that_is_away_is_followed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unmeasured(relays: object) -> dict[str, float]:
        return {}

    # Else the nodes would know before they dial.
    monkeypatch.setattr("ntcpsock._traversal.relay_times.measure_all", unmeasured)
    async with open_world(tmp_path, tcp=True) as world:
        with trio.socket.socket() as dead:
            await dead.bind(("127.0.0.1", 0))
            core = world.server.core
            here = core.relays.static[0]
            core.relays.static = (here._replace(port=dead.getsockname()[1]), here)
            async with world.node("alice", relay="only") as alice, world.node(relay="only") as bob:
                async with await alice.open_listener(8000) as listening:
                    mine, theirs = await connect(bob, listening)
                    assert mine.path.kind == "relay"
                    assert [entry.tries for entry in mine.report.attempts] == [2]
                    await check_both_ways(mine, theirs)


class Front:
    """Another address of the relay at `target`, until it falls silent: then it takes connections, and nothing else."""

    def __init__(self, target: Endpoint) -> None:
        self.silent = False
        self.connections = 0
        self._target = target

    async def forward(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        if self.silent:
            await trio.sleep_forever()
        async with await trio.open_tcp_stream(*self._target) as onward, trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, stream, onward)
            nursery.start_soon(self._pump, onward, stream)

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            while not self.silent and (data := await source.receive_some()):
                await sink.send_all(data)


async def test_the_relay_that_was_lost_is_asked_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its machine may be gone without a word: for a seat there both ends would wait in vain."""

    async def unmeasured(relays: object) -> dict[str, float]:
        return {}

    monkeypatch.setattr("ntcpsock._traversal.relay_times.measure_all", unmeasured)
    async with open_world(tmp_path, tcp=True) as world, trio.open_nursery() as nursery:
        core = world.server.core
        here = core.relays.static[0]
        port_here = world.server.address.port
        front = Front(Endpoint("127.0.0.1", port_here))
        serve = partial(trio.serve_tcp, front.forward, 0, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        port = listener.socket.getsockname()[1]
        core.relays.static = (here._replace(port=port), here)
        async with world.node("alice", relay="only") as alice, world.node(relay="only") as bob:
            async with await alice.open_listener(8000) as listening:
                mine, theirs = await connect(bob, listening)
                async with mine, theirs:
                    assert (mine.path.remote[1], front.connections) == (port, 2)
                    front.silent = True
                    with trio.fail_after(PATIENCE):
                        mine.lose(TimeoutError(errno.ETIMEDOUT, "silent"))
                        path = await mine.wait_moved()
                    assert (path.remote[1], front.connections) == (port_here, 2)
                    await mine.send_all(b"x")
                    assert await theirs.receive_some() == b"x"
        nursery.cancel_scope.cancel()


async def test_a_private_listener_is_relayed_too(tmp_path: Path) -> None:
    async with open_world(tmp_path, tcp=True) as world:
        async with world.node("alice", allow=("bob",)) as alice, world.node("bob", relay="only") as bob:
            async with await alice.open_listener(8000) as listening:
                mine, theirs = await connect(bob, listening)
                assert (mine.path.kind, theirs.peer.name) == ("relay", "bob")
                await check_both_ways(mine, theirs)


async def test_a_reset_passes_the_relay(tmp_path: Path) -> None:
    async with open_world(tmp_path, tcp=True) as world:
        async with world.node("alice") as alice, world.node(relay="only") as bob:
            async with await alice.open_listener(8000) as listening:
                mine, theirs = await connect(bob, listening)
                mine.reset()
                with trio.fail_after(PATIENCE), pytest.raises(trio.BrokenResourceError) as caught:
                    await theirs.receive_some(1)
                assert isinstance(caught.value.__cause__, ConnectionResetError)
                theirs.reset()
        await until_relay_is_free(world)


@pytest.mark.parametrize(
    ("settings", "relays", "relayed", "words"),
    [
        ({"encryption": "off"}, (Endpoint("192.0.2.1", 1),), False, "would read them"),
        ({"relay": "never"}, (Endpoint("192.0.2.1", 1),), True, "not allowed here"),
        ({}, (), True, "has no relay"),
        ({}, (Endpoint("192.0.2.1", 1),), True, "either side"),
        ({}, (Endpoint("192.0.2.1", 1),), False, "over no relay"),
    ],
)
def test_a_failure_says_why_no_relay_helped(
    settings: dict[str, Any], relays: tuple[Endpoint, ...], relayed: bool, words: str
) -> None:
    @dataclass
    class FakeNode:
        techniques: tuple[str, ...]
        encryption: str
        relays: tuple[Endpoint, ...]

    config = Config(**settings)
    node = FakeNode(config.usable_techniques, config.encryption, relays)
    card = Card(bytes(32), (), relayed=relayed)
    assert words in why_no_relay(node, card)  # type: ignore[arg-type]


async def test_a_broken_relay_breaks_the_stream_as_a_reset(tmp_path: Path) -> None:
    async with open_world(tmp_path, tcp=True) as world:
        async with world.node("alice") as alice, world.node(relay="only") as bob:
            async with await alice.open_listener(8000) as listening:
                mine, theirs = await connect(bob, listening)
                world.broker_scope.cancel()
                for stream in (mine, theirs):
                    with trio.fail_after(PATIENCE), pytest.raises(trio.BrokenResourceError):
                        await stream.receive_some(1)
                    stream.reset()


async def reset_arrivals(listening: NTCPListener) -> None:
    while True:
        (await listening.accept()).reset()


def test_plain_connections_and_a_relay_exclude_each_other() -> None:
    with pytest.raises(ConfigurationError, match="the relay would read everything"):
        Config(relay="only", encryption="off")
    relays = {"relay", "turn"}
    assert not relays & set(Config(encryption="off").usable_techniques)
    assert not relays & set(Config(relay="never").usable_techniques)
    assert set(Config(relay="only").usable_techniques) == relays
    with pytest.raises(ConfigurationError, match="auto"):
        Config(relay="sometimes")  # type: ignore[arg-type]
    assert Config.load({"NTCP_RELAY": "never"}).relay == "never"
