"""A carrier is lost, or exchanged: what the other end sees of it, and what waits meanwhile."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import cast

import pytest
import trio
import trio.testing
from session_support import MemoryCarrier, memory_carriers, tls_carriers

from ntcpsock._report import PathInfo, PeerInfo, Report
from ntcpsock._session.carrier import Carrier
from ntcpsock._session.frames import Ack, Resume, decode_resume, decode_resumed, encode_frame
from ntcpsock._session.liveness import INTERVAL, Verdict
from ntcpsock._session.machine import WINDOW
from ntcpsock._session.resumption import Resuming
from ntcpsock._session.stream import NTCPStream
from ntcpsock._traversal.broker.driver import Delivery
from ntcpsock._traversal.moving.dialler import DialledStream
from ntcpsock._traversal.moving.kept import KeptContext
from ntcpsock._traversal.moving.listener import AcceptedStreams
from ntcpsock._traversal.moving.redial import DiallerContext
from ntcpsock._traversal.moving.streams import MovingStreams
from ntcpsock._traversal.pending import PendingDial

SESSION, TOKEN, KEY = b"1" * 16, b"t" * 32, b"k" * 32


def moving_stream(carrier: Carrier) -> NTCPStream:
    return NTCPStream(
        carrier,
        peer=PeerInfo("peer", "a" * 52, 80),
        path=PathInfo("tcp", "public", carrier.local, carrier.remote),
        report=Report("peer", "dialer"),
        window=WINDOW,
    )


def note_losses(stream: NTCPStream) -> list[OSError]:
    losses: list[OSError] = []

    def lost(error: OSError) -> bool:
        losses.append(error)
        return True

    stream.driver.on_lost = lost
    return losses


async def test_a_lost_carrier_is_no_good_bye() -> None:
    """The peer has our FIN: if the carrier were closed in order, it would take that for the end."""
    left, right = map(moving_stream, await tls_carriers())
    losses = note_losses(right)
    note_losses(left)
    await left.send_eof()
    assert await right.receive_some() == b""
    left.lose(TimeoutError(errno.ETIMEDOUT, "the path went silent"))
    with trio.fail_after(10):
        while not losses:
            right.driver.absorb()
            with trio.move_on_after(0.05):
                await right.driver.wait_incoming()
            assert right.driver.error is None
    assert right.driver.suspended
    for stream in (left, right):
        stream.give_up(TimeoutError(errno.ETIMEDOUT, "no other path"))


async def test_the_carrier_before_is_no_good_bye() -> None:
    first, _ = memory_carriers()
    second, _ = memory_carriers()
    stream = moving_stream(first)
    stream.driver.suspend()
    stream.driver.attach(second, 0)
    assert first.closed
    assert first.outgoing.reset
    stream.reset()


@pytest.mark.parametrize("moves", [False, True])
async def test_an_end_without_a_carrier_is_not_forgotten(moves: bool) -> None:
    """Neither where the stream goes on with the carrier that it had, nor over another one."""
    carriers = memory_carriers()
    left, right = map(moving_stream, carriers)
    left.driver.suspend()
    assert not left.driver.send_eof_nowait()
    if moves:
        right.driver.suspend()
        other = memory_carriers()
        left.driver.attach(other[0], 0)
        right.driver.attach(other[1], 0)
    else:
        left.go_on()
    assert left.driver.finish_nowait()
    with trio.fail_after(10):
        assert await right.receive_some() == b""
    left.reset()
    right.reset()


async def test_who_waits_does_not_notice_a_move_that_fails_at_once() -> None:
    """The listener suspends, refuses what was out of date, and goes on, all before anybody who waits gets a turn."""
    left, right = map(moving_stream, memory_carriers(capacity=1000))
    received = bytearray()
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            while data := await right.receive_some():
                received.extend(data)

        async def send() -> None:
            await left.send_all(bytes(5000))
            await left.send_eof()

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        right.driver.suspend()
        right.go_on()
        await left.send_all(b"hello")
        await trio.testing.wait_all_tasks_blocked()
        assert received == b"hello"
        right.driver.suspend()
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        left.driver.suspend()
        left.go_on()
        await trio.testing.wait_all_tasks_blocked()
        right.go_on()
    assert len(received) == 5005
    left.reset()
    right.reset()


async def test_an_application_that_does_not_read_is_alive(autojump_clock: trio.testing.MockClock) -> None:
    """The question whether the peer is there lies behind what its application does not take."""
    left, right = map(moving_stream, memory_carriers())
    losses = note_losses(left)
    async with trio.open_nursery() as nursery:
        moving = MovingStreams(cast(DiallerContext, SimpleNamespace(nursery=nursery)))
        for number, stream in enumerate((left, right)):
            kept = cast(DialledStream, SimpleNamespace(stream=stream, tend=lambda now: None))
            moving.dialled_streams._streams[bytes((number,))] = kept
        moving._some.set()
        nursery.start_soon(moving.watch)
        await left.send_all(b"nobody reads this for a while")
        await trio.sleep(60)
        assert not losses
        assert await right.receive_some() == b"nobody reads this for a while"
        nursery.cancel_scope.cancel()
    left.reset()
    right.reset()


async def test_what_a_look_shows_is_acted_upon_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """Not a look later: the search for another path is what the program waits for."""
    left, right = map(moving_stream, memory_carriers())
    note_losses(left)
    silent: list[float] = []
    searched: list[float] = []
    look = left.driver.look

    def note_look(now: float, rtt: float = 0.0) -> Verdict:
        verdict = look(now, rtt)
        if left.driver.is_silent:
            silent.append(now)
        return verdict

    def tend(now: float) -> None:
        if left.driver.is_silent:
            searched.append(now)

    left.driver.look = note_look  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        moving = MovingStreams(cast(DiallerContext, SimpleNamespace(nursery=nursery)))
        moving.dialled_streams._streams[SESSION] = cast(
            DialledStream, SimpleNamespace(stream=left, tend=tend)
        )
        moving._some.set()
        nursery.start_soon(moving.watch)
        await left.send_all(b"nobody is there any more")
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert searched
    assert searched == silent
    left.reset()
    right.reset()


async def test_a_stream_that_has_ended_is_not_silent(autojump_clock: trio.testing.MockClock) -> None:
    """Nobody looks for another path for it."""
    left, right = map(moving_stream, memory_carriers())
    left.driver.on_lost = lambda _: False
    await left.send_all(b"nobody is there any more")
    while left.driver.error is None:
        await trio.sleep(INTERVAL)
        left.driver.look(trio.current_time())
    assert not left.driver.is_silent
    right.reset()


# -- the listener


class Listener:
    """The listener's book with one stream that was accepted."""

    def __init__(self) -> None:
        carrier, self.peer = memory_carriers()
        self.stream = moving_stream(carrier)
        context = SimpleNamespace(
            closing=False,
            linger=60.0,
            introductions=None,
            nursery=SimpleNamespace(start_soon=lambda *_: None),
        )
        self.book = AcceptedStreams(cast(KeptContext, context))
        pending = SimpleNamespace(
            offer=SimpleNamespace(dial_id=SESSION, token=TOKEN),
            delivery=Delivery(KEY, b"", "peer", b"", "192.0.2.7", (), None),
        )
        self.book.accepted(self.stream, cast(PendingDial, pending))

    async def arrive(self, word: bytes, dial_id: bytes, key: bytes = KEY) -> MemoryCarrier:
        here, there = memory_carriers()
        there.try_send(word)
        await self.book.arrived(here, dial_id, key, "public")
        return there


