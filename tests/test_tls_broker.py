"""Brokers and relays in TLS: `wss://` addresses, checked certificates, and plain and TLS on one port."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from broker_support import SEALED, make_identity
from certificates import Authority
from relay_support import PATIENCE, SECRET, running_broker, tickets
from test_relay_connect import check_both_ways, connect

from ntcpsock._address import BrokerAddress, Endpoint, parse_broker
from ntcpsock._config import Config
from ntcpsock._errors import BrokerUnreachable, ConfigurationError
from ntcpsock._servers.broker import BrokerServer, serve_broker
from ntcpsock._servers.certificate import CertificateFiles
from ntcpsock._servers.relay_server import RelayServer, serve_relay
from ntcpsock._servers.web import WebLimits
from ntcpsock._state import Pins, load_identity
from ntcpsock._traversal.broker.driver import BrokerSession, open_broker_session
from ntcpsock._traversal.broker.fields import RelayPlace
from ntcpsock._traversal.relay.driver import take_seat
from ntcpsock._traversal.relay.tunnel import TlsRelay, Tunnels
from ntcpsock.trio import open_node

ALICE, BOB = make_identity(1), make_identity(2)


@asynccontextmanager
async def tls_broker(folder: Path, **settings: object) -> AsyncIterator[tuple[BrokerServer, Authority]]:
    authority = Authority(folder)
    certificate = CertificateFiles(*authority.issue(folder, "localhost", "127.0.0.1"))
    async with running_broker(udp=False, certificate=certificate, **settings) as server:
        yield server, authority


@asynccontextmanager
async def tls_session(
    server: BrokerServer, authority: Authority | None, host: str = "localhost", number: int = 1
) -> AsyncIterator[BrokerSession]:
    address = BrokerAddress(host, server.address.port, server.key, tls=True)
    ca_file = None if authority is None else authority.file
    with trio.fail_after(PATIENCE):
        async with open_broker_session(
            address, make_identity(number), pins=Pins(None), timeout=5.0, ca_file=ca_file
        ) as session:
            yield session


async def test_signalling_in_tls(tmp_path: Path) -> None:
    async with tls_broker(tmp_path, stun=[Endpoint("0.0.0.0", 3478)]) as (server, authority):
        async with tls_session(server, authority) as alice:
            async with tls_session(server, authority, "127.0.0.1", 2) as bob:
                assert (alice.transport, alice.broker_host) == ("tcp", "127.0.0.1")
                assert alice.welcome.stun == (Endpoint("127.0.0.1", 3478),)
                assert alice.relays == (Endpoint("localhost", server.address.port),)
                assert isinstance(alice.relays[0], TlsRelay)
                await alice.set_registration(("alice",), (80,), b"card", None)
                assert await bob.lookup("alice") == ALICE.public_key
                assert (await bob.introduce(ALICE.public_key, 80, SEALED)).card == b"card"
                assert (await alice.deliveries.receive()).sealed == SEALED
        assert server.web is not None
        assert server.web.counters.tls == 2


async def test_many_frames_at_once_in_tls(tmp_path: Path) -> None:
    """More than the kernel takes at once, so that frames wait, in order."""
    async with tls_broker(tmp_path) as (server, authority):
        async with tls_session(server, authority) as alice, tls_session(server, authority, number=2) as bob:
            await alice.set_registration(("alice",), (80,), b"c" * 600, None)
            async with trio.open_nursery() as nursery:
                for _ in range(200):
                    nursery.start_soon(bob.introduce, ALICE.public_key, 80, SEALED.ljust(880, b"."))
            assert bob.connected


@pytest.mark.parametrize(("names", "known"), [(("elsewhere.example",), True), (("localhost",), False)])
async def test_a_certificate_that_does_not_hold_is_refused(
    tmp_path: Path, names: tuple[str, ...], known: bool
) -> None:
    """Made out to another name, or by an authority that nobody knows."""
    authority = Authority(tmp_path)
    certificate = CertificateFiles(*authority.issue(tmp_path, *names))
    async with running_broker(udp=False, certificate=certificate) as server:
        with pytest.raises(BrokerUnreachable, match="its certificate does not hold"):
            async with tls_session(server, authority if known else None):
                pass


async def test_a_broker_without_tls_is_said(tmp_path: Path) -> None:
    async with running_broker() as server:
        with pytest.raises(BrokerUnreachable, match="TLS with localhost"):
            async with tls_session(server, Authority(tmp_path)):
                pass


async def test_plain_and_tls_share_the_port(tmp_path: Path) -> None:
    async with tls_broker(tmp_path) as (server, authority):
        async with tls_session(server, authority) as alice:
            address = BrokerAddress("127.0.0.1", server.address.port, server.key)
            async with open_broker_session(address, BOB, pins=Pins(None), timeout=PATIENCE) as bob:
                await alice.set_registration(("alice",), (80,), b"card", None)
                assert await bob.lookup("alice") == ALICE.public_key
                assert not isinstance(bob.relays[0], TlsRelay)


@pytest.mark.parametrize("dialer", ["wss", "ntcp"])
async def test_a_relay_in_tls(tmp_path: Path, dialer: str) -> None:
    """Both ends in TLS, or one of them."""
    async with tls_broker(tmp_path) as (server, authority):
        uris = {
            "wss": str(BrokerAddress("localhost", server.address.port, server.key, tls=True)),
            "ntcp": str(BrokerAddress("127.0.0.1", server.address.port, server.key)),
        }
        async with (
            open_node(
                broker=uris["wss"],
                name="alice",
                state_dir=tmp_path / "alice",
                relay="only",
                ca_file=authority.file,
            ) as alice,
            open_node(
                broker=uris[dialer], state_dir=tmp_path / "bob", relay="only", ca_file=authority.file
            ) as bob,
        ):
            async with await alice.open_listener(8000) as listening:
                for _ in range(3):
                    mine, theirs = await connect(bob, listening)
                    assert (mine.path.kind, theirs.path.kind) == ("relay", "relay")
                    if dialer == "wss":
                        assert mine.path.remote == ("localhost", server.address.port)
                    await check_both_ways(mine, theirs)
                mine, theirs = await connect(bob, listening)
                mine.reset()
                with trio.fail_after(PATIENCE), pytest.raises(trio.BrokenResourceError) as caught:
                    await theirs.receive_some(1)
                assert isinstance(caught.value.__cause__, ConnectionResetError)
                theirs.reset()
        assert server.relay is not None
        with trio.fail_after(PATIENCE):
            while server.relay.counters.open:
                await trio.sleep(0.01)


async def test_a_relay_elsewhere_in_tls(tmp_path: Path) -> None:
    """Its broker tells it by name, and is itself met without TLS."""
    authority = Authority(tmp_path)
    certificate = CertificateFiles(*authority.issue(tmp_path, "localhost"))
    secret = load_identity(tmp_path / "broker" / "relay.key").seed
    async with trio.open_nursery() as nursery:
        relay: RelayServer = await nursery.start(
            partial(serve_relay, "127.0.0.1", 0, secret, certificate=certificate)
        )
        place = RelayPlace("localhost", relay.address.port, tls=True)
        server: BrokerServer = await nursery.start(
            partial(serve_broker, "127.0.0.1", 0, state_dir=tmp_path / "broker", relays=[place])
        )
        config = Config(broker=server.uri, relay="only", ca_file=authority.file, state_dir=tmp_path / "bob")
        async with (
            open_node(config, name="alice", state_dir=tmp_path / "alice") as alice,
            open_node(config) as bob,
        ):
            async with await alice.open_listener(8000) as listening:
                mine, theirs = await connect(bob, listening)
                assert mine.path.remote == ("localhost", relay.address.port)
                await check_both_ways(mine, theirs)
        assert relay.web.counters.tls == 2
        nursery.cancel_scope.cancel()


async def test_a_client_hello_that_never_ends_is_ended(tmp_path: Path) -> None:
    limits = WebLimits(header_deadline=0.5)
    async with tls_broker(tmp_path, web_limits=limits) as (server, _):
        assert server.web is not None
        async with await trio.open_tcp_stream(*server.address) as stream:
            await stream.send_all(b"\x16\x03\x01\x02\x00\x01")
            with trio.fail_after(PATIENCE):
                assert await stream.receive_some(100) == b""
        assert server.web.counters.late == 1


async def test_a_new_certificate_is_read_again(tmp_path: Path) -> None:
    async with tls_broker(tmp_path) as (server, authority):

        async def serial() -> str:
            context = ssl.create_default_context(cafile=authority.file)
            stream = await trio.open_tcp_stream(*server.address)
            async with trio.SSLStream(stream, context, server_hostname="localhost") as tls:
                await tls.do_handshake()
                certificate = tls.getpeercert()
                assert certificate is not None
                await trio.aclose_forcefully(tls)
                return str(certificate["serialNumber"])

        before = await serial()
        assert await serial() == before
        authority.issue(tmp_path, "localhost")
        assert await serial() == before
        server.reload()
        after = await serial()
        assert after != before
        (tmp_path / "server.key").write_text("no key")
        with pytest.raises(ConfigurationError, match=r"server\.key"):
            server.reload()
        assert await serial() == after


def test_addresses_of_tls_brokers() -> None:
    assert parse_broker("wss://broker.example") == BrokerAddress("broker.example", 443, tls=True)
    address = BrokerAddress("2001:db8::1", 8443, bytes(range(32)), tls=True)
    assert parse_broker(str(address)) == address
    with pytest.raises(ConfigurationError, match="wss://HOST"):
        parse_broker("https://broker.example")


@asynccontextmanager
async def tls_relay(folder: Path) -> AsyncIterator[tuple[RelayServer, TlsRelay]]:
    """A relay, and how clients see it."""
    authority = Authority(folder)
    certificate = CertificateFiles(*authority.issue(folder, "localhost"))
    tunnels = Tunnels()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tunnels.run)
            server: RelayServer = await nursery.start(
                partial(serve_relay, "127.0.0.1", 0, SECRET, certificate=certificate)
            )
            yield server, TlsRelay.at("localhost", server.address.port, authority.file, tunnels)
            nursery.cancel_scope.cancel()


async def both_ends(places: tuple[Endpoint, Endpoint], session: int = 0) -> list[trio.SocketStream]:
    return [
        trio.SocketStream(await take_seat(place, ticket))
        for place, ticket in zip(places, tickets(session), strict=True)
    ]


@pytest.mark.parametrize("kinds", ["tls tls", "tls plain", "plain tls"])
async def test_each_direction_ends_alone_in_tls(tmp_path: Path, kinds: str) -> None:
    async with tls_relay(tmp_path) as (server, relay):
        places = {"tls": relay, "plain": server.address}
        first, second = kinds.split()
        one, two = await both_ends((places[first], places[second]))
        data = bytes(range(256)) * 8192

        async def say(stream: trio.SocketStream, words: bytes) -> None:
            await stream.send_all(words)
            await stream.send_eof()

        async with one, two, trio.open_nursery() as nursery:
            nursery.start_soon(say, one, data)
            assert b"".join([bytes(part) async for part in two]) == data
            nursery.start_soon(say, two, data[::-1])
            assert b"".join([bytes(part) async for part in one]) == data[::-1]
        while server.desk.counters.open:
            await trio.sleep(0.01)
        assert (server.desk.counters.joined, server.desk.counters.resets) == (1, 0)
        assert server.desk.counters.bytes == 2 * len(data)


async def test_who_does_not_read_stops_who_sends_in_tls(tmp_path: Path) -> None:
    async with tls_relay(tmp_path) as (_, relay):
        one, two = await both_ends((relay, relay))
        async with one, two:
            sent = 0
            with trio.move_on_after(1.0):
                while sent < 200_000_000:
                    await one.send_all(bytes(65536))
                    sent += 65536
            assert sent < 200_000_000
            received = 0
            while received < sent:
                received += len(await two.receive_some(1 << 20))


async def test_an_end_of_the_session_ends_its_tunnels(tmp_path: Path) -> None:
    async with tls_relay(tmp_path) as (server, relay):
        one, two = await both_ends((relay, server.address))
        async with one, two:
            await one.send_all(b"x")
            assert await two.receive_some(1) == b"x"
            assert relay.tunnels._nursery is not None
            relay.tunnels._nursery.cancel_scope.cancel()
            for stream in (one, two):
                with pytest.raises(trio.BrokenResourceError):
                    await stream.receive_some(1)
            with pytest.raises(OSError, match="has ended"):
                await take_seat(relay, tickets(1)[0])
        while server.desk.counters.open:
            await trio.sleep(0.01)
