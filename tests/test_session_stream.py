"""The stream: trio's conformance suite over memory and TLS, resets, cancellation, broken peers."""

from __future__ import annotations

import hashlib
import socket
import tracemalloc
from collections.abc import Awaitable, Callable

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
from trio.testing import check_half_closeable_stream, wait_all_tasks_blocked

from ntcpsock._errors import BadMessage
from ntcpsock._session.frames import (
    LARGEST_PAYLOAD,
    Ack,
    Fin,
    Ping,
    Pong,
    Reset,
    encode_data_header,
    encode_frame,
)
from ntcpsock._session.stream import NTCPStream


async def test_conformance_over_memory() -> None:
    async def maker() -> tuple[NTCPStream, NTCPStream]:
        return memory_streams()

    async def clogged_maker() -> tuple[NTCPStream, NTCPStream]:
        first, second = memory_streams()
        await clog(first)
        await clog(second)
        return first, second

    await check_half_closeable_stream(maker, clogged_maker)


async def test_conformance_over_tls() -> None:
    async def clogged_maker() -> tuple[NTCPStream, NTCPStream]:
        carriers = await tls_carriers()
        for carrier in carriers:  # fixed sizes: the kernel would go on finding room for a while
            carrier.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
            carrier.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        first, second = (make_stream(carrier) for carrier in carriers)
        await clog(first)
        await clog(second)
        return first, second

    await check_half_closeable_stream(tls_streams, clogged_maker)


async def test_half_close_both_ways() -> None:
    first, second = await tls_streams()
    async with first, second:
        await first.send_all(b"question")
        await first.send_eof()
        assert await receive_all(second) == b"question"
        await second.send_all(b"answer")
        await second.send_eof()
        assert await receive_all(first) == b"answer"
        for stream in (first, second):
            assert await stream.receive_some() == b""
            with pytest.raises(trio.ClosedResourceError):
                await stream.send_all(b"x")


async def test_64_mebibytes_arrive_whole_in_bounded_memory() -> None:
    first, second = await tls_streams()
    block = bytes(range(256)) * 4096
    sent, received = hashlib.sha256(), hashlib.sha256()

    async def send() -> None:
        async with first:
            for number in range(64):
                data = number.to_bytes(4, "big") + block[4:]
                sent.update(data)
                await first.send_all(data)

    tracemalloc.start()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        total = 0
        while data := await second.receive_some():
            received.update(data)
            total += len(data)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        await second.aclose()
    assert total == 64 * len(block)
    assert received.digest() == sent.digest()
    assert peak < 8 * len(block)


@pytest.mark.parametrize("step", [1, 7, 4096, 2**30])
async def test_both_directions_at_once_through_a_narrow_pipe(step: int) -> None:
    """Each side sends while it owes ACKs: frames never cut into each other."""
    size = 3000 if step < 100 else 600_000
    first, second = memory_streams(capacity=997, largest_step=step)
    data = {first: bytes(range(251)) * (size // 251), second: bytes(range(250, -1, -1)) * (size // 251)}

    async def send(stream: NTCPStream) -> None:
        await stream.send_all(data[stream])
        await stream.send_eof()

    got: dict[NTCPStream, bytes] = {}

    async def receive(stream: NTCPStream) -> None:
        got[stream] = await receive_all(stream)

    async with trio.open_nursery() as nursery:
        for stream in (first, second):
            nursery.start_soon(send, stream)
            nursery.start_soon(receive, stream)
    assert got == {first: data[second], second: data[first]}
    for stream in (first, second):
        stream.reset()


async def test_receive_into_and_early_bytes() -> None:
    near, far = memory_carriers()
    early = encode_data_header(0, 5) + b"ea"
    stream = make_stream(near, early)
    far.try_send(b"rly" + encode_data_header(5, 3) + b"xyz" + encode_frame(Fin(8)))
    buffer = bytearray(b"........")
    assert await stream.receive_into(memoryview(buffer)[:6]) == 6
    assert buffer == b"earlyx.."
    assert await stream.receive_into(buffer) == 2
    assert buffer == b"yzrlyx.."
    assert await stream.receive_into(buffer) == 0
    with pytest.raises(ValueError, match="room"):
        await stream.receive_into(bytearray())
    stream.reset()


# -- resets ----------------------------------------------------------------------------------------


async def forever(action: Callable[..., Awaitable[object]], *args: object) -> None:
    while True:
        await action(*args)


async def expect_reset(action: Callable[..., Awaitable[object]], *args: object) -> None:
    with pytest.raises(trio.BrokenResourceError) as caught:
        await forever(action, *args)
    assert isinstance(caught.value.__cause__, ConnectionResetError)


@pytest.mark.parametrize("kind", ["memory", "tls"])
async def test_reset_reaches_a_reader_and_a_blocked_writer(kind: str) -> None:
    first, second = memory_streams() if kind == "memory" else await tls_streams()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_reset, second.receive_some)
        nursery.start_soon(expect_reset, second.send_all, bytes(10**6))
        await wait_all_tasks_blocked(0.02)
        first.reset()
        first.reset()
    for action in (second.receive_some, second.wait_send_all_might_not_block, second.send_eof):
        await expect_reset(action)
    with pytest.raises(trio.ClosedResourceError):
        await first.receive_some()
    with pytest.raises(trio.ClosedResourceError):
        await first.send_all(b"x")
    await first.aclose()
    await second.aclose()
    second.reset()


async def test_data_before_a_reset_can_be_read() -> None:
    first, second = await tls_streams()
    await first.send_all(b"last words")
    first.reset()
    assert await second.receive_some() == b"last words"
    await expect_reset(second.receive_some)
    await second.aclose()


async def test_our_own_waiters_see_a_closed_stream() -> None:
    first, second = await tls_streams()

    async def expect_closed(action: Callable[..., Awaitable[object]], *args: object) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await forever(action, *args)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_closed, first.receive_some)
        nursery.start_soon(expect_closed, first.send_all, bytes(10**6))
        await wait_all_tasks_blocked(0.02)
        first.reset()
    await trio.aclose_forcefully(second)


