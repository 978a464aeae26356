"""connect() among brokers that lie and strangers at the punched ports: nobody gets in, and each is noticed."""

from __future__ import annotations

import contextlib
import errno
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from world import World, open_world

from ntcpsock._errors import (
    IdentityMismatch,
    NameTaken,
)
from ntcpsock._identity import Identity
from ntcpsock._node import Node
from ntcpsock._session.stream import send_bind
from ntcpsock._session.tls import client_handshake
from ntcpsock._traversal.broker.driver import Delivery
from ntcpsock._traversal.dial import Dial
from ntcpsock._traversal.gather import WarmPort
from ntcpsock._traversal.prove import MAX_UNAUTHENTICATED
from ntcpsock._traversal.punch.message import Offer, decode_sealed_payload_untrusted


@pytest.fixture(autouse=True)
def leaks_show_where_they_are_made() -> Iterator[None]:
    """A socket that nobody closed is an error (ResourceWarning) in the test that made it, not in a later one."""
    yield
    gc.collect()


async def test_a_stolen_name_is_refused_at_the_broker(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice"):
        with pytest.raises(NameTaken, match=r"alice\.ntcp"):
            async with world.node("alice", state_dir=tmp_path / "thief"):
                raise AssertionError("unreachable")


async def test_a_name_that_changed_its_key_is_noticed(tmp_path: Path) -> None:
    """A broker that was robbed of its names, or that lies."""
    client = tmp_path / "client"
    async with open_world(tmp_path) as world:
        async with world.node("alice") as alice, world.node(state_dir=client) as bob:
            await alice.open_listener(8000)
            (await bob.open_stream("alice", 8000)).reset()
        world.broker_scope.cancel()
        await trio.testing.wait_all_tasks_blocked(0.01)
        for path in (tmp_path / "broker").glob("names*"):
            path.unlink()
        await world.start_broker()
        async with (
            world.node("alice", state_dir=tmp_path / "thief") as thief,
            world.node(state_dir=client) as bob,
        ):
            await thief.open_listener(8000)
            with pytest.raises(IdentityMismatch, match="pinned") as caught:
                await bob.open_stream("alice", 8000)
            assert caught.value.errno == errno.ECONNABORTED


async def test_another_broker_at_the_same_place_is_refused(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        port = world.server.address.port
        without_key = f"ntcp://127.0.0.1:{port}"
        state = tmp_path / "client"
        async with world.node(broker=without_key, state_dir=state):
            pass  # taken at first contact, and pinned
        world.broker_scope.cancel()
        await trio.testing.wait_all_tasks_blocked(0.01)
        (tmp_path / "broker" / "broker.key").unlink()
        old_uri = world.uri
        await world.start_broker(port)
        for broker in (without_key, old_uri):
            with pytest.raises(IdentityMismatch):
                async with world.node(broker=broker, state_dir=state, broker_timeout=2.0):
                    raise AssertionError("unreachable")


async def card_of(node: Node, world: World) -> tuple[bytes, tuple[str, int]]:
    """What an attacker may know of a listening node: its certificate's fingerprint and its port."""
    warm = node.listening_port
    assert warm is not None
    return node.certificate.fingerprint, warm.candidates[0].endpoint


async def test_a_third_party_that_connects_to_the_punched_port_first_is_refused(tmp_path: Path) -> None:
    """It reaches the port, it even speaks TLS and BIND; without the sealed offer's token it gets nothing."""
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as bob:
        async with await alice.open_listener(8000) as listener:
            fingerprint, endpoint = await card_of(alice, world)
            # Silent ones, talkative ones, one that speaks TLS with a guessed token.
            strangers = [await trio.open_tcp_stream(*endpoint) for _ in range(5)]
            await strangers[0].send_all(b"GET / HTTP/1.1\r\n\r\n")
            sock = trio.socket.socket()
            await sock.connect(endpoint)
            carrier = await client_handshake(sock, fingerprint)
            await send_bind(carrier, bytes(16), bytes(32))
            dialled = await bob.open_stream("alice", 8000)
            accepted = await listener.accept()
            assert accepted.peer.node_id == bob.node_id
            assert listener._receiver.statistics().current_buffer_used == 0
            for stream in (dialled, accepted):
                stream.reset()
            carrier.close()
            for stranger in strangers:
                await stranger.aclose()


async def test_a_crowd_at_the_listening_port_does_not_keep_the_dialer_out(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as bob:
        async with await alice.open_listener(8000) as listener:
            _, endpoint = await card_of(alice, world)
            crowd = [await trio.open_tcp_stream(*endpoint) for _ in range(MAX_UNAUTHENTICATED + 10)]
            while alice._acceptor.refused.get("displaced", 0) < 10:
                await trio.sleep(0.01)
            dialled = await bob.open_stream("alice", 8000)
            accepted = await listener.accept()
            assert len(alice._acceptor.doorkeeper.strangers) <= MAX_UNAUTHENTICATED
            for stream in (dialled, accepted):
                stream.reset()
            for stranger in crowd:
                await trio.aclose_forcefully(stranger)


async def test_a_third_party_at_the_dialers_port_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever connects to the dialer first must show the certificate of the listener's card."""
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("mallory") as mallory:
        async with (
            world.node() as bob,
            await alice.open_listener(8000) as listener,
            await mallory.open_listener(1),
        ):
            introduce = bob.introductions.introduce

            async def meddled(dial: Dial, payload: bytes) -> object:
                offer = decode_sealed_payload_untrusted(payload)
                assert isinstance(offer, Offer)
                # Mallory, with a good certificate of its own, is at the dialer's port before the peer.
                sock = trio.socket.socket()
                await sock.connect(offer.candidates[0].endpoint)
                context = mallory.certificate.server_context
                mallory_streams.append(trio.SSLStream(trio.SocketStream(sock), context, server_side=True))
                nursery.start_soon(handshake_as_mallory, mallory_streams[-1])
                return await introduce(dial, payload)

            async def handshake_as_mallory(stream: trio.SSLStream[trio.SocketStream]) -> None:
                try:
                    await stream.do_handshake()
                    received.append(bytes(await stream.receive_some()))
                except trio.BrokenResourceError:
                    broken.append(stream)

            mallory_streams: list[trio.SSLStream[trio.SocketStream]] = []
            received: list[bytes] = []
            broken: list[object] = []
            monkeypatch.setattr(bob.introductions, "introduce", meddled)
            async with trio.open_nursery() as nursery:
                dialled = await bob.open_stream("alice", 8000)
                accepted = await listener.accept()
                await dialled.send_all(b"for alice only")
                assert await accepted.receive_some() == b"for alice only"
            # Refused in the handshake, or right behind it.
            assert b"".join(received) == b""
            assert len(broken) + len(received) == len(mallory_streams) > 0
            refusals = [entry.outcome for entry in dialled.report.attempts if "not the peer" in entry.outcome]
            assert any("certificate" in outcome for outcome in refusals)
            for stream in (dialled, accepted):
                stream.reset()
            for tls in mallory_streams:
                await trio.aclose_forcefully(tls)


async def test_a_replayed_offer_and_a_replayed_token_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as bob:
        async with await alice.open_listener(8000) as listener:
            recorded: list[tuple[Delivery, Offer]] = []
            run = alice._acceptor._run

            async def recording(delivery: Delivery, offer: Offer, warm: WarmPort) -> None:
                recorded.append((delivery, offer))
                await run(delivery, offer, warm)

            monkeypatch.setattr(alice._acceptor, "_run", recording)
            dialled = await bob.open_stream("alice", 8000)
            accepted = await listener.accept()
            delivery, offer = recorded[0]
            await trio.testing.wait_all_tasks_blocked(0.01)
            await alice._acceptor.offered(delivery, offer)  # returns at once: its dial id is spent
            assert alice._acceptor.refused["repeated dial id"] >= 1
            fingerprint, endpoint = await card_of(alice, world)
            sock = trio.socket.socket()
            await sock.connect(endpoint)
            carrier = await client_handshake(sock, fingerprint)
            await send_bind(carrier, offer.dial_id, offer.token)
            with contextlib.suppress(ConnectionResetError):
                assert await carrier.receive_some(100) == b""
            assert alice._acceptor.refused == {"repeated dial id": 1, "wrong token": 1}
            assert listener._receiver.statistics().current_buffer_used == 0
            carrier.close()
            for stream in (dialled, accepted):
                stream.reset()


async def test_an_offer_sealed_by_another_than_its_sender_is_dropped(tmp_path: Path) -> None:
    """A broker that puts another sender before a blob it cannot open."""
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as bob:
        async with await alice.open_listener(8000) as listener:
            dial = Dial(await bob.resolve("alice"), "alice", 8000)
            warm = await bob.take_port()
            sealed = bob.introductions._sealer.seal(dial.key, dial.offer(1, warm, 0.0))
            mallory = Identity.generate().public_key
            for blob, sender in (
                (sealed, mallory),
                (sealed[:-1] + bytes([sealed[-1] ^ 1]), bob._identity.public_key),
            ):
                alice._session._send_delivery.send_nowait(Delivery(sender, bytes(8), None, blob))
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not alice._acceptor.dials.under_way
            assert not alice._acceptor.dials.ended
            warm.close()
            assert listener._receiver.statistics().current_buffer_used == 0


async def test_a_forged_card_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as bob:
        async with await alice.open_listener(8000):
            for node in world.server.core._registry:  # the broker's copy, altered
                if node.card:
                    node.card = node.card[:-1] + bytes([node.card[-1] ^ 1])
            with pytest.raises(IdentityMismatch, match="signature"):
                await bob.open_stream("alice", 8000)
