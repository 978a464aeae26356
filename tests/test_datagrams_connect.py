"""Datagrams between real nodes over loopback: broker, checks, QUIC; bare paths; what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from world import open_world

from ntcpsock._errors import EncryptionMismatch, NameNotFound, PeerRefused
from ntcpsock._session.datagram_road import BareRoad, StreamRoad
from ntcpsock._session.quic.carrier import QuicCarrier

DEADLINE = 30.0


async def test_there_and_back_over_quic(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob") as bob:
        with trio.fail_after(DEADLINE):
            server, client = await alice.open_datagram_socket(53), await bob.open_datagram_socket()
            await client.send_to(b"question", ("alice", 53))
            data, sender = await server.receive_from()
            assert (data, sender) == (b"question", ("bob.ntcp", client.port))
            for size in (0, 1, 1100, 1300, 65507):
                await server.send_to(bytes(size), sender)
                assert await client.receive_from() == (bytes(size), ("alice.ntcp", 53))
            way = bob.datagrams.way_of("alice")
            assert way is not None
            assert isinstance(way.road, QuicCarrier)
            path = client.path("alice")
            assert path is not None
            assert (path.kind, path.technique) == ("udp", "udp-punch")
            report = client.report("alice")
            assert report is not None
            assert {"resolve", "broker", "punch", "bind"} <= {stage.name for stage in report.stages}


async def test_a_nameless_node_and_answers_to_it(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as somebody:
        with trio.fail_after(DEADLINE):
            server, client = await alice.open_datagram_socket(53), await somebody.open_datagram_socket()
            await client.send_to(b"x", ("alice", 53))
            data, sender = await server.receive_from()
            assert sender.host == somebody.node_id + ".ntcp"
            await server.send_to(data, sender)
            assert await client.receive_from() == (b"x", ("alice.ntcp", 53))


async def test_without_encryption_the_path_itself(tmp_path: Path) -> None:
    async with (
        open_world(tmp_path) as world,
        world.node("alice", encryption="off") as alice,
        world.node("bob", encryption="off") as bob,
    ):
        with trio.fail_after(DEADLINE):
            server, client = await alice.open_datagram_socket(53), await bob.open_datagram_socket()
            for size in (1, 1195, 1196, 20_000):
                await client.send_to(bytes(size), ("alice", 53))
                data, sender = await server.receive_from()
                assert len(data) == size
                await server.send_to(data, sender)
                assert len((await client.receive_from())[0]) == size
            for node, name in ((bob, "alice"), (alice, "bob")):
                way = node.datagrams.way_of(name)
                assert way is not None
                assert isinstance(way.road, BareRoad)


async def test_both_ends_must_say_the_same(tmp_path: Path) -> None:
    async with (
        open_world(tmp_path) as world,
        world.node("alice", encryption="off") as alice,
        world.node("bob") as bob,
    ):
        with trio.fail_after(DEADLINE):
            await alice.open_datagram_socket(53)
            client = await bob.open_datagram_socket()
            client.connect(("alice", 53))
            await client.send_to(b"x", ("alice", 53))
            with pytest.raises(EncryptionMismatch):
                await client.receive_from()


async def test_without_udp_a_stream_carries_them(tmp_path: Path) -> None:
    techniques = ("public", "lan", "tcp-open")
    async with (
        open_world(tmp_path) as world,
        world.node("alice", techniques=techniques) as alice,
        world.node("bob", techniques=techniques) as bob,
    ):
        with trio.fail_after(DEADLINE):
            server, client = await alice.open_datagram_socket(53), await bob.open_datagram_socket()
            for size in (0, 1, 65507):
                await client.send_to(bytes(size), ("alice", 53))
                data, sender = await server.receive_from()
                await server.send_to(data, sender)
                assert await client.receive_from() == (bytes(size), ("alice.ntcp", 53))
            way = bob.datagrams.way_of("alice")
            assert way is not None
            assert isinstance(way.road, StreamRoad)


async def test_who_may_send(tmp_path: Path) -> None:
    async with (
        open_world(tmp_path) as world,
        world.node("alice") as alice,
        world.node("bob") as bob,
        world.node("carol") as carol,
    ):
        with trio.fail_after(DEADLINE):
            private = await alice.open_datagram_socket(22, allow=["bob"])
            good, bad = await bob.open_datagram_socket(), await carol.open_datagram_socket()
            await good.send_to(b"hello", ("alice", 22))
            assert (await private.receive_from())[0] == b"hello"
            bad.connect(("alice", 22))
            await bad.send_to(b"hello", ("alice", 22))
            # Alice lets carol into nothing, so to carol it looks as if there were no alice.
            with pytest.raises(NameNotFound):
                await bad.receive_from()
            public = await alice.open_datagram_socket(53)
            with pytest.raises(NameNotFound):  # not asked again at once
                await bad.send_to(b"hello", ("alice", 53))
            await trio.sleep(1.1)
            bad.connect(None)
            await bad.send_to(b"hello", ("alice", 53))
            assert (await public.receive_from())[0] == b"hello"
            bad.connect(("alice", 22))
            await bad.send_to(b"hello", ("alice", 22))
            with pytest.raises(PeerRefused):
                await bad.receive_from()
            assert private.try_receive_from() is None


async def test_streams_and_datagrams_of_one_port_are_two_things(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob") as bob:
        with trio.fail_after(DEADLINE):
            listener, server = await alice.open_listener(53), await alice.open_datagram_socket(53)
            client = await bob.open_datagram_socket()
            async with await bob.open_stream("alice", 53) as stream:
                await client.send_to(b"datagram", ("alice", 53))
                await stream.send_all(b"stream")
                assert (await server.receive_from())[0] == b"datagram"
                async with await listener.accept() as accepted:
                    assert await accepted.receive_some() == b"stream"
            server.close()
            client.connect(("alice", 53))
            await client.send_to(b"x", ("alice", 53))
            with pytest.raises(PeerRefused):
                await client.receive_from()


async def test_a_node_that_starts_anew_is_found_again(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("bob") as bob:
        with trio.fail_after(DEADLINE):
            client = await bob.open_datagram_socket()
            for turn in range(2):
                async with world.node("alice") as alice:
                    server = await alice.open_datagram_socket(53)
                    await client.send_to(b"%d" % turn, ("alice", 53))
                    assert (await server.receive_from())[0] == b"%d" % turn
                await trio.testing.wait_all_tasks_blocked(0.05)


async def test_many_nodes(tmp_path: Path) -> None:
    """One socket, many peers, each with its own path."""
    async with open_world(tmp_path) as world, world.node("server") as server, trio.open_nursery() as nursery:
        sock = await server.open_datagram_socket(7)

        async def client(number: int) -> None:
            async with world.node(f"node{number}", warm_ports=0) as node:
                mine = await node.open_datagram_socket()
                await mine.send_to(b"%d" % number, ("server", 7))
                assert (await mine.receive_from())[0] == b"%d!" % number

        with trio.fail_after(DEADLINE):
            for number in range(10):
                nursery.start_soon(client, number)
            for _ in range(10):
                data, sender = await sock.receive_from()
                assert sender.host == f"node{int(data)}.ntcp"
                await sock.send_to(data + b"!", sender)


async def test_what_is_sent_together_leaves_together(tmp_path: Path) -> None:
    """In few packets of the kernel's, whole and in order; large ones in fragments among them."""
    sizes = [10, 1000, 1000, 1000, 999, 0, 4000, 1000, 20_000, 1]
    for encryption in ("tls", "off"):
        async with (
            open_world(tmp_path) as world,
            world.node("alice", encryption=encryption) as alice,
            world.node("bob", encryption=encryption) as bob,
        ):
            with trio.fail_after(DEADLINE):
                server, client = await alice.open_datagram_socket(53), await bob.open_datagram_socket()
                await client.send_to(b"first", ("alice", 53))
                await server.receive_from()
                for number, size in enumerate(sizes):
                    payload = bytes([number]) * size
                    assert client.try_send_to(payload, ("alice", 53), more=True)
                if (
                    encryption == "off"
                ):  # a connection of QUIC may have something to say meanwhile, and takes them along
                    await trio.testing.wait_all_tasks_blocked(0.02)
                    assert server.try_receive_from() is None
                client.flush()
                found = [(await server.receive_from())[0] for _ in sizes]
                assert found == [bytes([number]) * size for number, size in enumerate(sizes)]


async def test_what_waits_for_more_may_find_the_road_broken(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob") as bob:
        with trio.fail_after(DEADLINE):
            server, client = await alice.open_datagram_socket(53), await bob.open_datagram_socket()
            await client.send_to(b"first", ("alice", 53))
            await server.receive_from()
            way = bob.datagrams.way_of("alice")
            assert way is not None
            assert way.road is not None
            client.try_send_to(b"lost", ("alice", 53), more=True)
            way.road.close()
            client.flush()
            assert not way.roads
            await client.send_to(b"dialled anew", ("alice", 53))
            found = await server.receive_from()
            if found[0] == b"lost":  # it has left with something else before the end
                found = await server.receive_from()
            assert found[0] == b"dialled anew"