def answer(carrier: MemoryCarrier) -> bytes:
    buffer = bytearray(13)
    return bytes(buffer[: carrier.try_receive_into(memoryview(buffer)) or 0])


async def test_a_word_that_was_overtaken_does_not_end_the_stream() -> None:
    """Its dialer gave that carrier up, went on with the one before, and has confirmed more since."""
    listener = Listener()
    resuming = Resuming(SESSION, TOKEN)
    late = resuming.resume(0, b"2" * 16)
    await listener.stream.send_all(b"hello")
    listener.peer.try_send(encode_frame(Ack(5)))
    listener.stream.driver.absorb()
    assert listener.stream.driver.machine.acknowledged == 5
    there = await listener.arrive(late, b"2" * 16)
    assert there.incoming.reset
    assert listener.book.refused == {"RESUME: out of date, or a lie": 1}
    assert listener.stream.driver.error is None
    assert not listener.stream.driver.suspended
    await listener.stream.send_all(b" again")
    there = await listener.arrive(resuming.resume(5, b"3" * 16), b"3" * 16)
    assert decode_resumed(answer(there)) == 0
    listener.stream.reset()


async def test_strangers_and_replays_at_the_listeners_book() -> None:
    """Ten thousand words: refused and counted under few names; the stream goes on with its carrier."""
    listener = Listener()
    resuming = Resuming(SESSION, TOKEN)
    first = resuming.resume(0, b"2" * 16)
    there = await listener.arrive(first, b"2" * 16)
    assert decode_resumed(answer(there)) == 0
    carrier = listener.stream.carrier
    overheard = decode_resume(resuming.resume(0, b"3" * 16))
    for number in range(1700):
        await listener.arrive(first, b"2" * 16)
        await listener.arrive(encode_frame(overheard), number.to_bytes(16, "big"))
        await listener.arrive(encode_frame(overheard), b"3" * 16, b"s" * 32)
        guess = Resume(number, SESSION, 2**40 + number, number.to_bytes(32, "big"))
        await listener.arrive(encode_frame(guess), b"4" * 16)
        unknown = await listener.arrive(
            Resuming(number.to_bytes(16, "big"), TOKEN).resume(0, KEY[:16]), KEY[:16]
        )
        assert decode_resumed(answer(unknown)) is None
        nonsense = await listener.arrive(bytes(69), b"5" * 16)
        assert nonsense.incoming.reset
    assert listener.book.refused == {
        "RESUME: said before": 1700,
        "RESUME: wrong proof": 3400,
        "RESUME: another node's stream": 1700,
        "unknown": 1700,
        "the frame behind BIND is not RESUME": 1700,
    }
    assert listener.stream.carrier is carrier
    assert listener.stream.driver.error is None
    listener.stream.reset()


async def test_a_resume_after_the_end_is_refused() -> None:
    listener = Listener()
    listener.stream.reset()
    await trio.testing.wait_all_tasks_blocked()
    assert not list(listener.book)
    there = await listener.arrive(Resuming(SESSION, TOKEN).resume(0, b"2" * 16), b"2" * 16)
    assert decode_resumed(answer(there)) is None
    assert listener.book.refused == {"unknown": 1}
