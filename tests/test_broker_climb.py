"""A session that fell over to TCP finds its way back to UDP, and loses nothing on the way."""

from __future__ import annotations

import pytest
import trio
from broker_support import SEALED
from relay_support import running_broker
from test_broker_tcp import ALICE, BOB, PATIENCE, SEND, running_proxy, session_with

from ntcpsock._address import BrokerAddress, Endpoint
from ntcpsock._servers.broker import BrokerServer
from ntcpsock._servers.gate import Gate
from ntcpsock._servers.policy import Policy
from ntcpsock._state import Pins
from ntcpsock._traversal.broker import climb, link, reach
from ntcpsock._traversal.broker.driver import BrokerSession, open_broker_session
from ntcpsock._traversal.broker.frame import Sealer
from ntcpsock._traversal.broker.message import Hello, decode_from_node
from ntcpsock._traversal.broker.move import MAX_TRIES, Move
from ntcpsock._traversal.broker.outbox import Outbox
from ntcpsock._traversal.broker.transport import UdpTransport
from ntcpsock._traversal.http import proxy

TOKEN = "a token of the tests"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(climb, "FIRST_PAUSE", 0.2)
    monkeypatch.setattr(climb, "LONGEST_PAUSE", 0.4)
    monkeypatch.setattr(link, "_MOVE_DEADLINE", 1.0)


async def until(session: BrokerSession, transport: str) -> None:
    with trio.fail_after(PATIENCE):
        while session.transport != transport or not session.connected:
            await trio.sleep(0.01)


async def keep_introducing(bob: BrokerSession, sent: list[bytes], stop: trio.Event) -> None:
    """Offers, one after the other, each answered by the broker."""
    while not stop.is_set():
        sealed = SEALED + len(sent).to_bytes(4, "big")
        await bob.introduce(ALICE.public_key, 80, sealed)
        sent.append(sealed)


async def take_all(alice: BrokerSession, taken: set[bytes]) -> None:
    async for delivery in alice.deliveries:
        taken.add(delivery.sealed)


async def test_it_climbs_back_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    monkeypatch.setattr(UdpTransport, "send", lambda self, frame: None)
    async with running_broker() as server, session_with(server, ALICE) as alice:
        await alice.set_registration(("alice",), (80,), b"card", None)
        assert alice.transport == "tcp"
        # Several looks that find nothing.
        await trio.sleep(1.0)
        assert alice.transport == "tcp"
        assert alice.connected
        monkeypatch.setattr(UdpTransport, "send", SEND)
        monkeypatch.setattr(reach, "FALLBACK_DELAY", PATIENCE)
        async with session_with(server, BOB) as bob:
            sent: list[bytes] = []
            taken: set[bytes] = set()
            stop = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep_introducing, bob, sent, stop)
                nursery.start_soon(take_all, alice, taken)
                await until(alice, "udp")
                count = len(sent)
                while len(sent) < count + 20:
                    await trio.sleep(0.01)
                stop.set()
                with trio.fail_after(PATIENCE):
                    while not taken >= set(sent):
                        await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
        # The same instance, in the same session, with what it had registered once.
        assert server.core.counters.registrations == 1
        assert len(server.core) == 2
        await until_connections_are(server, 0)


