"""Datagrams that nobody takes: who is told, how often, and what hostile nodes achieve."""

from __future__ import annotations

import pytest
import trio
from datagram_support import open_net, pair, until
from trio.testing import MockClock

from ntcpsock._errors import PeerRefused
from ntcpsock._session.datagram_frames import Refused, encode_datagram, encode_refused


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
