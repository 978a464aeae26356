"""Ports and ways of a node: dialling at the first datagram, what waits, who is let in, and what ends."""

from __future__ import annotations

import errno

import pytest
import trio
from datagram_support import Net, Place, joined_roads, open_net, opened, until
from trio.testing import MockClock

from ntcpsock import _datagrams
from ntcpsock._datagram_socket import MAX_WAITING, DatagramAddress
from ntcpsock._datagram_way import MAX_QUEUED
from ntcpsock._datagrams import IDLE_DEADLINE
from ntcpsock._errors import NameNotFound, PeerOffline, PeerRefused
from ntcpsock._session.datagram_frames import (
    MAX_PAYLOAD,
    Datagram,
    Refused,
    decode_frame_untrusted,
    encode_datagram,
    encode_refused,
)

MOMENT = 5.0


def pair(net: Net) -> tuple[Place, Place]:
    return net.node("alice"), net.node("bob")


async def test_there_and_back() -> None:
    async with open_net() as net:
        alice, bob = pair(net)
        server, client = alice.bind(53), bob.bind()
        await client.send_to(b"question", ("Alice.ntcp", 53))
        data, sender = await server.receive_from()
        assert (data, sender) == (b"question", DatagramAddress("bob.ntcp", client.port))
        await server.send_to(b"answer", sender)
        assert await client.receive_from() == (b"answer", ("alice.ntcp", 53))
        assert net.dials == [("bob", "alice", 53)]
        peer = server.peer("bob.ntcp")
        assert peer is not None
        assert (peer.name, peer.node_id, peer.port) == ("bob", bob.node_id, 53)
        path = client.path("alice")
        assert path is not None
        assert path.technique == "udp-punch"
        assert client.report("alice") is not None


async def test_many_nodes_on_one_socket() -> None:
    async with open_net() as net:
        server = net.node("server").bind(7)
        clients = [net.node(f"node{number}").bind() for number in range(100)]
        for client in clients:
            await client.send_to(client.name.encode(), ("server", 7))
        seen = set()
        for _ in clients:
            data, sender = await server.receive_from()
            assert sender.host == data.decode() + ".ntcp"
            await server.send_to(data.upper(), sender)
            seen.add(sender)
        assert len(seen) == 100
        for client in clients:
            assert (await client.receive_from())[0] == client.name.encode().upper()
        assert len(net.dials) == 100


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


async def test_how_large_a_datagram_goes_uncut() -> None:
    async with open_net() as net:
        alice, bob = pair(net)
        server, client = alice.bind(53), bob.bind()
        client.dont_fragment = True
        assert client.largest("alice.ntcp") is None
        # Before there is a path nobody knows, and it goes in fragments.
        await client.send_to(bytes(9000), ("alice", 53))
        assert len((await server.receive_from())[0]) == 9000
        largest = client.largest("alice.ntcp")
        assert largest == client.largest("alice", 53) == 1195
        await client.send_to(bytes(largest), ("alice", 53))
        assert len((await server.receive_from())[0]) == largest
        with pytest.raises(OSError, match=r"1196 bytes; 1195 go to alice\.ntcp in one packet") as caught:
            await client.send_to(bytes(largest + 1), ("alice", 53))
        assert caught.value.errno == errno.EMSGSIZE
        # The path turns out to carry more.
        (road,) = bob.datagrams._ways["alice"].roads
        road.path.max_datagram_size = 1452  # type: ignore[attr-defined]
        assert client.largest("alice.ntcp") == 1447
        await client.send_to(bytes(1447), ("alice", 53))
        assert len((await server.receive_from())[0]) == 1447
        client.dont_fragment = False
        await client.send_to(bytes(1448), ("alice", 53))
        assert len((await server.receive_from())[0]) == 1448
        assert client.largest(bob.name) == MAX_PAYLOAD


async def test_sizes() -> None:
    async with open_net() as net:
        alice, bob = pair(net)
        server, client = alice.bind(53), bob.bind()
        for size in (0, 1, 1195, 1196, 9000, MAX_PAYLOAD):
            await client.send_to(bytes(size), ("alice", 53))
            assert len((await server.receive_from())[0]) == size
        with pytest.raises(OSError, match="too long") as caught:
            await client.send_to(bytes(MAX_PAYLOAD + 1), ("alice", 53))
        assert caught.value.errno == errno.EMSGSIZE


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


