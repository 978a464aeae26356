"""connect() from end to end on loopback: who is reached, who is refused, and what each failure says."""

from __future__ import annotations

import contextlib
import errno
import gc
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from world import World, open_world

from ntcpsock._errors import (
    BrokerUnreachable,
    ConfigurationError,
    IdentityMismatch,
    NameNotFound,
    NameTaken,
    NTCPError,
    PeerOffline,
    PeerRefused,
    TraversalTimeout,
)
from ntcpsock._identity import Identity
from ntcpsock._node import Node
from ntcpsock._servers.stun import serve_stun
from ntcpsock._session.stream import NTCPStream, send_bind
from ntcpsock._session.tls import client_handshake
from ntcpsock._traversal import accept, gather, ports
from ntcpsock._traversal.accept import MAX_UNAUTHENTICATED
from ntcpsock._traversal.broker.driver import Delivery
from ntcpsock._traversal.dial import Dial
from ntcpsock._traversal.gather import WarmPort
from ntcpsock._traversal.punch.message import Answer, Offer, decode_sealed_payload_untrusted


@pytest.fixture(autouse=True)
def leaks_show_where_they_are_made() -> Iterator[None]:
    """A socket that nobody closed is an error (ResourceWarning) in the test that made it, not in a later one."""
    yield
    gc.collect()


async def accept_one(node: Node, port: int, dialer: Node, name: str) -> tuple[NTCPStream, NTCPStream]:
    async with await node.open_listener(port) as listener:
        dialled = await dialer.open_stream(name, port)
        return dialled, await listener.accept()


