"""A pump over QUIC while nothing moves: it has no tasks, and misses nothing."""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from quic_support import quic_carriers
from session_support import make_stream, receive_all
from test_pump_loop import hop_pair

from ntcpsock._pump import Pump
from ntcpsock._readiness import Readiness
from ntcpsock._session.stream import NTCPStream

pytestmark = pytest.mark.skipif(not hasattr(select, "epoll"), reason="what watches needs Linux")

Pumped = tuple[socket.socket, trio.SocketStream, NTCPStream, Pump, list[bool]]


@asynccontextmanager
async def asleep() -> AsyncIterator[Pumped]:
    """An application's socket, the peer's stream, the sleeping pump between them, and what `run` returns."""
    async with quic_carriers() as (ours, theirs), trio.open_nursery() as nursery:
        application, hop = hop_pair()
        peer = make_stream(theirs)
        pump = Pump(hop, make_stream(ours))
        results: list[bool] = []

        async def run() -> None:
            results.append(await pump.run())

        nursery.start_soon(run)
        async with trio.SocketStream(trio.socket.from_stdlib_socket(application)) as stream:
            await exchange(stream, peer)
            await fall_asleep(pump)
            yield application, stream, peer, pump, results
        await trio.aclose_forcefully(peer)
        nursery.cancel_scope.cancel()


async def exchange(application: trio.SocketStream, peer: NTCPStream) -> None:
    await application.send_all(b"there")
    assert await peer.receive_some() == b"there"
    await peer.send_all(b"back")
    assert await application.receive_some() == b"back"


async def fall_asleep(pump: Pump) -> None:
    with trio.fail_after(10):
        while pump._alarm is None:
            await trio.testing.wait_all_tasks_blocked(0.01)
            pump.check()
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert pump._reading is None
    assert pump._receiving is None
    pump.check()
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert pump._alarm is not None, "it sleeps on"


async def ended(results: list[bool]) -> None:
    with trio.fail_after(10):
        while not results:
            await trio.testing.wait_all_tasks_blocked(0.01)


async def test_either_side_wakes_it() -> None:
    async with asleep() as (_, application, peer, pump, _):
        await application.send_all(b"one")
        assert await peer.receive_some() == b"one"
        await fall_asleep(pump)
        await peer.send_all(b"two")
        assert await application.receive_some() == b"two"
        await fall_asleep(pump)
        await exchange(application, peer)


async def test_one_who_works_does_not_sleep() -> None:
    async with asleep() as (_, application, peer, pump, _):
        for _ in range(5):
            await exchange(application, peer)
            pump.check()
            assert pump._alarm is None
            assert not pump._dozing


async def test_the_end_of_each_direction_comes_through() -> None:
    async with asleep() as (_, application, peer, pump, results):
        await application.send_eof()
        assert await receive_all(peer) == b""
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked(0.01)
            pump.check()
        assert pump._alarm is None, "half of it has ended: the other half is waited for as always"
        await peer.send_all(b"last words")
        await peer.aclose()
        assert await application.receive_some() == b"last words"
        assert await application.receive_some() == b""
        await ended(results)
        assert results == [False]


async def test_the_peers_end_comes_through() -> None:
    async with asleep() as (_, application, peer, _, _):
        await peer.send_eof()
        assert await application.receive_some() == b""
        await application.send_all(b"still here")
        assert await peer.receive_some() == b"still here"


async def test_the_peers_reset_comes_through() -> None:
    async with asleep() as (_, application, peer, _, results):
        peer.reset()
        with pytest.raises(trio.BrokenResourceError):
            await application.receive_some()
        await ended(results)


async def test_the_applications_reset_comes_through() -> None:
    async with asleep() as (socket_of_it, application, peer, _, results):
        socket_of_it.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await application.aclose()
        await ended(results)
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(peer)


async def test_a_sleeper_can_be_finished_and_replaced() -> None:
    async with asleep() as (_, _, _, pump, results):
        pump.leave()
        await ended(results)
        assert results == [True]
        assert pump.hop.fileno() >= 0
        pump.hop.close()
    async with asleep() as (_, application, peer, pump, results):
        await application.send_all(b"written before the end")
        pump.finish(keep_hop=False)
        assert await receive_all(peer) == b"written before the end"
        await ended(results)


async def test_a_lost_carrier_wakes_it() -> None:
    async with asleep() as (_, application, _, pump, results):
        stream = pump.stream
        assert isinstance(stream, NTCPStream)
        stream.lose(TimeoutError(110, "the path went silent"))
        with pytest.raises(trio.BrokenResourceError):
            await application.receive_some()
        await ended(results)


async def test_where_nothing_more_can_be_watched_its_tasks_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def watch(self: Readiness, source: object, callback: object) -> None:
        tried.append(source)
        raise OSError(errno.ENOSPC, "no more watches")

    async with asleep() as (_, application, peer, pump, results):
        monkeypatch.setattr(Readiness, "watch", watch)
        await exchange(application, peer)
        with trio.fail_after(10):
            while not tried:
                await trio.testing.wait_all_tasks_blocked(0.01)
                pump.check()
        await exchange(application, peer)
        assert not results
