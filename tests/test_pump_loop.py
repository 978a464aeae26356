"""The pump's thread: many connections at once, faults of one of them, and its own end."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from session_support import make_stream, receive_all, tls_carriers, tls_streams

from ntcpsock import _pump_loop
from ntcpsock._pump_link import NEARLY_FULL, Link
from ntcpsock._pump_loop import LoopPump, PumpLoop
from ntcpsock._pumps import Pumps
from ntcpsock._session.machine import WINDOW
from ntcpsock._session.stream import NTCPStream

pytestmark = pytest.mark.skipif(not hasattr(os, "eventfd"), reason="the loop needs Linux")


@pytest.fixture
def loop() -> Iterator[PumpLoop]:
    loop = PumpLoop()
    yield loop
    loop.stop()
    assert not loop._thread.is_alive()
    assert not loop._links
    assert not loop._handlers


def hop_pair() -> tuple[socket.socket, socket.socket]:
    """The application's end and the engine's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        application = socket.create_connection(listener.getsockname())
        hop, _ = listener.accept()
    application.setblocking(False)
    return application, hop


@asynccontextmanager
async def pumped(
    loop: PumpLoop, window: int = 0
) -> AsyncIterator[tuple[trio.SocketStream, NTCPStream, LoopPump]]:
    """An application's socket, the peer's stream, and the pump between them."""
    ours, theirs = (make_stream(carrier, window=window) for carrier in await tls_carriers())
    application, hop = hop_pair()
    pump = LoopPump(hop, ours, loop)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump.run)
        async with trio.SocketStream(trio.socket.from_stdlib_socket(application)) as stream:
            yield stream, theirs, pump
        await trio.aclose_forcefully(theirs)
        nursery.cancel_scope.cancel()


async def test_many_connections_at_once_each_way(loop: PumpLoop) -> None:
    sizes = [0, 1, 13, 4095, 4096, 16384, 262_131, 262_144, 262_145, 3_000_000] * 2
    done = []

    async def one(size: int) -> None:
        data = os.urandom(size)
        async with pumped(loop) as (application, peer, _), trio.open_nursery() as nursery:

            async def send_from_application() -> None:
                await application.send_all(data)
                await application.send_eof()

            async def send_from_peer() -> None:
                await peer.send_all(data[::-1])
                await peer.send_eof()

            async def check_application() -> None:
                digest = hashlib.sha256()
                async for part in application:
                    digest.update(part)
                assert digest.digest() == hashlib.sha256(data[::-1]).digest()

            async def check_peer() -> None:
                assert await receive_all(peer) == data

            for task in (send_from_application, send_from_peer, check_application, check_peer):
                nursery.start_soon(task)
        done.append(size)

    async with trio.open_nursery() as nursery:
        for size in sizes:
            nursery.start_soon(one, size)
    assert sorted(done) == sorted(sizes)


async def test_a_stuck_connection_holds_up_no_other(loop: PumpLoop) -> None:
    async with pumped(loop) as (stuck, _, _), pumped(loop) as (application, peer, _):
        with trio.move_on_after(0.3):  # nobody reads
            while True:
                await stuck.send_all(bytes(1 << 20))
        await application.send_all(b"x")
        assert await peer.receive_some() == b"x"
        await peer.send_all(b"y")
        assert await application.receive_some() == b"y"


