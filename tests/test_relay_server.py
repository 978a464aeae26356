"""The relay on loopback: what it joins, what it keeps exact, and what it refuses."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct

import pytest
import trio
import trio.testing
from relay_support import RunningRelay, running_relay, say, tickets

from ntcpsock._servers.relay import RelayLimits
from ntcpsock._servers.web import WebLimits
from ntcpsock._traversal.relay.message import TICKET_HEADER, UPGRADE, to_header


def request(ticket: bytes, *, upgrade: str = UPGRADE, rest: bytes = b"") -> bytes:
    lines = (
        "GET /relay HTTP/1.1",
        "Host: relay",
        "Connection: Upgrade",
        f"Upgrade: {upgrade}",
        f"{TICKET_HEADER}: {to_header(ticket).decode()}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + rest


async def read_all(stream: trio.SocketStream) -> bytes:
    return b"".join([bytes(data) async for data in stream])


@pytest.mark.parametrize("use_splice", [True, False])
async def test_bytes_and_ends_pass_both_ways(use_splice: bool) -> None:
    data = random.Random(7).randbytes(5_000_000)
    async with running_relay(use_splice=use_splice) as relay:
        one, two = await relay.pair()
        received: dict[str, bytes] = {}

        async def exchange(name: str, stream: trio.SocketStream) -> None:
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    await stream.send_all(data)
                    await stream.send_eof()

                nursery.start_soon(send)
                received[name] = await read_all(stream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(exchange, "one", one)
            nursery.start_soon(exchange, "two", two)
        assert received == {"one": data, "two": data}
        await one.aclose()
        await two.aclose()
        await relay.settle()
        assert (relay.desk.counters.joined, relay.desk.counters.resets) == (1, 0)
        assert relay.desk.counters.bytes == 2 * len(data)


async def test_an_end_leaves_the_other_direction_open() -> None:
    async with running_relay() as relay:
        one, two = await relay.pair()
        await one.send_all(b"question")
        await one.send_eof()
        assert await read_all(two) == b"question"
        await trio.testing.wait_all_tasks_blocked(0.05)
        await two.send_all(b"answer")
        await two.send_eof()
        assert await read_all(one) == b"answer"


@pytest.mark.parametrize("end", [0, 1])
async def test_a_reset_arrives_as_a_reset(end: int) -> None:
    async with running_relay() as relay:
        streams = await relay.pair()
        await streams[end].send_all(b"x")
        assert await streams[1 - end].receive_some(1) == b"x"
        streams[end].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await streams[end].aclose()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await streams[1 - end].receive_some(1)
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        await relay.settle()
        assert relay.desk.counters.resets == 1


@pytest.mark.parametrize("use_splice", [True, False])
async def test_who_does_not_read_stops_who_sends(use_splice: bool) -> None:
    async with running_relay(use_splice=use_splice) as relay:
        one, two = await relay.pair()
        sent = 0
        block = bytes(1 << 20)
        with trio.move_on_after(60) as waiting:
            while True:
                with trio.move_on_after(1.0) as stuck:
                    await one.send_all(block)
                if stuck.cancelled_caught:
                    break
                sent += len(block)
        assert not waiting.cancelled_caught
        # Kernel buffers of four sockets and a pipe; not whatever the sender has.
        assert sent < 64 << 20
        moved = relay.desk.counters.bytes
        assert len(await two.receive_some(1000)) == 1000
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert relay.desk.counters.bytes - moved < 16 << 20
        assert relay.desk.counters.open == 2


async def test_the_first_waits_and_its_first_words_are_kept() -> None:
    async with running_relay() as relay:
        dialer, listener = tickets()
        first = trio.SocketStream(await relay.seat(dialer))
        await first.send_all(b"hello from before")
        await trio.testing.wait_all_tasks_blocked(0.05)
        second = trio.SocketStream(await relay.seat(listener))
        assert await second.receive_some(100) == b"hello from before"


async def test_who_waits_in_vain_is_sent_away() -> None:
    async with running_relay(RelayLimits(pairing_deadline=0.2)) as relay:
        stream = trio.SocketStream(await relay.seat(tickets()[0]))
        assert await stream.receive_some(1) == b""
        await relay.settle()
        assert relay.desk.counters.unmatched == 1
        with pytest.raises(OSError, match="409"):
            await relay.seat(tickets()[0])


async def test_who_comes_after_the_other_has_left_need_not_wait() -> None:
    async with running_relay() as relay:
        dialer, listener = tickets()
        (await relay.seat(dialer)).close()
        await relay.settle()
        assert "410" in await refused(relay, listener)


async def refused(relay: RunningRelay, ticket: bytes) -> str:
    with pytest.raises(ConnectionRefusedError) as caught:
        await relay.seat(ticket)
    assert caught.value.errno == errno.ECONNREFUSED
    return str(caught.value)


async def test_only_a_fresh_ticket_of_ours_opens_and_only_once() -> None:
    async with running_relay() as relay:
        dialer, _ = tickets()
        assert "403" in await refused(relay, os.urandom(len(dialer)))
        assert "403" in await refused(relay, dialer[:-1] + bytes((dialer[-1] ^ 1,)))
        assert "403" in await refused(relay, tickets(age=1000)[0])
        held = await relay.seat(dialer)
        assert "409" in await refused(relay, dialer)
        held.close()
        await relay.settle()
        assert "409" in await refused(relay, dialer)
        assert relay.desk.counters.refused == {
            "ticket of another issuer": 2,
            "ticket is too old": 1,
            "ticket was used": 2,
        }


async def test_what_is_no_request_for_a_seat_is_refused_in_words() -> None:
    async with running_relay() as relay:
        dialer, listener = tickets()
        assert (await say(relay.address, request(dialer, upgrade="websocket"))).startswith(b"HTTP/1.1 426 ")
        assert (await say(relay.address, b"GET /relay HTTP/1.1\r\nHost: x\r\n\r\n")).startswith(
            b"HTTP/1.1 403 "
        )
        # Bytes behind the request, which a node does not send before the answer.
        assert (await say(relay.address, request(listener, rest=b"early"))).startswith(b"HTTP/1.1 400 ")
        await relay.settle()


async def test_a_node_has_so_many_connections_and_others_still_get_in() -> None:
    async with running_relay(RelayLimits(sessions_of_a_node=2)) as relay:
        held = [await relay.seat(tickets(number)[0]) for number in range(2)]
        assert "429" in await refused(relay, tickets(2)[0])
        held.append(await relay.seat(tickets(3, dialer=b"e" * 32)[0]))
        held.pop(0).close()
        # Its place is free again once the relay has noticed: at the latest when nobody joined it.
        with trio.fail_after(60):
            while relay.desk.counters.open > 2:
                await trio.sleep(0.01)
        held.append(await relay.seat(tickets(4)[0]))
        for sock in held:
            sock.close()


async def test_a_full_relay_refuses() -> None:
    async with running_relay(RelayLimits(sessions=1)) as relay:
        held = [await relay.seat(ticket) for ticket in tickets(0)]
        assert "429" in await refused(relay, tickets(1)[0])
        for sock in held:
            sock.close()


async def test_used_tickets_are_bounded() -> None:
    async with running_relay(RelayLimits(used_tickets=2)) as relay:
        held = [await relay.seat(tickets(number)[0]) for number in range(2)]
        assert "429" in await refused(relay, tickets(2)[0])
        for sock in held:
            sock.close()


async def test_one_address_cannot_use_tickets_up_for_all() -> None:
    async with running_relay(RelayLimits(entry_rate=0.001, entry_burst=2)) as relay:
        held = [await relay.seat(tickets(number)[0]) for number in range(2)]
        assert "429" in await refused(relay, tickets(2)[0])
        for sock in held:
            sock.close()


async def test_a_rate_is_kept() -> None:
    async with running_relay(RelayLimits(bytes_per_second=1_000_000)) as relay:
        one, two = await relay.pair()
        begin = trio.current_time()

        async def send() -> None:
            await one.send_all(bytes(3_000_000))
            await one.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert len(await read_all(two)) == 3_000_000
        # A second's worth at once, the rest at the rate.
        assert trio.current_time() - begin > 1.5


async def test_a_silent_connection_ends() -> None:
    async with running_relay(RelayLimits(idle_timeout=0.4)) as relay:
        one, two = await relay.pair()
        for stream in (one, two):
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some(1)
        await relay.settle()
        assert relay.desk.counters.idle == 1


async def test_an_idle_connection_holds_two_descriptors() -> None:
    async with running_relay() as relay:
        one, two = await relay.pair(0)
        await one.send_all(b"x")
        await two.receive_some(1)
        before = len(os.listdir("/proc/self/fd"))
        streams = [stream for number in range(1, 51) for stream in await relay.pair(number)]
        for stream in streams[::2]:
            await stream.send_all(b"x")
        for stream in streams[1::2]:
            assert await stream.receive_some(1) == b"x"
        await trio.testing.wait_all_tasks_blocked(0.05)
        # Two ends here, two at the relay; pipes only for what was under way at the same time.
        assert len(os.listdir("/proc/self/fd")) - before <= 4 * 50 + 2 * 50
        for stream in (one, two, *streams):
            await stream.aclose()
        await relay.settle()


async def test_strangers_are_few_and_short_of_time() -> None:
    limits = WebLimits(unproven=8, unproven_of_a_host=4, header_deadline=0.5)
    async with running_relay(web_limits=limits) as relay:
        strangers = [await relay.connect() for _ in range(4)]
        for stranger in strangers:
            await stranger.send_all(b"GET /re")
        await trio.testing.wait_all_tasks_blocked(0.05)
        fifth = await relay.connect()
        assert await fifth.receive_some(1) == b""
        # One byte now and then does not help them.
        assert [await stranger.receive_some(1) for stranger in strangers] == [b""] * 4
        await relay.settle()
        assert (relay.web.counters.refused, relay.web.counters.late) == (1, 4)
        one, two = await relay.pair()
        await one.send_all(b"still serving")
        assert await two.receive_some(100) == b"still serving"