async def test_a_task_that_only_sends_learns_of_a_reset_frame() -> None:
    """Without a word from the carrier: a long sender looks at what comes in now and then."""
    near, far = memory_carriers(capacity=10**9)
    stream = make_stream(near)
    far.try_send(encode_frame(Ack(0)) + encode_frame(Ping(5)) + encode_frame(Reset(1)))
    await expect_reset(stream.send_all, bytes(LARGEST_PAYLOAD))
    await expect_reset(stream.receive_some)
    await stream.aclose()


async def test_after_fin_a_reset_only_ends_sending() -> None:
    near, far = memory_carriers(capacity=10**9)
    stream = make_stream(near)
    far.try_send(encode_data_header(0, 2) + b"ok" + encode_frame(Fin(2)) + encode_frame(Reset(0)))
    assert await receive_all(stream) == b"ok"
    await expect_reset(stream.send_all, bytes(LARGEST_PAYLOAD))
    assert await stream.receive_some() == b""
    await stream.aclose()


# -- peers that break the rules --------------------------------------------------------------------


@pytest.mark.parametrize(
    "wire",
    [
        b"GET / HTTP/1.1\r\n",
        encode_data_header(2, 1) + b"x",
        encode_frame(Fin(3)),
        encode_frame(Ack(1)),
    ],
    ids=["http", "gap", "early end", "ack of nothing"],
)
async def test_a_peer_that_breaks_the_rules(wire: bytes) -> None:
    near, far = memory_carriers()
    stream = make_stream(near)
    far.try_send(encode_data_header(0, 1) + b"x")
    assert await stream.receive_some() == b"x"
    far.try_send(wire)
    with pytest.raises(trio.BrokenResourceError) as caught:
        await stream.receive_some()
    assert isinstance(caught.value.__cause__, ConnectionAbortedError)
    assert isinstance(caught.value.__cause__.__cause__, BadMessage)
    assert bytes(near.outgoing.data) == encode_frame(Reset(0))
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_all(b"x")
    await stream.aclose()


async def test_control_frames_are_answered_by_a_waiting_reader() -> None:
    near, far = memory_carriers(capacity=100)
    stream = make_stream(near)
    # The pipe is full, so the answer has to wait for room, with nobody there but the reader.
    near.outgoing.data += bytes(100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.receive_some)
        await wait_all_tasks_blocked()
        far.try_send(encode_frame(Ping(77)))
        await wait_all_tasks_blocked()
        drained = memoryview(bytearray(100))
        assert far.try_receive_into(drained) == 100
        await wait_all_tasks_blocked()
        assert bytes(near.outgoing.data) == encode_frame(Pong(77))
        far.try_send(encode_data_header(0, 1) + b"x")
    stream.reset()


# -- cancellation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "tls"])
async def test_a_cancelled_send_leaves_a_usable_stream(kind: str) -> None:
    """What follows a half-sent frame is still in step; the cancelled data arrives as a beginning of it."""
    first, second = memory_streams() if kind == "memory" else await tls_streams()
    data = bytes(range(256)) * 65536  # 16 MiB
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.send_all, data)
            await wait_all_tasks_blocked(0.05)
            scope.cancel()
    assert scope.cancelled_caught

    async def go_on() -> None:
        await first.send_all(b"after")
        await first.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(go_on)
        received = await receive_all(second)
    assert received.endswith(b"after")
    assert data.startswith(received[:-5])
    for stream in (first, second):
        await stream.aclose()


async def test_a_cancelled_receive_loses_nothing() -> None:
    first, second = await tls_streams()
    got = b""
    for number in range(50):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def receive() -> None:
                    nonlocal got
                    got += await second.receive_some(3)

                nursery.start_soon(receive)
                if number % 2:
                    await wait_all_tasks_blocked()
                scope.cancel()
        await first.send_all(bytes([number]) * 5)
    await first.send_eof()
    got += await receive_all(second)
    assert got == b"".join(bytes([number]) * 5 for number in range(50))
    for stream in (first, second):
        await stream.aclose()
