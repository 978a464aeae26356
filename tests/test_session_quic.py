"""The QUIC carrier over loopback: pinning, the session over it, ends and resets."""

from __future__ import annotations

import errno

import pytest
import trio
import trio.testing
from quic_support import handshake, handshake_in, quic_carriers, socket_paths
from quic_wire import Weather, wire_paths
from session_support import certificate, clog, make_stream

from ntcpsock._errors import IdentityMismatch
from ntcpsock._session.binding import receive_bind, send_bind
from ntcpsock._session.quic import configuration, datagram_queues, machine
from ntcpsock._session.quic.carrier import quic_client_handshake, quic_server_handshake
from ntcpsock._session.socket_path import SocketPath
from ntcpsock._session.stream import NTCPStream


async def test_an_echo_comes_back_over_a_session() -> None:
    async with quic_carriers() as (client, server):
        assert (client.local, client.remote) == (server.remote, server.local)
        near, far = make_stream(client), make_stream(server)
        data = bytes(range(256)) * 20_000

        async def echo() -> None:
            while part := await far.receive_some():
                await far.send_all(part)
            await far.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo)
            nursery.start_soon(near.send_all, data)
            back = bytearray()
            while len(back) < len(data):
                back += await near.receive_some()
            assert back == data
            await near.send_eof()
            assert await near.receive_some() == b""
        await near.aclose()


async def test_another_certificate_is_refused_and_both_ends_say_so() -> None:
    client_path, server_path = socket_paths()
    async with trio.open_nursery() as nursery:

        async def accept() -> None:
            carrier = await quic_server_handshake(server_path, certificate(), nursery=nursery)
            await carrier.wait_readable()
            with pytest.raises(ConnectionResetError):
                carrier.try_receive_into(memoryview(bytearray(1)))

        nursery.start_soon(accept)
        with pytest.raises(IdentityMismatch):
            await quic_client_handshake(client_path, b"x" * 32, nursery=nursery)


async def test_conformance(monkeypatch: pytest.MonkeyPatch) -> None:
    """trio's own suite. The clogged pair is one whose window is full."""
    monkeypatch.setattr(machine, "WINDOW", 100_000)
    monkeypatch.setattr(machine, "SEND_ROOM", 65536)
    async with trio.open_nursery() as nursery:

        async def make() -> tuple[NTCPStream, NTCPStream]:
            first, second = await handshake(nursery, *socket_paths())
            return make_stream(first), make_stream(second)

        async def make_clogged() -> tuple[NTCPStream, NTCPStream]:
            first, second = await make()
            for stream in (first, second):
                await clog(stream)
            return first, second

        await trio.testing.check_half_closeable_stream(make, make_clogged)
        nursery.cancel_scope.cancel()


async def test_a_reset_reaches_the_peer_behind_what_was_sent() -> None:
    async with quic_carriers() as (client, server):
        near, far = make_stream(client), make_stream(server)
        await near.send_all(b"before")
        assert await far.receive_some(6) == b"before"
        near.reset()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await far.receive_some()
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        with pytest.raises(trio.BrokenResourceError):
            await far.send_all(b"x")


async def test_what_was_sent_before_close_arrives_although_nobody_waits() -> None:
    async with quic_carriers() as (client, server):
        sent = 0
        while count := client.try_send(bytes(100_000)):
            sent += count
        client.close()
        got, buffer = 0, memoryview(bytearray(65536))
        while got < sent:
            count_or_none = server.try_receive_into(buffer)
            if count_or_none is None:
                await server.wait_readable()
            else:
                assert count_or_none, "the end came before the data"
                got += count_or_none
        await server.wait_readable()
        assert server.try_receive_into(buffer) == 0
        with pytest.raises(BrokenPipeError):
            server.try_send(b"x")


async def test_who_does_not_read_stops_the_sender_and_holds_a_window() -> None:
    async with quic_carriers(1400) as (client, server):
        sent = 0
        with trio.move_on_after(10) as scope:
            while True:
                sent += client.try_send(bytes(65536))
                if sent >= configuration.WINDOW and not client._machine.has_room:
                    await trio.testing.wait_all_tasks_blocked(0.3)
                    if not client._machine.has_room:
                        break
                else:
                    await client.wait_writable()
        assert not scope.cancelled_caught
        assert configuration.WINDOW <= sent <= configuration.WINDOW + machine.SEND_ROOM
        assert server.pending() <= machine.RECEIVE_ROOM + 65536
        got, buffer = 0, memoryview(bytearray(65536))
        while got < sent:
            await server.wait_readable()
            got += server.try_receive_into(buffer) or 0


async def test_waiters_are_woken_by_interrupt_close_and_the_nursery() -> None:
    async with quic_carriers() as (client, server):
        for end in (client.interrupt, client.close):
            async with trio.open_nursery() as nursery:

                async def wait() -> None:
                    with pytest.raises(trio.ClosedResourceError):
                        await client.wait_readable()

                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                end()
        for use in (client.wait_readable, client.wait_writable, client.wait_datagram):
            with pytest.raises(trio.ClosedResourceError):
                await use()
        with pytest.raises(trio.ClosedResourceError):
            client.try_send(b"x")
        await server.wait_readable()
        assert server.try_receive_into(memoryview(bytearray(1))) == 0


