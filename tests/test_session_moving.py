"""Streams that change their carrier, over pipes without a network: what one has lost comes by the next one."""

from __future__ import annotations

import errno
import random
from functools import partial

import pytest
import trio
from session_support import make_stream, memory_carriers
from trio.testing import wait_all_tasks_blocked

from ntcpsock._errors import BadMessage
from ntcpsock._report import PathInfo
from ntcpsock._session.frames import HEADER_LENGTH, Ack, Data, Decoder, Payload, encode_frame
from ntcpsock._session.liveness import PATIENCE, QUIET
from ntcpsock._session.machine import WINDOW
from ntcpsock._session.stream import NTCPStream


class Pair:
    """Two streams, and the carriers that they have now. lost: how often each one's was."""

    def __init__(self, capacity: int = 65536) -> None:
        self._capacity = capacity
        self.carriers = memory_carriers(capacity)
        self.left, self.right = (make_stream(carrier, window=WINDOW) for carrier in self.carriers)
        self.lost: list[OSError] = []
        for stream in self.streams:
            stream.driver.on_lost = self._on_lost

    @property
    def streams(self) -> tuple[NTCPStream, NTCPStream]:
        return self.left, self.right

    def _on_lost(self, error: OSError) -> bool:
        self.lost.append(error)
        return True

    def cut(self) -> None:
        """What is under way is gone, and both ends are told."""
        for carrier in self.carriers:
            carrier.incoming.data.clear()
        for carrier in self.carriers:
            carrier.close(abort=True)
        for stream in self.streams:
            stream.driver.fail(ConnectionResetError(errno.ECONNRESET, "cut"))

    async def bring(self, capacity: int | None = None) -> None:
        """Another pair of carriers, as a dialer and a listener would."""
        for stream in self.streams:
            await stream.suspend()
        self.carriers = memory_carriers(capacity or self._capacity)
        positions = [stream.driver.machine.position for stream in self.streams]
        for stream, carrier, position in zip(self.streams, self.carriers, reversed(positions), strict=True):
            stream.attach(carrier, position, PathInfo("tcp", "public", carrier.local, carrier.remote))


async def receive_all(stream: NTCPStream, into: bytearray) -> None:
    async for data in stream:
        into += data


async def send_and_end(stream: NTCPStream, data: bytes) -> None:
    await stream.send_all(data)
    await stream.send_eof()


@pytest.mark.parametrize("seed", range(6))
async def test_nothing_is_lost_or_doubled_wherever_it_is_cut(seed: int) -> None:
    chance = random.Random(seed)
    pair = Pair(capacity=chance.choice([100, 5000, 65536]))
    outgoing, incoming = chance.randbytes(600_000), chance.randbytes(400_000)
    there, back = bytearray(), bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_and_end, pair.left, outgoing)
        nursery.start_soon(send_and_end, pair.right, incoming)
        nursery.start_soon(receive_all, pair.left, back)
        nursery.start_soon(receive_all, pair.right, there)
        for _ in range(12):
            for _ in range(chance.randrange(40)):
                await trio.lowlevel.checkpoint()
            if chance.random() < 0.7:
                pair.cut()
            await pair.bring()
    assert there == outgoing
    assert back == incoming
    assert pair.left.report is not pair.right.report


async def test_a_writer_waits_when_the_window_is_full_and_goes_on() -> None:
    pair = Pair()
    pair.cut()
    with trio.move_on_after(0.05) as scope:
        await pair.left.send_all(b"x")
    assert scope.cancelled_caught
    await pair.bring(capacity=2**30)
    sent = trio.Event()

    async def send() -> None:
        await pair.left.send_all(bytes(2 * WINDOW))
        sent.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        machine = pair.left.driver.machine
        assert not sent.is_set()
        assert WINDOW - 2**18 <= machine.sent - machine.acknowledged <= WINDOW
        there = bytearray()
        nursery.start_soon(receive_all, pair.right, there)
        await sent.wait()
        await pair.left.send_eof()
    assert there == bytes(2 * WINDOW)