async def test_what_is_kept_lies_in_buffers_that_are_used_again(
    loop: PumpLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are as many as a window fills, whatever goes through; few stay when nobody is at work."""
    made, lent = [0], [0]
    take, recycle = PumpLoop.take, PumpLoop.recycle

    def counted_take(self: PumpLoop) -> memoryview:
        made[0] += not self._free
        return take(self)

    def counted_recycle(self: PumpLoop, buffer: bytearray) -> None:
        lent[0] += 1
        recycle(self, buffer)

    monkeypatch.setattr(PumpLoop, "take", counted_take)
    monkeypatch.setattr(PumpLoop, "recycle", counted_recycle)
    data = os.urandom(1 << 20) * 40
    async with pumped(loop, WINDOW) as (application, peer, _), trio.open_nursery() as nursery:

        async def send() -> None:
            await application.send_all(data)
            await application.send_eof()

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked(0.05)  # so the way is full
        assert await receive_all(peer) == data
        with trio.fail_after(60):
            while loop._stirred:
                await trio.sleep(0.05)
    assert lent[0]
    assert made[0] <= WINDOW // NEARLY_FULL + 8
    assert len(loop._free) <= _pump_loop._FREE_BUFFERS


async def test_an_idle_connection_wakes_nobody(loop: PumpLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one whose both sides are full, or have ended one direction, or are gone but for a reset."""
    async with pumped(loop) as (full, _, _), pumped(loop) as (half, far, _), pumped(loop) as (_, gone, _):
        with trio.move_on_after(0.3):
            while True:
                await full.send_all(bytes(1 << 20))
        await half.send_eof()
        assert await far.receive_some() == b""
        await gone.aclose()
        turns: list[None] = []
        turn = PumpLoop._turn

        def counted(self: PumpLoop) -> None:
            turns.append(None)
            turn(self)

        monkeypatch.setattr(PumpLoop, "_turn", counted)
        await trio.testing.wait_all_tasks_blocked(0.3)
        assert len(turns) < 20


async def test_a_peer_that_breaks_the_protocol_ends_its_connection_only(loop: PumpLoop) -> None:
    async with pumped(loop) as (application, peer, _), pumped(loop) as (other, far, _):
        peer.carrier.try_send(b"\x7f" * 13)
        with pytest.raises(trio.BrokenResourceError) as caught:
            await application.receive_some()
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        await far.send_all(b"x")
        assert await other.receive_some() == b"x"


async def test_a_fault_of_ours_ends_its_connection_only(
    loop: PumpLoop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with pumped(loop) as (application, peer, pump), pumped(loop) as (other, far, _):
        read_hop = Link._read_hop

        def faulty(self: Link) -> None:
            if self is pump._link:
                raise RuntimeError("a fault")
            read_hop(self)

        monkeypatch.setattr(Link, "_read_hop", faulty)
        with caplog.at_level(logging.ERROR, "ntcpsock"):
            await application.send_all(b"x")
            with pytest.raises(trio.BrokenResourceError):
                await peer.receive_some()
        assert "a fault" in caplog.text
        await far.send_all(b"x")
        assert await other.receive_some() == b"x"


async def test_a_stream_that_is_to_move_is_not_taken_up_with_its_old_carrier() -> None:
    """Whoever wakes first at the pump's end: who asked for it, or who would start the next one."""
    ours, theirs = await tls_streams()
    application, hop = hop_pair()

    def is_held() -> bool:
        return ours.holder is not None

    async with trio.open_nursery() as nursery:
        pumps = Pumps(nursery)
        nursery.start_soon(pumps.run, hop, ours)
        with trio.fail_after(60):
            for _ in range(40):
                while not is_held():
                    await trio.lowlevel.checkpoint()
                await ours.suspend()
                await trio.testing.wait_all_tasks_blocked()
                assert not is_held()
                ours.go_on()
            peer = trio.SocketStream(trio.socket.from_stdlib_socket(application))
            await theirs.send_all(b"still there")
            assert await peer.receive_some(100) == b"still there"
        await peer.aclose()
        await trio.aclose_forcefully(theirs)
        nursery.cancel_scope.cancel()


async def test_a_carrier_that_goes_before_the_pump_has_begun(loop: PumpLoop) -> None:
    ours, theirs = await tls_streams()
    application, hop = hop_pair()
    pump = LoopPump(hop, ours, loop)
    await ours.driver.acquire()  # somebody is amid a frame
    async with trio.open_nursery() as nursery:

        async def check() -> None:
            assert await pump.run()

        nursery.start_soon(check)
        await trio.testing.wait_all_tasks_blocked()
        await ours.suspend()
        ours.driver.lock.release()
    assert ours.holder is None
    assert hop.fileno() >= 0
    for end in (application, hop):
        end.close()
    for stream in (ours, theirs):
        await trio.aclose_forcefully(stream)


async def test_after_its_end_the_loop_breaks_what_it_is_given(loop: PumpLoop) -> None:
    async with pumped(loop) as (application, peer, _):
        await application.send_all(b"x")
        assert await peer.receive_some() == b"x"
        loop.stop()
        with pytest.raises(trio.BrokenResourceError):
            await peer.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await application.receive_some()
    async with pumped(loop) as (application, peer, _):
        with pytest.raises(trio.BrokenResourceError):
            await peer.receive_some()