async def test_the_end_of_the_nursery_resets_the_connection_and_closes_the_path() -> None:
    async with trio.open_nursery() as theirs:
        client_path, server_path = socket_paths()
        async with trio.open_nursery() as ours:
            client, server = await handshake_in(ours, theirs, client_path, server_path)
            ours.cancel_scope.cancel()
        assert client_path.socket.fileno() == -1
        await server.wait_readable()
        with pytest.raises(ConnectionResetError):
            server.try_receive_into(memoryview(bytearray(1)))
        with pytest.raises(ConnectionAbortedError):
            client.try_send(b"x")
        theirs.cancel_scope.cancel()
    assert server_path.socket.fileno() == -1


async def test_a_cancelled_handshake_closes_its_path() -> None:
    client_path, server_path = socket_paths()
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(0.05):
            await quic_client_handshake(client_path, b"x" * 32, nursery=nursery)
        with trio.move_on_after(0.05):
            await quic_server_handshake(server_path, certificate(), nursery=nursery)
        nursery.cancel_scope.cancel()
    assert client_path.socket.fileno() == server_path.socket.fileno() == -1


async def test_datagrams_their_sizes_and_the_bounded_queue() -> None:
    async with quic_carriers() as (client, server):
        largest = client.max_datagram_payload
        assert 1100 < largest < 1200
        assert client.try_send_datagram(b"")
        assert client.try_send_datagram(b"l" * largest)
        with pytest.raises(OSError, match="carries") as caught:
            client.try_send_datagram(b"x" * (largest + 1))
        assert caught.value.errno == errno.EMSGSIZE
        got: list[bytes] = []
        while len(got) < 2:
            await server.wait_datagram()
            got += server.try_receive_datagrams()
        assert got == [b"", b"l" * largest]
        assert server.try_receive_datagrams() == []
        count = 0
        with trio.fail_after(10):
            while not server.dropped_datagrams:
                if client.try_send_datagram(b"%d" % count):
                    count += 1
                await trio.lowlevel.checkpoint()
        newest = server.try_receive_datagrams()
        assert len(newest) == datagram_queues.MOST_DATAGRAMS
        assert int(newest[-1]) - int(newest[0]) == datagram_queues.MOST_DATAGRAMS - 1
        client.close(abort=True)
        with trio.fail_after(10):
            await server.wait_datagram()
        with pytest.raises(ConnectionResetError):
            server.try_receive_datagrams()


async def test_closing_over_unread_data_resets() -> None:
    async with quic_carriers() as (client, server):
        server.try_send(b"unread")
        await client.wait_readable()
        client.close()
        await server.wait_readable()
        with pytest.raises(ConnectionResetError):
            server.try_receive_into(memoryview(bytearray(1)))


async def test_datagrams_obey_congestion_control_and_wait_within_bounds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    weather = Weather(delay=0.05, rate=1e6, queue=30_000)
    near, far = wire_paths(weather)
    async with trio.open_nursery() as nursery:
        client, server = await handshake(nursery, near, far)
        before = near.sent
        taken = 0
        while client.try_send_datagram(b"%5d" % taken + bytes(995)):
            taken += 1
        assert datagram_queues.DATAGRAM_ROOM / 1045 <= taken < datagram_queues.DATAGRAM_ROOM / 1000 + 20
        assert 8 <= near.sent - before <= 20, "a window's worth, and no more"
        await client.wait_datagram_room()
        assert client.try_send_datagram(b"one more")
        got: list[bytes] = []
        with trio.move_on_after(20):
            while True:
                await server.wait_datagram()
                got += server.try_receive_datagrams()
        assert got[-1] == b"one more"
        assert len(got) > 0.8 * taken
        assert got[:-1] == sorted(got[:-1])
        nursery.cancel_scope.cancel()


async def test_over_ipv6() -> None:
    async with trio.open_nursery() as nursery:
        client, server = await handshake(nursery, *socket_paths(host="::1"))
        assert client.remote == server.local
        client.try_send(b"six")
        await server.wait_readable()
        buffer = memoryview(bytearray(10))
        assert server.try_receive_into(buffer) == 3
        nursery.cancel_scope.cancel()


async def test_a_peer_that_is_gone_is_refused_by_its_kernel_and_believed_after_a_while() -> None:
    client_path, server_path = socket_paths()
    client_path.socket.connect(server_path.local)
    client_path = SocketPath(client_path.socket, server_path.local)
    async with trio.open_nursery() as nursery:
        client, _ = await handshake(nursery, client_path, server_path)
        server_path.socket.close()  # as a killed process does it: without a word
        server_path._closed = True
        with trio.fail_after(20):
            while True:
                try:
                    client.try_send(b"x")
                except OSError as error:
                    refused = error
                    break
                with trio.move_on_after(0.05):
                    await client.wait_readable()
        assert isinstance(refused, ConnectionRefusedError)
        nursery.cancel_scope.cancel()


async def test_two_round_trips_from_the_first_packet_to_the_first_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """One for the handshake, one for token and answer; the client may send after the first."""
    near, far = wire_paths(Weather(delay=0.1, rate=1e9))
    async with trio.open_nursery() as nursery:

        async def answer() -> None:
            carrier = await quic_server_handshake(far, certificate(), nursery=nursery)
            await receive_bind(carrier)
            carrier.try_send(b"welcome")

        nursery.start_soon(answer)
        started = trio.current_time()
        client = await quic_client_handshake(near, certificate().fingerprint, nursery=nursery)
        assert trio.current_time() - started == pytest.approx(0.2, abs=0.01)
        await send_bind(client, b"d" * 16, b"t" * 32)
        await client.wait_readable()
        assert trio.current_time() - started == pytest.approx(0.4, abs=0.02)
        nursery.cancel_scope.cancel()
