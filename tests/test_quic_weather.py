"""QUIC where datagrams get lost, are late, out of order or twice, and where nobody reads. In virtual time."""

from __future__ import annotations

import hashlib
import random

import pytest
import trio
import trio.testing
from quic_support import handshake
from quic_wire import Weather, wire_paths
from session_support import make_stream

from ntcpsock._session.quic.carrier import QuicCarrier

MINUTES = 600.0  # of virtual time, in which anything must be over that moves at all


async def transfer(source: QuicCarrier, target: QuicCarrier, size: int, rng: random.Random) -> None:
    """`size` bytes through two sessions, read in pieces of any size; the end must be clean."""
    sender, receiver = make_stream(source), make_stream(target)
    sent, got, count = hashlib.sha256(), hashlib.sha256(), 0

    async def send() -> None:
        left = size
        while left:
            piece = rng.randbytes(min(left, rng.randrange(1, 400_000)))
            left -= len(piece)
            sent.update(piece)
            await sender.send_all(piece)
        await sender.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while data := await receiver.receive_some(rng.randrange(1, 300_000)):
            got.update(data)
            count += len(data)
            if rng.random() < 0.02:
                await trio.sleep(rng.random())
        nursery.start_soon(receiver.aclose)
    assert (count, got.digest()) == (size, sent.digest())
    await sender.aclose()


BAD_WEATHER = [
    Weather(delay=0.001),
    Weather(loss=0.01),
    Weather(loss=0.1, jitter=0.03, copies=0.05),
    Weather(jitter=0.2),
    Weather(copies=0.5),
    Weather(rate=200_000, queue=20_000),
    Weather(delay=0.3, loss=0.02),
]


@pytest.mark.parametrize("number", range(len(BAD_WEATHER)))
async def test_a_transfer_arrives_whole(number: int, autojump_clock: trio.testing.MockClock) -> None:
    with trio.fail_after(MINUTES):
        async with trio.open_nursery() as nursery:
            client, server = await handshake(nursery, *wire_paths(BAD_WEATHER[number], seed=number))
            await transfer(client, server, 2_000_000, random.Random(number))


async def soak(seed: int) -> None:
    rng = random.Random(seed)
    weather = Weather(
        delay=rng.choice([0.0, 0.001, 0.025, 0.15]),
        jitter=rng.choice([0.0, 0.0, 0.005, 0.1]),
        loss=rng.choice([0.0, 0.001, 0.02, 0.15]),
        copies=rng.choice([0.0, 0.02, 0.3]),
        rate=rng.choice([1e5, 2e6, 1e8]),
        queue=rng.choice([5_000, 50_000, 5_000_000]),
    )
    with trio.fail_after(3 * MINUTES):
        async with trio.open_nursery() as nursery:
            client, server = await handshake(nursery, *wire_paths(weather, seed))
            pair = (client, server) if rng.random() < 0.5 else (server, client)
            await transfer(*pair, rng.choice([1, 5_000, 300_000, 3_000_000]), rng)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(20))
async def test_no_transfer_of_many_stalls(block: int, autojump_clock: trio.testing.MockClock) -> None:
    for seed in range(block * 20, block * 20 + 20):
        await soak(seed)
