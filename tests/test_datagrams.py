"""Ports of a node for datagrams: there and back, sizes, who is let in, and what ends."""

from __future__ import annotations

import errno

import pytest
import trio
from datagram_support import open_net, pair, until

from ntcpsock._datagram_socket import MAX_WAITING, DatagramAddress
from ntcpsock._errors import PeerRefused
from ntcpsock._session.datagram_frames import MAX_PAYLOAD

MOMENT = 5.0


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
        (road,) = bob.datagrams._ways.by_label["alice"].roads
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
