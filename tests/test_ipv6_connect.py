"""connect() over IPv6 loopback, and what a node with two families gathers and proves."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path

import pytest
import trio
from world import open_world

from ntcpsock._address import BrokerAddress, Endpoint, parse_broker
from ntcpsock._node import Node
from ntcpsock._servers.broker import serve_udp_broker
from ntcpsock._servers.stun import serve_stun
from ntcpsock._session.plain import PlainStream
from ntcpsock._traversal import gather
from ntcpsock._traversal.broker.fields import MAX_CARD
from ntcpsock._traversal.gather import STUN_DEADLINE, gather_tcp
from ntcpsock._traversal.gather_udp import gather_udp
from ntcpsock._traversal.punch.message import Candidate, decode_card_untrusted
from ntcpsock.trio import open_node


def _has_ipv6_loopback() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


pytestmark = pytest.mark.skipif(not _has_ipv6_loopback(), reason="this host has no IPv6 loopback")


@pytest.mark.parametrize("encryption", ["tls", "off"])
async def test_a_world_without_ipv4(tmp_path: Path, encryption: str) -> None:
    async with (
        open_world(tmp_path, "::1") as world,
        world.node("alice", encryption=encryption) as alice,
        world.node("bob", encryption=encryption) as bob,
    ):
        assert "[::1]" in world.uri
        async with await alice.open_listener(8000) as listener:
            # An IPv4 socket of the application cannot be the connection: it comes back as it was.
            with socket.socket() as lent:
                descriptor = None if encryption == "tls" else socket.dup(lent.fileno())
                dialled = await bob.open_stream("alice", 8000, descriptor=descriptor)
                accepted = await listener.accept()
                async with dialled, accepted:
                    assert dialled.path.local == accepted.path.remote
                    assert dialled.path.remote[0] == "::1"
                    assert not (isinstance(dialled, PlainStream) and dialled.is_given)
                    await dialled.send_all(b"six")
                    assert await accepted.receive_some() == b"six"
                assert lent.getsockname() == ("0.0.0.0", 0)


async def proved(asker: Node, node: Node) -> tuple[str, tuple[str, ...]]:
    """Where the broker says that `node` is, as soon as that are two places."""
    with trio.fail_after(60):
        while True:
            introduction = await asker._session.introduce(node._identity.public_key, 8000, b"s" * 100)
            if introduction.also_observed:
                return introduction.observed_host, introduction.also_observed
            await trio.sleep(0.01)


async def test_both_families_are_gathered_and_the_second_one_is_proved(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        servers = []
        for host in ("127.0.0.1", "::1"):
            servers.append((await nursery.start(partial(serve_stun, host, 0))).primary)
        serve = partial(
            serve_udp_broker,
            ("127.0.0.1", "::1"),
            0,
            state_dir=tmp_path / "broker",
            stun=[Endpoint("0.0.0.0", servers[0].port), Endpoint("::", servers[1].port)],
            elsewhere=["127.0.0.1", "::1"],
        )
        server = await nursery.start(serve)
        uris = [str(BrokerAddress(host, server.address.port, server.key)) for host in ("127.0.0.1", "::1")]
        assert parse_broker(uris[1]).host == "::1"
        async with (
            open_node(broker=uris[0], name="alice", state_dir=tmp_path / "alice") as alice,
            open_node(broker=uris[1], state_dir=tmp_path / "bob") as bob,
        ):
            assert alice.stun_servers == bob.stun_servers == tuple(servers)
            async with await alice.open_listener(8000):
                warm = alice.listening_port
                assert warm is not None
                assert [candidate.endpoint for candidate in warm.candidates] == [
                    ("127.0.0.1", warm.port),
                    ("::1", warm.port),
                ]
                await bob.open_listener(8000)
                assert await proved(bob, alice) == ("127.0.0.1", ("::1",))
                assert await proved(alice, bob) == ("::1", ("127.0.0.1",))
        nursery.cancel_scope.cancel()


async def test_a_card_full_of_long_addresses_loses_the_last(tmp_path: Path) -> None:
    long = [f"2001:db8:1234:5678:9abc:def0:1234:{number}" for number in range(1001, 1009)]
    async with open_world(tmp_path) as world, world.node("alice") as alice:
        async with await alice.open_listener(8000):
            warm = alice.listening_port
            assert warm is not None
            warm.candidates = tuple(Candidate("srflx", "tcp", host, 65535) for host in long)
            encoded = alice.registration.card()
            assert encoded is not None
            assert len(encoded) <= MAX_CARD
            card = decode_card_untrusted(encoded, alice._identity.public_key)
            assert len(card.candidates) > 4
            assert card.candidates == warm.candidates[: len(card.candidates)]


async def test_a_warm_port_has_the_same_number_in_both_families() -> None:
    async with trio.open_nursery() as nursery:
        servers = []
        for host in ("::1", "127.0.0.1"):
            servers.append((await nursery.start(partial(serve_stun, host, 0))).primary)
        warm = await gather_tcp(servers)
        families = [listener.family for listener in warm.listeners]
        assert families == [socket.AF_INET, socket.AF_INET6]
        assert {listener.getsockname()[1] for listener in warm.listeners} == {warm.port}
        assert warm.listeners[1].getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
        # IPv4 first, whichever server came first: it is the one whose mapping has to be kept.
        assert [sock.family for sock in warm.stun_sockets] == families
        assert await warm.refresh()
        warm.close()
        warm6 = await gather_tcp(servers[:1])
        assert [candidate.endpoint for candidate in warm6.candidates] == [("::1", warm6.port)]
        assert warm6.profile.translated is None
        assert await warm6.refresh()
        warm6.close()
        datagrams = await gather_udp(servers)
        assert {candidate.host for candidate in datagrams.candidates} == {"::1", "127.0.0.1"}
        assert {candidate.port for candidate in datagrams.candidates} == {datagrams.port.number}
        assert datagrams.server == servers[1]
        assert await datagrams.refresh()
        datagrams.close()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("dead", ["::1", "127.0.0.1"])
async def test_a_family_whose_servers_are_silent_costs_as_long_as_the_other_took(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, dead: str
) -> None:
    async def observe(port: int, server: Endpoint, source: str, found: list[object]) -> None:
        await trio.sleep(STUN_DEADLINE if server.host == dead else 0.2)
        if server.host != dead:
            found.append(gather._Observation(trio.socket.socket(), Endpoint(server.host, port)))

    monkeypatch.setattr(gather, "_observe", observe)
    warm = await gather_tcp([Endpoint("::1", 3478), Endpoint("127.0.0.1", 3478)])
    assert trio.current_time() == pytest.approx(0.4)
    assert len(warm.stun_sockets) == 1
    warm.close()


async def test_all_servers_silent(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async def observe(port: int, server: Endpoint, source: str, found: list[object]) -> None:
        await trio.sleep(STUN_DEADLINE)

    monkeypatch.setattr(gather, "_observe", observe)
    warm = await gather_tcp([Endpoint("::1", 3478), Endpoint("127.0.0.1", 3478)])
    assert trio.current_time() == pytest.approx(STUN_DEADLINE)
    assert warm.stun_sockets == []
    warm.close()


async def test_a_new_ipv6_address_makes_a_warm_port_old(monkeypatch: pytest.MonkeyPatch) -> None:
    async with trio.open_nursery() as nursery:
        server = (await nursery.start(partial(serve_stun, "127.0.0.1", 0))).primary
        warm = await gather_tcp([server])
        assert await warm.refresh()
        monkeypatch.setattr(gather, "ipv6_addresses", lambda: ("2001:db8::77",))
        assert not await warm.refresh()
        warm.close()
        nursery.cancel_scope.cancel()


async def test_a_machine_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "has_ipv6", lambda: False)
    warm = await gather_tcp([])
    assert [listener.family for listener in warm.listeners] == [socket.AF_INET]
    assert not any(candidate.endpoint.is_ipv6 for candidate in warm.candidates)
    warm.close()