async def test_two_that_send_before_they_read_are_no_deadlock() -> None:
    """What the peer has taken is said behind its own data, which nobody reads: it is read ahead."""
    pair = Pair()
    data = bytes(range(256)) * 8192
    async with trio.open_nursery() as nursery:
        there = bytearray()
        nursery.start_soon(receive_all, pair.right, there)
        nursery.start_soon(pair.right.send_all, data)
        await pair.left.send_all(data * 6)
        await pair.left.send_eof()
        back = bytearray()
        while len(back) < len(data):
            back += await pair.left.receive_some()
    assert there == data * 6
    assert back == data


async def test_the_end_survives() -> None:
    pair = Pair()
    await pair.left.send_all(b"last words")
    await pair.left.send_eof()
    pair.cut()
    await pair.bring()
    there = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.left.aclose)  # which brings out what waits
        await receive_all(pair.right, there)
    assert there == b"last words"


async def test_a_reset_without_a_path_ends_this_end_at_once() -> None:
    pair = Pair()
    pair.cut()
    pair.left.reset()
    assert pair.left.driver.machine.is_reset
    assert pair.left.driver.on_lost is None


async def test_readers_and_writers_hear_that_no_other_path_came() -> None:
    pair = Pair()
    outcomes: list[object] = []

    async def receive() -> None:
        with pytest.raises(trio.BrokenResourceError) as caught:
            await pair.left.receive_some()
        outcomes.append(type(caught.value.__cause__))

    async def send() -> None:
        with pytest.raises(trio.BrokenResourceError) as caught:
            await pair.left.send_all(bytes(2 * WINDOW))
        outcomes.append(type(caught.value.__cause__))

    async def wait_moved() -> None:
        with pytest.raises(trio.BrokenResourceError):
            await pair.left.wait_moved()

    async with trio.open_nursery() as nursery:
        for task in (receive, send, wait_moved):
            nursery.start_soon(task)
        await wait_all_tasks_blocked()
        pair.cut()
        await wait_all_tasks_blocked()
        assert not outcomes
        pair.left.give_up(TimeoutError(errno.ETIMEDOUT, "nobody"))
    assert outcomes == [TimeoutError, TimeoutError]


async def test_a_move_is_told() -> None:
    pair = Pair()
    paths: list[PathInfo] = []

    async def wait() -> None:
        paths.append(await pair.left.wait_moved())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        await pair.bring()
    assert paths == [pair.left.path]


async def test_closing_while_there_is_no_path_brings_the_last_bytes_by_the_next_one() -> None:
    pair = Pair()
    await pair.left.send_all(b"last words")
    pair.cut()
    there = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.left.aclose)
        nursery.start_soon(receive_all, pair.right, there)
        await wait_all_tasks_blocked()
        await pair.bring()
    assert there == b"last words"


def lend(stream: NTCPStream, payload: bytes, back: list[bytearray]) -> bytearray:
    """Send a frame out of a buffer that is lent."""
    buffer = bytearray(HEADER_LENGTH) + payload
    stream.driver.send_nowait(memoryview(buffer), back.append)
    return buffer


async def test_a_lent_buffer_is_sent_again_and_comes_back() -> None:
    pair, back = Pair(capacity=2**20), list[bytearray]()
    payload = random.Random(1).randbytes(200_000)
    buffer = lend(pair.left, payload, back)
    pair.cut()
    await pair.bring()
    await pair.left.driver.catch_up()
    assert back == []
    there = b""
    while len(there) < len(payload):
        there += await pair.right.receive_some()
    assert there == payload
    pair.right.driver.machine.acknowledge()
    pair.right.driver.flush_nowait()
    pair.left.driver.absorb()
    assert [each is buffer for each in back] == [True]