async def test_refused_when_dialled_and_over_a_road() -> None:
    async with open_net() as net:
        alice, bob = pair(net)
        client = bob.bind()
        client.connect(("alice", 53))
        await client.send_to(b"x", ("alice", 53))
        with pytest.raises(PeerRefused):
            await client.receive_from()
        server = alice.bind(53)
        await client.send_to(b"y", ("alice", 53))
        assert (await server.receive_from())[0] == b"y"
        server.close()
        await client.send_to(b"z", ("alice", 53))
        with pytest.raises(ConnectionRefusedError):
            await client.receive_from()
        # Told once.
        with trio.move_on_after(0.05):
            await client.receive_from()
            raise AssertionError


async def test_refusals_are_told_to_those_concerned() -> None:
    async with open_net() as net:
        alice, bob = pair(net)
        told: list[tuple[str, int, OSError]] = []
        server = alice.bind(10)
        client = bob.bind(refuse=lambda *word: told.append(word))
        await client.send_to(b"", ("alice", 10))
        await server.receive_from()
        await client.send_to(b"", ("alice", 11))
        await until(lambda: bool(told))
        assert {(label, port) for label, port, _ in told} <= {("alice", 11), (alice.node_id, 11)}
        assert all(isinstance(error, PeerRefused) for _, _, error in told)


async def test_a_connected_socket_takes_from_its_peer_alone() -> None:
    async with open_net() as net:
        alice, bob = pair(net)
        carol = net.node("carol")
        sock, wanted, other, stranger = bob.bind(1), alice.bind(2), alice.bind(3), carol.bind(2)
        for one in (stranger, other, wanted):
            await one.send_to(b"before %d" % one.port, ("bob", 1))
        await until(lambda: len(sock._waiting) == 3)
        sock.connect(("alice", 2))
        assert await sock.receive_from() == (b"before 2", ("alice.ntcp", 2))
        for one in (stranger, other, wanted):
            await one.send_to(b"after", ("bob", 1))
        assert await sock.receive_from() == (b"after", ("alice.ntcp", 2))
        assert sock.try_receive_from() is None


async def test_who_may_send() -> None:
    async with open_net() as net:
        alice, bob = pair(net)
        carol = net.node("carol")
        private, public = alice.bind(22, allow=("bob",)), alice.bind(53)
        told: list[int] = []
        good, bad = bob.bind(), carol.bind(refuse=lambda label, port, error: told.append(port))
        await good.send_to(b"hello", ("alice", 22))
        assert (await private.receive_from())[0] == b"hello"
        # There is a road for the public port; it does not lead to the private one.
        await bad.send_to(b"hello", ("alice", 53))
        await public.receive_from()
        await bad.send_to(b"hello", ("alice", 22))
        await until(lambda: 22 in told)
        assert private.try_receive_from() is None


async def test_a_port_without_a_number_takes_from_nodes_it_has_sent_to() -> None:
    async with open_net() as net:
        alice, bob = pair(net)
        server, other, client = alice.bind(69), alice.bind(), bob.bind()
        waiting = bob.bind()
        await client.send_to(b"get", ("alice", 69))
        _, sender = await server.receive_from()
        # As TFTP: the answer comes from another port.
        await other.send_to(b"data", sender)
        assert await client.receive_from() == (b"data", ("alice.ntcp", other.port))
        other.connect(("bob", waiting.port))
        await other.send_to(b"uninvited", ("bob", waiting.port))
        with pytest.raises(PeerRefused):
            await other.receive_from()
        assert waiting.try_receive_from() is None


async def test_to_itself() -> None:
    async with open_net() as net:
        alice = net.node("alice")
        one, two = alice.bind(1), alice.bind()
        await two.send_to(b"hello", ("alice", 1))
        data, sender = await one.receive_from()
        await one.send_to(data + b"!", sender)
        assert await two.receive_from() == (b"hello!", ("alice.ntcp", 1))
        two.connect(("alice", 9))
        await two.send_to(b"", ("alice", 9))
        with pytest.raises(PeerRefused):
            await two.receive_from()
        assert not net.dials


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
            alice.datagrams._end(way)
            await until(lambda: not bob.datagrams._ways["alice"].roads)


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
        await until(lambda: bob.datagrams._ways["nobody"].error is not None)
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
        assert not bob.datagrams._ways
        assert not alice.datagrams._ways
        assert all(road.path.closed for road in net.roads[0])  # type: ignore[attr-defined]
        await client.send_to(b"3", ("alice", 53))
        await server.receive_from()
        assert len(net.dials) == 2


