"""Ways of a node to others: dialling at the first datagram, what waits, labels and roads of one node, and what ends."""

from __future__ import annotations

import pytest
import trio
from datagram_support import joined_roads, open_net, opened, pair, until
from trio.testing import MockClock

from ntcpsock import _datagram_ways
from ntcpsock._datagram_way import MAX_QUEUED
from ntcpsock._datagram_ways import IDLE_DEADLINE
from ntcpsock._errors import NameNotFound, PeerOffline
from ntcpsock._session.datagram_frames import Datagram, decode_frame_untrusted, encode_datagram


async def test_sockets_of_two_nodes_share_a_road() -> None:
    async with open_net() as net:
        alice, bob = pair(net)
        ports = [alice.bind(port) for port in (10, 11, 12)]
        clients = [bob.bind() for _ in range(3)]
        for client in clients:
            for sock in ports:
                await client.send_to(b"%d" % client.port, ("alice", sock.port))
        for sock in ports:
            assert {(await sock.receive_from())[1].port for _ in clients} == {one.port for one in clients}
        assert len(net.dials) == 1


async def test_while_dialling_the_newest_wait(autojump_clock: MockClock) -> None:
    async with open_net() as net:
        alice, bob = pair(net)
        net.delay = 3.0
        server, client = alice.bind(53), bob.bind()
        for number in range(MAX_QUEUED + 10):
            await client.send_to(b"%d" % number, ("alice", 53))
        assert trio.current_time() < 3.0
        got = [(await server.receive_from())[0] for _ in range(MAX_QUEUED)]
        assert got == [b"%d" % number for number in range(10, MAX_QUEUED + 10)]
        way = bob.datagrams.way_of("alice")
        assert way is not None
        assert way.dropped == 10
        assert len(net.dials) == 1


async def test_what_waits_is_bounded_in_bytes(autojump_clock: MockClock) -> None:
    async with open_net() as net:
        alice, bob = pair(net)
        net.delay = 3.0
        server, client = alice.bind(53), bob.bind()
        for number in range(20):
            await client.send_to(bytes([number]) * 20_000, ("alice", 53))
        for number in range(14, 20):
            assert (await server.receive_from())[0][0] == number
        assert server.try_receive_from() is None


async def test_two_labels_of_one_node() -> None:
    async with open_net() as net:
        alice, bob = pair(net)
        server, client = alice.bind(53), bob.bind()
        await client.send_to(b"1", ("alice", 53))
        await server.receive_from()
        await client.send_to(b"2", (alice.node_id, 53))
        assert (await server.receive_from())[0] == b"2"
        assert len(net.dials) == 1
        client.connect((alice.node_id, 53))
        await server.send_to(b"3", ("bob", client.port))
        assert (await client.receive_from())[0] == b"3"


async def test_a_name_that_is_not_the_senders_is_not_shown() -> None:
    async with open_net() as net:
        alice, bob = pair(net)
        net.node("carol")
        for says in ("carol", "nobody", None):
            bob.says = says
            server, client = alice.bind(53), bob.bind()
            await client.send_to(b"x", ("alice", 53))
            _, sender = await server.receive_from()
            assert sender == (bob.node_id + ".ntcp", client.port)
            await server.send_to(b"back", sender)
            assert (await client.receive_from())[0] == b"back"
            server.close()
            way = alice.datagrams.way_of(bob.node_id)
            assert way is not None
            alice.datagrams._ways.end(way)
            await until(lambda: not bob.datagrams._ways.by_label["alice"].roads)


async def test_failures_are_told_and_not_repeated_at_once(autojump_clock: MockClock) -> None:
    async with open_net() as net:
        alice, bob = pair(net)
        server = alice.bind(53)
        net.fail["alice"] = PeerOffline("away")
        client = bob.bind()
        client.connect(("alice", 53))
        for _ in range(20):
            await client.send_to(b"x", ("alice", 53))
            with pytest.raises(PeerOffline):
                await client.receive_from()
        assert len(net.dials) == 1
        for _ in range(50):
            await trio.sleep(1)
            await client.send_to(b"x", ("alice", 53))
            with pytest.raises(PeerOffline):
                await client.receive_from()
        assert 4 <= len(net.dials) <= 7
        del net.fail["alice"]
        await trio.sleep(60)
        await client.send_to(b"now", ("alice", 53))
        assert (await server.receive_from())[0] == b"now"


async def test_a_name_that_nobody_has() -> None:
    async with open_net() as net:
        bob = net.node("bob")
        client = bob.bind()
        await client.send_to(b"x", ("nobody", 53))
        await until(lambda: bob.datagrams._ways.by_label["nobody"].error is not None)
        with pytest.raises(NameNotFound):
            await client.send_to(b"x", ("nobody", 53))


