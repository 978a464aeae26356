"""Closing: what was sent reaches the peer whatever it does, and nobody waits without need."""

from __future__ import annotations

import pytest
import trio
from session_support import (
    clog,
    make_stream,
    memory_carriers,
    memory_streams,
    receive_all,
    tls_carriers,
    tls_streams,
)
from trio.testing import wait_all_tasks_blocked

from ntcpsock._session.frames import Ack, Fin, encode_data_header, encode_frame
from ntcpsock._session.stream import CLOSE_TIMEOUT, NTCPStream

# "At once" for these tests: well below the time-out, far above what a busy machine needs.
SOON = CLOSE_TIMEOUT / 2
DATA = bytes(range(256)) * 4096


async def sending_until_broken(stream: NTCPStream) -> None:
    async def send() -> None:
        while True:
            await stream.send_all(bytes(65536))

    with pytest.raises(trio.BrokenResourceError):
        await send()


async def test_both_close_at_once() -> None:
    first, second = await tls_streams()
    await first.send_all(b"never read")
    await second.send_all(b"nor this")
    with trio.fail_after(SOON):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.aclose)
            nursery.start_soon(second.aclose)


async def test_the_peer_is_reading() -> None:
    first, second = await tls_streams()
    async with trio.open_nursery() as nursery:

        async def send_and_close() -> None:
            await first.send_all(DATA * 8)
            await first.aclose()

        nursery.start_soon(send_and_close)
        with trio.fail_after(4 * CLOSE_TIMEOUT):
            assert await receive_all(second) == DATA * 8
    with trio.fail_after(SOON):
        await second.aclose()


async def test_the_peer_is_not_reading() -> None:
    """Its kernel has everything: we may go, and it reads later."""
    first, second = await tls_streams()
    await first.send_all(b"for later")
    with trio.fail_after(SOON):
        await first.aclose()
    assert await receive_all(second) == b"for later"
    await second.aclose()


async def test_the_peer_only_sends() -> None:
    """A reader that has enough: what it sent survives that its socket answers RST from then on."""
    first, second = await tls_streams()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sending_until_broken, second)
        await wait_all_tasks_blocked(0.02)
        await first.send_all(b"stop, please")
        with trio.fail_after(SOON):
            await first.aclose()
    assert await receive_all(second) == b"stop, please"
    with pytest.raises(trio.BrokenResourceError):
        await second.send_all(b"x")
    await second.aclose()


async def test_data_under_way_both_ways() -> None:
    """The closing side's megabytes arrive although the other side goes on sending for a while."""
    first, second = await tls_streams()
    received = b""
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            nonlocal received
            received = await receive_all(second)

        nursery.start_soon(sending_until_broken, second)
        nursery.start_soon(read)
        await first.send_all(DATA)
        await first.aclose()
    assert received == DATA
    await second.aclose()


async def test_a_blocked_sender_is_woken_and_its_frame_completed() -> None:
    first, second = memory_streams(capacity=1000)
    async with trio.open_nursery() as nursery:

        async def expect_closed() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await first.send_all(DATA)

        nursery.start_soon(expect_closed)
        await wait_all_tasks_blocked()
        nursery.start_soon(first.aclose)
        await wait_all_tasks_blocked()
        received = await receive_all(second)
    assert received
    assert DATA.startswith(received)
    await second.aclose()


async def test_a_peer_that_takes_nothing_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    first, second = memory_streams(capacity=1000)
    await clog(first)
    started = trio.current_time()
    await first.aclose()
    assert CLOSE_TIMEOUT <= trio.current_time() - started < 1.2 * CLOSE_TIMEOUT
    with pytest.raises(trio.BrokenResourceError):
        await receive_all(second)
    await second.aclose()


async def test_a_peer_that_is_slow_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    near, far = memory_carriers(capacity=1000)
    near.unacknowledged = lambda: len(near.outgoing.data)  # type: ignore[method-assign]
    first, second = make_stream(near), make_stream(far)
    taken = bytearray()

    async def sip() -> None:
        while data := await second.receive_some(1000):
            taken.extend(data)
            await trio.sleep(CLOSE_TIMEOUT / 2)
        await second.aclose()

    async with trio.open_nursery() as nursery:
        with trio.move_on_after(1):
            await first.send_all(bytes(20_000))
        nursery.start_soon(sip)
        await first.aclose()
        assert trio.current_time() > 6 * CLOSE_TIMEOUT
    assert bytes(taken) == bytes(20_000)


async def test_a_carrier_without_a_kernel_waits_for_the_ack(autojump_clock: trio.testing.MockClock) -> None:
    for answer, seconds in ((encode_frame(Ack(6)), 1.0), (b"", CLOSE_TIMEOUT)):
        near, far = memory_carriers()
        near.unacknowledged = lambda: None  # type: ignore[method-assign]
        stream = make_stream(near)
        await stream.send_all(b"hello")
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.aclose)
            await trio.sleep(1)
            far.try_send(answer)
        assert seconds <= trio.current_time() - started < 1.2 * seconds
        assert near.closed


async def test_fin_of_the_peer_is_acknowledged_while_closing() -> None:
    near, far = memory_carriers()
    stream = make_stream(near)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.aclose)
        await wait_all_tasks_blocked()
        far.try_send(encode_data_header(0, 4) + b"data" + encode_frame(Fin(4)) + encode_frame(Ack(1)))
    assert bytes(far.incoming.data) == encode_frame(Fin(0)) + encode_frame(Ack(5))


async def test_a_cancelled_close_is_no_clean_end() -> None:
    first, second = await tls_streams()
    await first.send_all(b"whole")
    with trio.CancelScope() as scope:
        scope.cancel()
        await first.aclose()
    assert await second.receive_some() == b"whole"
    with pytest.raises(trio.BrokenResourceError):
        await second.receive_some()
    await second.aclose()


async def test_closed_after_the_peer_went_away() -> None:
    for graceful in (True, False):
        first_carrier, second_carrier = await tls_carriers()
        second = make_stream(second_carrier)
        if graceful:
            first = make_stream(first_carrier)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(first.aclose)
                assert await receive_all(second) == b""
        else:
            first_carrier.close(abort=True)
        with trio.fail_after(SOON):
            await second.aclose()
        await second.aclose()


async def test_reset_ends_a_close_that_waits(autojump_clock: trio.testing.MockClock) -> None:
    first, second = memory_streams(capacity=1000)
    await clog(first)
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first.aclose)
        await trio.sleep(1)
        first.reset()
    assert trio.current_time() - started == pytest.approx(1)
    with pytest.raises(trio.BrokenResourceError):
        await receive_all(second)
    await second.aclose()