async def test_by_name_and_by_node_id(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob") as bob:
        for name in ("alice", "Alice.NTCP", alice.node_id):
            dialled, accepted = await accept_one(alice, 8000, bob, name)
            async with dialled, accepted:
                await dialled.send_all(b"there")
                assert await accepted.receive_some() == b"there"
                await accepted.send_all(b"and back")
                assert await dialled.receive_some() == b"and back"
                assert (dialled.peer.node_id, dialled.peer.port) == (alice.node_id, 8000)
                assert (accepted.peer.name, accepted.peer.node_id) == ("bob", bob.node_id)
                assert dialled.path.kind == accepted.path.kind == "lan"
                assert dialled.path.local == accepted.path.remote
                stages = [stage.name for stage in dialled.report.stages]
                assert stages == ["resolve", "gather", "broker", "punch", "bind"]
                assert dialled.report.failed_stage is None
                assert dialled.report.seconds is not None


async def test_a_node_without_a_name_is_reached_by_its_id(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node() as server, world.node() as client:
        dialled, accepted = await accept_one(server, 9, client, server.node_id)
        async with dialled, accepted:
            assert accepted.peer.name is None
            assert accepted.peer.node_id == client.node_id != server.node_id


async def test_a_node_reaches_itself(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice:
        dialled, accepted = await accept_one(alice, 9, alice, "alice")
        async with dialled, accepted:
            await dialled.send_all(b"me")
            assert await accepted.receive_some() == b"me"
            assert dialled.path.local == accepted.path.remote != dialled.path.remote


async def test_stun_that_comes_late_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that started without a STUN server gathers again until one answers."""
    for module in (ports, gather):
        for name in ("TCP_REFRESH_INTERVAL", "GATHER_RETRY"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, 0.05)
    async with open_world(tmp_path) as world:
        with socket.socket() as reserved:
            reserved.bind(("127.0.0.1", 0))
            port = reserved.getsockname()[1]
        async with world.node("alice", stun=(f"127.0.0.1:{port}",), warm_ports=0) as alice:
            async with await alice.open_listener(8000):
                first = alice.listening_port
                assert first is not None
                assert first.stun_sockets == []
                await world.nursery.start(serve_stun, "127.0.0.1", port)
                with trio.fail_after(60):
                    while (now := alice.listening_port) is first or now is None:
                        await trio.sleep(0.02)
                assert now.stun_sockets


async def test_many_streams_at_once(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as bob:
        async with await alice.open_listener(8000) as listener, trio.open_nursery() as nursery:

            async def echo() -> None:
                for _ in range(20):
                    nursery.start_soon(echo_one, await listener.accept())

            async def echo_one(stream: NTCPStream) -> None:
                async with stream:
                    await stream.send_all(await stream.receive_some())

            async def dial(number: int) -> None:
                async with await bob.open_stream("alice", 8000) as stream:
                    await stream.send_all(b"%d" % number)
                    assert await stream.receive_some() == b"%d" % number

            nursery.start_soon(echo)
            for number in range(20):
                nursery.start_soon(dial, number)


async def test_both_dial_each_other_at_once(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob") as bob:
        at_alice, at_bob = await alice.open_listener(1), await bob.open_listener(1)
        async with at_alice, at_bob, trio.open_nursery() as nursery:
            for dialer, name, listener in ((bob, "alice", at_alice), (alice, "bob", at_bob)):

                async def dial(dialer: Node = dialer, name: str = name) -> None:
                    async with await dialer.open_stream(name, 1) as stream:
                        assert await stream.receive_some() == b"hello"

                async def answer(listener: trio.abc.Listener[NTCPStream] = listener) -> None:
                    async with await listener.accept() as stream:
                        await stream.send_all(b"hello")

                nursery.start_soon(dial)
                nursery.start_soon(answer)


# What goes wrong without anybody's ill will.


async def test_nobody_has_the_name(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node() as bob:
        with pytest.raises(NameNotFound, match=r"carol\.ntcp") as caught:
            await bob.open_stream("carol", 8000)
        assert isinstance(caught.value, socket.gaierror)
        assert caught.value.errno == socket.EAI_NONAME
        assert caught.value.report is not None
        assert caught.value.report.failed_stage == "resolve"


async def test_nothing_listens_on_the_port(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as bob:
        with pytest.raises(PeerRefused, match="8000") as caught:  # no listener at all
            await bob.open_stream("alice", 8000)
        assert caught.value.errno == errno.ECONNREFUSED
        async with await alice.open_listener(8001):
            with pytest.raises(PeerRefused, match="8000"):
                await bob.open_stream("alice", 8000)


async def test_the_peer_said_goodbye(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node() as bob:
        async with world.node("alice") as alice:
            await alice.open_listener(8000)
            await bob.resolve("alice")
        with pytest.raises(PeerOffline, match="not connected to the broker") as caught:
            await bob.open_stream("alice", 8000)
        assert caught.value.errno == errno.ECONNREFUSED
        assert caught.value.report is not None
        assert caught.value.report.failed_stage == "broker"


async def test_the_peer_died_without_a_word(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as bob:
        listener = await alice.open_listener(8000)
        alice._session._link.close()  # its packets reach nobody from here on
        alice._listening.warm.close() if alice._listening.warm else None
        with pytest.raises(PeerOffline, match="not answered") as caught:
            await bob.open_stream("alice", 8000)
        assert caught.value.report is not None
        assert caught.value.report.failed_stage == "punch"
        listener.close()


async def test_no_broker_is_there(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        async with open_world(tmp_path) as world:
            for port, timeout in ((9, 5.0), (silent.getsockname()[1], 0.3)):
                config = world.config(broker=f"ntcp://127.0.0.1:{port}", broker_timeout=timeout)
                with pytest.raises(BrokerUnreachable, match="no answer") as caught:
                    async with world.node(broker=config.broker, broker_timeout=timeout):
                        raise AssertionError("unreachable")
                assert caught.value.errno == errno.ENETUNREACH
                assert caught.value.report is not None
                assert caught.value.report.failed_stage == "broker"


async def test_a_broker_name_that_does_not_resolve(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        with pytest.raises(BrokerUnreachable):
            async with world.node(broker="ntcp://does-not-exist.invalid:1"):
                raise AssertionError("unreachable")


async def test_no_broker_configured(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        with pytest.raises(ConfigurationError, match="NTCP_BROKER"):
            async with world.node(broker=None):
                raise AssertionError("unreachable")


async def test_the_broker_goes_away_before_the_dial(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as bob:
        async with await alice.open_listener(8000):
            await bob.resolve("alice")
            world.broker_scope.cancel()
            await trio.testing.wait_all_tasks_blocked(0.01)
            with pytest.raises(TraversalTimeout, match="'broker'") as caught:
                await bob.open_stream("alice", 8000, timeout=0.5)
            assert caught.value.errno == errno.ETIMEDOUT
            assert isinstance(caught.value, TimeoutError)
            with pytest.raises(BrokerUnreachable) as without_deadline:
                await bob.open_stream("alice", 8000, timeout=60)
            assert without_deadline.value.report is not None
            assert without_deadline.value.report.failed_stage == "broker"


async def test_a_restarted_broker_finds_everything_again(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        async with (
            world.node("alice", keep_alive_interval=0.2) as alice,
            world.node(keep_alive_interval=0.2) as bob,
        ):
            async with await alice.open_listener(8000) as listener:
                before = await bob.open_stream("alice", 8000)
                accepted_before = await listener.accept()
                await world.restart_broker()
                with trio.fail_after(60):
                    while True:
                        try:
                            after = await bob.open_stream("alice", 8000)
                            break
                        except (PeerOffline, BrokerUnreachable):
                            await trio.sleep(0.05)
                accepted_after = await listener.accept()
                await before.send_all(b"still here")
                assert await accepted_before.receive_some() == b"still here"
                for stream in (before, accepted_before, after, accepted_after):
                    stream.reset()


async def test_listener_errors(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as nobody:
        async with await alice.open_listener(8000):
            with pytest.raises(NameTaken, match="8000") as caught:
                await alice.open_listener(8000)
            assert caught.value.errno == errno.EADDRINUSE
        async with await alice.open_listener(8000), await alice.open_listener(0) as chosen:
            assert chosen.port >= 49152
        with pytest.raises(ConfigurationError, match="NTCP_NAME=bob"):
            await nobody.open_listener(8000, name="bob")
        with pytest.raises(ConfigurationError, match="another node's id"):
            await alice.open_listener(8000, name=nobody.node_id)


async def test_a_closed_listener_resets_what_nobody_accepted(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as bob:
        listener = await alice.open_listener(8000)
        stream = await bob.open_stream("alice", 8000)
        while not listener._receiver.statistics().current_buffer_used:
            await trio.sleep(0.01)
        await listener.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.receive_some()
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        await stream.aclose()


async def test_cancelling_a_dial_leaves_nothing(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as bob:
        async with await alice.open_listener(8000):
            for _ in range(20):
                with trio.move_on_after(0.004):
                    (await bob.open_stream("alice", 8000)).reset()
            (await bob.open_stream("alice", 8000)).reset()
    # Whatever a cancelled dial had left open would be a ResourceWarning now, and so an error.


async def test_a_busy_listener_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as bob:
        async with await alice.open_listener(8000) as listener, trio.open_nursery() as nursery:
            answered: list[Answer] = []
            reply = alice.introductions.reply

            def recording(delivery: Delivery, answer: Answer) -> None:
                answered.append(answer)
                monkeypatch.undo()
                reply(delivery, answer)

            monkeypatch.setattr(accept, "MAX_PENDING", 0)
            monkeypatch.setattr(alice.introductions, "reply", recording)

            async def dial() -> None:
                (await bob.open_stream("alice", 8000)).reset()

            nursery.start_soon(dial)
            (await listener.accept()).reset()
            assert [answer.outcome for answer in answered] == ["busy"]


# Ill will.


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
            assert len(alice._acceptor._strangers) <= MAX_UNAUTHENTICATED
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
            assert not alice._acceptor._pending
            assert not alice._acceptor._ended
            warm.close()
            assert listener._receiver.statistics().current_buffer_used == 0


async def test_a_forged_card_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as bob:
        async with await alice.open_listener(8000):
            for node in world.server.core._registry._by_session.values():  # the broker's copy, altered
                if node.card:
                    node.card = node.card[:-1] + bytes([node.card[-1] ^ 1])
            with pytest.raises(IdentityMismatch, match="signature"):
                await bob.open_stream("alice", 8000)


# Who may come in.


async def test_allow_lists(tmp_path: Path) -> None:
    async with (
        open_world(tmp_path) as world,
        world.node("bob") as bob,
        world.node() as carol,
        world.node() as eve,
    ):
        allow = ("bob", carol.node_id)
        async with world.node("alice", allow=allow) as alice, await alice.open_listener(8000) as listener:
            for friend in (bob, carol):
                dialled = await friend.open_stream("alice", 8000)
                accepted = await listener.accept()
                assert accepted.peer.node_id == friend.node_id
                assert [stage.name for stage in dialled.report.stages][-3:] == ["answer", "punch", "bind"]
                for stream in (dialled, accepted):
                    stream.reset()
            with pytest.raises(PeerRefused):
                await bob.open_stream("alice", 1)  # a friend may know that nothing listens there
            refusals: list[NTCPError] = []
            for name in ("alice", "nobody"):
                with pytest.raises(NameNotFound) as by_name:
                    await eve.open_stream(name, 8000)
                refusals.append(by_name.value)
            first, second = (str(error).replace("alice", "X").replace("nobody", "X") for error in refusals)
            assert first == second
            texts = []
            for node_id in (alice.node_id, Identity.generate().node_id):
                with pytest.raises(NTCPError) as by_id:
                    await eve.open_stream(node_id, 8000)
                texts.append((type(by_id.value), by_id.value.errno, str(by_id.value).replace(node_id, "X")))
            assert texts[0] == texts[1]


async def test_the_listener_itself_keeps_strangers_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even when the broker lets an offer through, the listener answers a stranger nothing."""
    async with open_world(tmp_path) as world, world.node() as eve:
        async with world.node("alice", allow=("nobody-else",)) as alice, await alice.open_listener(8000):
            warm = await eve.take_port()
            answers: list[Answer] = []
            monkeypatch.setattr(alice.introductions, "reply", lambda _, answer: answers.append(answer))
            offer = Offer(bytes(16), bytes(32), 8000, 1, warm.candidates)
            await alice._acceptor.offered(Delivery(eve._identity.public_key, bytes(8), None, b""), offer)
            assert answers == []
            assert alice._acceptor.refused["not allowed"] == 1
            warm.close()


async def test_an_open_port_beside_a_private_one(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as eve:
        async with await alice.open_listener(1), await alice.open_listener(2, allow=("bob",)):
            with pytest.raises(PeerRefused) as private:
                await eve.open_stream("alice", 2)
            with pytest.raises(PeerRefused) as closed:
                await eve.open_stream("alice", 3)
            assert str(private.value).replace("2", "3") == str(closed.value)
