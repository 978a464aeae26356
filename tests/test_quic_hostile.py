"""Strangers at the port of a QUIC handshake: forged first packets, floods, rubbish, and what they cost others."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from quic_support import handshake, handshake_in
from quic_wire import wire_paths
from session_support import certificate

from ntcpsock._session.quic import configuration
from ntcpsock._session.quic import machine as machine_module
from ntcpsock._session.quic.accepting import MOST_HANDSHAKES, Acceptance
from ntcpsock._session.quic.carrier import quic_server_handshake
from ntcpsock._session.quic.configuration import ServerIdentity, parse_initial
from ntcpsock._session.quic.machine import QuicMachine


def client_machine(now: float = 0.0) -> QuicMachine:
    return QuicMachine.client(
        certificate().fingerprint, now, datagram_size=1200, idle_timeout=30, initial_rtt=0.1
    )


def acceptance() -> Acceptance:
    identity = ServerIdentity(certificate().certificate_pem, certificate().key_pem)
    return Acceptance(identity, 1200, 30, 0.1, is_ipv6=False)


def established() -> tuple[QuicMachine, QuicMachine]:
    """A client's and a server's machine after the handshake, without any path."""
    client, accepting = client_machine(), acceptance()
    for turn in range(20):
        now = turn / 100
        for datagram in client.datagrams_to_send(now, 50):
            accepting.receive(datagram, now)
        for server in accepting.machines:
            for datagram in server.datagrams_to_send(now, 50):
                client.receive(datagram, len(datagram), now)
        if client.handshake_done and accepting.machines[0].handshake_done:
            return client, accepting.machines[0]
    raise AssertionError("no handshake")


def exchange(client: QuicMachine, server: QuicMachine, now: float) -> None:
    for _ in range(4):
        for source, target in ((client, server), (server, client)):
            for datagram in source.datagrams_to_send(now, 500):
                target.receive(datagram, len(datagram), now)


async def test_forged_first_packets_do_not_keep_the_client_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = wire_paths()
    for _ in range(MOST_HANDSHAKES - 1):
        for datagram in client_machine(trio.current_time()).datagrams_to_send(trio.current_time(), 10):
            near.try_send([datagram])
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            client, _ = await handshake(nursery, near, far)
            assert client.try_send(b"x") == 1
            nursery.cancel_scope.cancel()


async def test_a_flood_of_first_packets_is_bounded_and_over_when_it_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = wire_paths()
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(5):
            async with trio.open_nursery() as attack:

                async def flood() -> None:
                    while True:
                        now = trio.current_time()
                        near.try_send(client_machine(now).datagrams_to_send(now, 10))
                        await trio.sleep(0.1)

                attack.start_soon(flood)
                await quic_server_handshake(far, certificate(), nursery=nursery)
        assert far.closed
    accepting = acceptance()
    for number in range(100):
        for datagram in client_machine().datagrams_to_send(0.0, 10):
            accepting.receive(datagram, number / 1000)
    assert len(accepting.machines) == MOST_HANDSHAKES
    assert accepting.dropped >= 90
    assert len(accepting._by_id) == 2 * MOST_HANDSHAKES
    for datagram in client_machine().datagrams_to_send(0.0, 10):
        accepting.receive(datagram, 10.0)
    assert len(accepting.machines) == MOST_HANDSHAKES


def test_before_the_address_is_proven_the_answer_is_three_times_the_question_at_most() -> None:
    accepting = acceptance()
    question = client_machine().datagrams_to_send(0.0, 10)
    for datagram in question:
        accepting.receive(datagram, 0.0)
    (server,) = accepting.machines
    answered, now = 0, 0.0
    while now < 60:
        answered += sum(map(len, server.datagrams_to_send(now, 100)))
        timer = server.next_timer()
        if timer is None:
            break
        now = max(timer, now + 0.001)
        server.handle_timer(now)
    assert 0 < answered <= 3 * sum(map(len, question))
    for number in range(1200):  # rubbish buys no answer
        accepting.receive(random.Random(number).randbytes(1200), 0.0)
    assert accepting.machines == [server] or server not in accepting.machines
    assert accepting.dropped >= 1190


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=1500), st.sampled_from([b"", b"\x40", b"\xc0\0\0\0\1\x08", b"\xd0\0\0\0\1"]))
def test_rubbish_raises_nothing(data: bytes, start: bytes) -> None:
    accepting = acceptance()
    accepting.receive(start + data, 0.0)
    parse_initial(start + data)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_changed_packets_of_a_handshake_raise_nothing(data: st.DataObject) -> None:
    accepting, client = acceptance(), client_machine()
    rng = random.Random(data.draw(st.integers()))
    for turn in range(6):
        now = turn / 50
        for datagram in client.datagrams_to_send(now, 50):
            accepting.receive(changed(datagram, rng), now)
        for server in list(accepting.machines):
            for datagram in server.datagrams_to_send(now, 50):
                client.receive(changed(datagram, rng), len(datagram), now)


def changed(datagram: bytes, rng: random.Random) -> bytes:
    match rng.randrange(4):
        case 0:
            return datagram
        case 1:
            return datagram[: rng.randrange(len(datagram))]
        case 2:
            copy = bytearray(datagram)
            copy[rng.randrange(min(60, len(copy)))] ^= 1 << rng.randrange(8)
            return bytes(copy)
        case _:
            return datagram + rng.randbytes(20)


def test_rubbish_in_a_connection_is_ignored() -> None:
    client, server = established()
    exchange(client, server, 0.9)
    assert client.send(b"hello") == 5
    rng = random.Random(1)
    (datagram,) = client.datagrams_to_send(1.0, 10)
    for _ in range(500):
        noise = changed(datagram, rng)
        if noise != datagram:
            assert server.receive(noise, len(noise) or 1, 1.0) == 0 or noise.startswith(datagram)
        noise = rng.randbytes(rng.randrange(1, 1500))
        assert server.receive(noise, len(noise), 1.0) == 0
    assert server.error is None
    server.receive(datagram, len(datagram), 1.1)
    assert server.receive(datagram, len(datagram), 1.1) == 0, "a copy counts as new"
    buffer = memoryview(bytearray(10))
    assert server.receive_into(buffer) == 5


def test_a_second_stream_ends_the_connection() -> None:
    client, server = established()
    client._connection.require_core().send_stream(4, b"sneaky")
    exchange(client, server, 1.0)
    assert isinstance(server.error, ConnectionAbortedError)
    assert client.error is not None


def test_a_stream_that_is_reset_or_stopped_ends_the_connection() -> None:
    for reset in (True, False):
        client, server = established()
        client.send(b"hello")
        exchange(client, server, 1.0)
        if reset:
            client._connection.require_core().reset_stream(0, 7)
        else:
            client._connection.require_core().stop_sending(0, 7)
        exchange(client, server, 1.1)
        assert isinstance(server.error, ConnectionResetError)


def test_a_peer_that_ignores_the_window_is_cut_off() -> None:
    client, server = established()
    core = client._connection.require_core()
    core.apply_peer_transport_parameters(1 << 40, 1 << 40, 1 << 40, 0, 100, 100, 3, 0.025, None, 65535)
    now, block = 1.0, bytes(1 << 20)
    for _ in range(2000):
        if client.error is None:
            core.send_stream(0, block) if client._stream_open else client.send(block)
        now += 0.05
        exchange(client, server, now)
        if server.error is not None:
            break
    assert isinstance(server.error, ConnectionAbortedError)
    assert server.readable <= configuration.WINDOW + machine_module.RECEIVE_ROOM
    assert server.has_room, "who waits to send would wait for ever"


async def test_who_speaks_another_protocol_is_refused(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configuration, "ALPN", "h3")
    client = client_machine()
    monkeypatch.undo()
    accepting = acceptance()
    for turn in range(10):
        for datagram in client.datagrams_to_send(turn / 10, 50):
            accepting.receive(datagram, turn / 10)
        for server in accepting.machines:
            for datagram in server.datagrams_to_send(turn / 10, 50):
                client.receive(datagram, len(datagram), turn / 10)
    assert not client.handshake_done
    assert accepting.machines == []


async def test_both_ends_survive_a_wire_full_of_rubbish(autojump_clock: trio.testing.MockClock) -> None:
    near, far = wire_paths()
    rng = random.Random(5)
    async with trio.open_nursery() as nursery:

        async def shout() -> None:
            while True:
                for path in (near, far):
                    path.peer.deliver(trio.current_time(), rng.randbytes(rng.randrange(0, 1500)))
                    path.peer.deliver(trio.current_time(), bytes([0x40]) + rng.randbytes(100))
                await trio.sleep(0.001)

        nursery.start_soon(shout)
        client, server = await handshake_in(nursery, nursery, near, far)
        for _ in range(20):
            assert client.try_send(b"over the noise") == 14
            await server.wait_readable()
            assert server.try_receive_into(memoryview(bytearray(20))) == 14
        nursery.cancel_scope.cancel()