async def test_ways_are_bounded(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_datagrams, "MAX_WAYS", 3)
    async with open_net() as net:
        client = net.node("client").bind()
        servers = [net.node(f"server{number}").bind(1) for number in range(5)]
        for server in servers:
            await client.send_to(b"x", (server.name, 1))
            await trio.sleep(1)
        # All places are taken by ways in use.
        assert len(client._hub._by_key) == 3
        assert client._hub.dropped == {"too many nodes": 2}
        await trio.sleep(20)
        await client.send_to(b"y", ("server4", 1))
        assert (await servers[4].receive_from())[0] == b"y"
        assert client.path("server0") is None
        assert client.path("server1") is not None


async def test_what_nobody_receives_is_bounded() -> None:
    async with open_net() as net:
        alice, bob = pair(net)
        server, client = alice.bind(53), bob.bind()
        await client.send_to(b"first", ("alice", 53))
        await until(lambda: len(server._waiting) == 1)
        for _ in range(1200):
            await client.send_to(b"x", ("alice", 53))
        await until(lambda: len(server._waiting) + server.dropped > 1000)
        assert len(server._waiting) <= MAX_WAITING
        assert (await server.receive_from())[0] == b"first"


async def test_hostile_frames_of_an_authenticated_node() -> None:
    async with open_net() as net:
        alice, bob = pair(net)
        server, client = alice.bind(53), bob.bind()
        await client.send_to(b"1", ("alice", 53))
        await server.receive_from()
        road = net.roads[0][0]
        for data in (b"", b"\x70", b"\xff" * 100, b"\x70\0\0\0\0", bytes(1200)):
            road.try_send_datagram(data)
        # Refusals of what was never sent, and for ports that are not there.
        for refused in (Refused(client.port, 53), Refused(53, 1), Refused(9, 9)):
            road.try_send_datagram(encode_refused(refused))
        await client.send_to(b"2", ("alice", 53))
        assert (await server.receive_from())[0] == b"2"
        way = alice.datagrams.way_of("bob")
        assert way is not None
        assert way.bad_frames == 5
        # Datagrams to closed ports get no more answers than ICMP would give.
        for port in range(1000, 1200):
            road.try_send_datagram(encode_datagram(client.port, port, b"", 1200, 0)[0])
        await client.send_to(b"3", ("alice", 53))
        await server.receive_from()
        assert alice.datagrams.dropped["refused here"] == 200


async def test_a_refused_port_is_looked_for_in_other_processes_now_and_then(
    autojump_clock: MockClock,
) -> None:
    """A node may be several processes, of which the broker knows who has a port. Who refuses again and again does not
    make us dial again and again."""
    async with open_net() as net:
        alice, bob = net.node("alice"), net.node("bob")
        alice.bind(53)
        client = bob.bind()
        await client.send_to(b"x", ("alice", 53))
        await until(lambda: len(net.dials) == 1)
        client.connect(("alice", 54))
        for _ in range(100):
            await client.send_to(b"x", ("alice", 54))
            with pytest.raises(PeerRefused):
                await client.receive_from()
            await trio.sleep(0.1)
        # After 0, 1, 3 and 7 seconds.
        assert net.dials[1:] == [("bob", "alice", 54)] * 4


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


async def test_refusals_are_limited(autojump_clock: MockClock) -> None:
    async with open_net() as net:
        alice, bob = pair(net)
        server = alice.bind(53)
        told: list[int] = []
        client = bob.bind(refuse=lambda label, port, error: told.append(port))
        await client.send_to(b"1", ("alice", 53))
        await server.receive_from()
        for port in range(1000, 1100):
            await client.send_to(b"", ("alice", port))
        await client.send_to(b"2", ("alice", 53))
        await server.receive_from()
        await trio.sleep(0.01)
        assert len(set(told)) == 20


async def test_ports() -> None:
    async with open_net() as net:
        alice = net.node("alice")
        alice.bind(5)
        with pytest.raises(OSError, match="in use") as caught:
            alice.bind(5)
        assert caught.value.errno == errno.EADDRINUSE
        numbers = {alice.bind().port for _ in range(50)}
        assert len(numbers) == 50
        assert min(numbers) >= 49152


async def test_closing_wakes_who_waits() -> None:
    async with open_net() as net:
        sock = net.node("alice").bind(5)
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await sock.receive_from()

            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            sock.close()
        with pytest.raises(trio.ClosedResourceError):
            await sock.send_to(b"", ("bob", 1))
        async with net.nodes["alice"].bind(5):
            pass


async def test_cancelling_loses_no_datagram() -> None:
    async with open_net() as net:
        alice, bob = pair(net)
        server, client = alice.bind(53), bob.bind()
        for _ in range(20):
            with trio.CancelScope() as scope:
                scope.cancel()
                await server.receive_from()
        await client.send_to(b"x", ("alice", 53))
        with trio.move_on_after(MOMENT):
            assert (await server.receive_from())[0] == b"x"