async def test_both_dial_at_once(autojump_clock: MockClock) -> None:
    async with open_net() as net:
        alice, bob = pair(net)
        net.delay = 1.0
        one, two = alice.bind(1), bob.bind(2)
        await one.send_to(b"to bob", ("bob", 2))
        await two.send_to(b"to alice", ("alice", 1))
        assert (await one.receive_from())[0] == b"to alice"
        assert (await two.receive_from())[0] == b"to bob"
        for number in range(10):
            await one.send_to(b"%d" % number, ("bob", 2))
            assert (await two.receive_from())[0] == b"%d" % number
        assert len(net.dials) == 2


async def test_a_broken_road_is_dialled_anew() -> None:
    async with open_net() as net:
        alice, bob = pair(net)
        server, client = alice.bind(53), bob.bind()
        await client.send_to(b"1", ("alice", 53))
        await server.receive_from()
        for road in net.roads[0]:
            road.close()
        await client.send_to(b"2", ("alice", 53))
        assert (await server.receive_from())[0] == b"2"
        assert len(net.dials) == 2


async def test_silence_ends_a_way(autojump_clock: MockClock) -> None:
    async with open_net() as net:
        alice, bob = pair(net)
        server, client = alice.bind(53), bob.bind()
        await client.send_to(b"1", ("alice", 53))
        await server.receive_from()
        for _ in range(6):
            await trio.sleep(IDLE_DEADLINE / 2)
            await client.send_to(b"2", ("alice", 53))
            await server.receive_from()
        assert len(net.dials) == 1
        await trio.sleep(IDLE_DEADLINE + 60)
        assert not bob.datagrams._ways.by_label
        assert not alice.datagrams._ways.by_label
        assert all(road.path.closed for road in net.roads[0])  # type: ignore[attr-defined]
        await client.send_to(b"3", ("alice", 53))
        await server.receive_from()
        assert len(net.dials) == 2


async def test_ways_are_bounded(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_datagram_ways, "MAX_WAYS", 3)
    async with open_net() as net:
        client = net.node("client").bind()
        servers = [net.node(f"server{number}").bind(1) for number in range(5)]
        for server in servers:
            await client.send_to(b"x", (server.name, 1))
            await trio.sleep(1)
        # All places are taken by ways in use.
        assert len(client._hub._ways.by_key) == 3
        assert client._hub.dropped == {"too many nodes": 2}
        await trio.sleep(20)
        await client.send_to(b"y", ("server4", 1))
        assert (await servers[4].receive_from())[0] == b"y"
        assert client.path("server0") is None
        assert client.path("server1") is not None


async def test_each_port_is_answered_over_the_road_that_it_was_heard_by(autojump_clock: MockClock) -> None:
    """Two processes of one node have dialled: neither gets what is for the other's port."""
    async with open_net() as net:
        alice, bob = net.node("alice"), net.node("bob")
        server = bob.bind(7)
        roads = []
        for port in (1001, 1002):
            ours, theirs = joined_roads()
            bob.datagrams.arrived(opened(theirs, alice.public_key, "alice", "listener"))
            ours.try_send_datagram(encode_datagram(port, 7, b"%d" % port, 1200, 1)[0])
            assert (await server.receive_from())[1].port == port
            roads.append(ours)
        for port in (1001, 1002, 1001):
            await server.send_to(b"for %d" % port, ("alice", port))
        found = [[decode_frame_untrusted(data) for data in road.try_receive_datagrams()] for road in roads]
        assert found == [
            [Datagram(7, 1001, b"for 1001")] * 2,
            [Datagram(7, 1002, b"for 1002")],
        ]
        # Where one has gone the other is asked, which may have taken the port over.
        roads[0].close()
        way = bob.datagrams.way_of("alice")
        assert way is not None
        bob.datagrams._lose(way, way.roads[0])
        await server.send_to(b"again", ("alice", 1001))
        assert [decode_frame_untrusted(data) for data in roads[1].try_receive_datagrams()] == [
            Datagram(7, 1001, b"again")
        ]
        roads[1].close()


async def test_roads_of_one_node_are_bounded(autojump_clock: MockClock) -> None:
    async with open_net() as net:
        alice, bob = net.node("alice"), net.node("bob")
        server = bob.bind(7)
        ends = []
        for port in range(1001, 1021):
            ours, theirs = joined_roads()
            ends.append((ours, theirs))
            bob.datagrams.arrived(opened(theirs, alice.public_key, "alice", "listener"))
            ours.try_send_datagram(encode_datagram(port, 7, b"x", 1200, 1)[0])
            await server.receive_from()
        way = bob.datagrams.way_of("alice")
        assert way is not None
        assert len(way.roads) == 8
        assert way.roads[-1] is ends[-1][1]
        for ours, _ in ends:
            ours.close()