async def test_a_buffer_out_of_which_is_still_sent_does_not_come_back() -> None:
    """A peer that confirms what it has not got would be sent what others write there."""
    ours, theirs = memory_carriers(capacity=1000)
    stream, back = make_stream(ours, window=WINDOW), list[bytearray]()
    frame = lend(stream, bytes(5000), back)
    theirs.try_send(encode_frame(Ack(5000)))
    stream.driver.absorb()
    assert stream.driver.machine.acknowledged == 5000
    assert back == []
    view, there = memoryview(bytearray(1000)), b""
    while len(there) < len(frame):
        there += view[: theirs.try_receive_into(view)]
        stream.driver.finish_nowait()
    assert there == frame
    frame.clear()  # which no part of it prevents: nothing points there any more
    lend(stream, b"x", back)
    theirs.try_receive_into(view)
    theirs.try_send(encode_frame(Ack(5001)))
    stream.driver.absorb()
    assert [len(each) for each in back] == [HEADER_LENGTH + 1]


async def test_a_lie_about_what_has_arrived_ends_the_stream() -> None:
    pair = Pair()
    await pair.left.send_all(b"x")
    await pair.left.suspend()
    carrier = memory_carriers()[0]
    with pytest.raises(BadMessage, match="claims to have 7 bytes"):
        pair.left.attach(carrier, 7, pair.left.path)


async def test_a_silent_path_is_noticed_in_time(autojump_clock: trio.testing.MockClock) -> None:
    """By a stream at work, and by its reader only: the peer is asked once, and is gone if it says nothing."""
    pair = Pair()
    await pair.left.send_all(b"x")
    assert await pair.right.receive_some() == b"x"
    began = trio.current_time()
    while not pair.lost:
        pair.left.driver.look(trio.current_time())
        await trio.sleep(0.25)
    assert pair.lost[0].errno == errno.ETIMEDOUT
    assert QUIET + PATIENCE <= trio.current_time() - began <= 3.5


async def test_an_idle_stream_says_nothing(autojump_clock: trio.testing.MockClock) -> None:
    pair = Pair()
    await pair.left.send_all(b"x")
    assert await pair.right.receive_some() == b"x"
    async with trio.open_nursery() as nursery:
        for stream in pair.streams:
            nursery.start_soon(partial(stream.receive_some, 1))
        for _ in range(40):
            await trio.sleep(0.25)
            for stream in pair.streams:
                stream.driver.look(trio.current_time())
        said = [stream.driver.taken for stream in pair.streams]
        for _ in range(400):
            await trio.sleep(0.25)
            for stream in pair.streams:
                assert stream.driver.look(trio.current_time()) == "idle"
        assert said == [stream.driver.taken for stream in pair.streams]
        nursery.cancel_scope.cancel()
    assert not pair.lost


async def test_a_writer_that_waits_for_room_sends_again_what_was_lost() -> None:
    """The peer cannot confirm what it has never got."""
    pair = Pair()
    data = bytes(2 * WINDOW)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_and_end, pair.left, data)
        nursery.start_soon(
            partial(receive_all, pair.left, bytearray())
        )  # so that the writer leaves reading to others
        pair.carriers[1].incoming.capacity = 2**30
        await wait_all_tasks_blocked()
        assert pair.left.driver.machine.room < 2**18
        pair.cut()
        await pair.bring()
        there = bytearray()
        await receive_all(pair.right, there)
        await pair.right.send_eof()
    assert there == data


async def test_acknowledgements_do_not_wait_for_what_is_sent_again() -> None:
    """That may be much for a slow way, and the other end's window is full without them."""
    pair = Pair(capacity=2_000_000)
    await pair.left.send_all(bytes(1_000_000))
    pair.cut()
    await pair.bring(capacity=1000)
    decoder, kinds = Decoder(), list[type]()
    view = memoryview(bytearray(1000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.left.driver.catch_up)
        await wait_all_tasks_blocked()  # in the midst of the first frame
        pair.left.driver.machine.confirm()
        while kinds.count(Data) < 2:
            count = pair.carriers[1].try_receive_into(view)
            if count is None:
                await wait_all_tasks_blocked()
            else:
                frames = decoder.receive_data(bytes(view[:count]))
                kinds += [type(frame) for frame in frames if not isinstance(frame, Payload)]
        nursery.cancel_scope.cancel()
    assert kinds == [Ack, Data, Ack, Data]