async def test_it_climbs_back_from_a_proxy(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    monkeypatch.setattr(UdpTransport, "send", lambda self, frame: None)
    with running_proxy() as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(proxy, "_is_loopback", lambda host: False)
        async with running_broker(stun=[Endpoint("0.0.0.0", 3478)]) as server:
            async with session_with(server, ALICE) as alice:
                ways = [alice.transport]
                # Nothing that only the proxy can reach.
                assert not alice.welcome.stun
                monkeypatch.setattr(UdpTransport, "send", SEND)
                await until(alice, "udp")
                ways.append(alice.transport)
                assert ways == ["tcp", "udp"]
                stun = [str(server) for server in alice.welcome.stun]
                assert stun == ["127.0.0.1:3478"]
            assert len(server.core) == 1


async def test_it_climbs_back_at_a_broker_that_admits_by_token(
    monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    monkeypatch.setattr(UdpTransport, "send", lambda self, frame: None)
    async with running_broker(gate=Gate(Policy(private=True, tokens=(TOKEN,)))) as server:
        with trio.fail_after(PATIENCE):
            address = BrokerAddress(*server.address, server.key)
            async with open_broker_session(address, ALICE, pins=Pins(None), token=TOKEN) as alice:
                assert alice.transport == "tcp"
                monkeypatch.setattr(UdpTransport, "send", SEND)
                await until(alice, "udp")
        assert not server.core.counters.refused


async def until_connections_are(server: BrokerServer, count: int) -> None:
    assert server.web is not None
    with trio.fail_after(PATIENCE):
        while server.web.counters.open != count:
            await trio.sleep(0.01)


async def test_a_way_that_only_lets_hellos_out_does_no_harm(
    monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    """The broker moves it, and its Welcome never arrives: it is found over TCP again at once."""
    monkeypatch.setattr(UdpTransport, "send", lambda self, frame: None)
    async with running_broker() as server, session_with(server, ALICE) as alice:
        await alice.set_registration(("alice",), (80,), b"card", None)
        monkeypatch.setattr(UdpTransport, "send", SEND)
        taken: list[bytes] = []
        receive = link.Link._take

        def deaf_for_welcomes(self: link.Link, datagram: bytes) -> None:
            # The Challenge arrives, and nothing behind it.
            if self._other is not None and len(taken) % 2:
                taken.append(datagram)
                return
            if self._other is not None:
                taken.append(datagram)
            receive(self, datagram)

        monkeypatch.setattr(link.Link, "_take", deaf_for_welcomes)
        with trio.fail_after(PATIENCE):
            while len(taken) < 2:
                await trio.sleep(0.01)
            monkeypatch.setattr(link.Link, "_take", receive)
        async with session_with(server, BOB) as bob:
            with trio.fail_after(PATIENCE):
                while True:
                    await bob.introduce(ALICE.public_key, 80, SEALED)
                    with trio.move_on_after(0.5):
                        assert (await alice.deliveries.receive()).sealed == SEALED
                        break
        assert len(server.core) == 2


async def test_a_network_that_lets_udp_through_for_moments_is_asked_less_and_less() -> None:
    schedule = climb.Climb()
    pauses = []
    now = 0.0
    for _ in range(8):
        pauses.append(schedule._pause)
        schedule.succeeded(now)
        schedule.fell(now + 1.0)
        now += 10.0
    assert pauses == [30.0, 60.0, 120.0, 240.0, 480.0, 960.0, 960.0, 960.0]
    schedule.succeeded(now)
    schedule.fell(now + climb.GOOD_FOR + 1)
    assert schedule._pause == climb.FIRST_PAUSE


def test_a_move_says_hello_a_few_times_and_answers_one_challenge_at_once() -> None:
    alice, broker = Sealer(ALICE), Sealer(BOB)
    outbox = Outbox(alice, bytes)
    move = Move(outbox)
    hello = Hello(bytes(8), b"", True, b"t" * 16)
    move.begin(BOB.public_key, hello, 0.25, 0.0)
    frames = move.take()
    while (due := move.next_timer()) is not None:
        move.send_due(BOB.public_key, due)
        frames += move.take()
    assert len(frames) == MAX_TRIES
    envelopes = [decode_from_node(broker.open_untrusted(frame)[1]) for frame in frames]
    assert all(envelope.body == hello for envelope in envelopes)
    halves = [move.is_half_way]
    assert move.challenged(envelopes[-1].request, b"c" * 16, BOB.public_key, 5.0)
    assert not move.challenged(envelopes[-1].request, b"c" * 16, BOB.public_key, 5.0)
    (frame,) = move.take()
    answer = decode_from_node(broker.open_untrusted(frame)[1])
    assert answer.body == Hello(bytes(8), b"c" * 16, True, b"t" * 16)
    halves.append(move.is_half_way)
    assert move.welcomed(answer.request + 1) is None
    assert move.welcomed(answer.request) == 5.0
    assert [*halves, move.is_half_way] == [False, True, False]


async def test_nobody_is_told_where_a_hidden_node_is() -> None:
    async with running_broker() as server:
        async with session_with(server, ALICE, hidden=True) as alice, session_with(server, BOB) as bob:
            await alice.set_registration(("alice",), (80,), b"card", None)
            await bob.set_registration(("bob",), (80,), b"card", None)
            introduction = await bob.introduce(ALICE.public_key, 80, SEALED)
            assert (introduction.observed_host, introduction.also_observed) == ("", ())
            delivery = await alice.deliveries.receive()
            assert delivery.observed_host == "127.0.0.1"
            alice.send_reply(delivery.sender, delivery.sender_instance, SEALED)
            assert (await bob.deliveries.receive()).observed_host == ""
            assert (await alice.introduce(BOB.public_key, 80, SEALED)).observed_host == "127.0.0.1"
            assert (await bob.deliveries.receive()).observed_host == ""
            # It knows its own place, and has proved no further ones.
            assert alice.welcome.observed.host == "127.0.0.1"
            (record,) = server.core._registry.instances(ALICE.public_key, trio.current_time())
            assert (record.hidden, record.proved) == (True, ())
