"""A stranger who tries to move somebody's stream ten thousand times, at every door of a listener: refused, counted, and
nothing grows. (At which rate, and how others fare meanwhile: `benchmarks.resumes`.)"""

from __future__ import annotations

import gc
import socket
import tracemalloc
from pathlib import Path

import trio
import trio.testing
from test_moving import connect, echo_byte
from world import open_world

from benchmarks.resumes import first_flight, offer_of_a_stranger, words
from ntcpsock._traversal.prove import MAX_UNAUTHENTICATED

WORDS = 10_000
CONNECTIONS = 400


async def test_offers(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob") as bob:
        dialled, accepted = await connect(bob, alice)
        async with dialled, accepted:
            acceptor, dials = alice._acceptor, alice._acceptor.dials
            under_way, ended = len(dials.under_way), len(dials.ended)
            tracemalloc.start()
            for number in range(WORDS + 500):
                if number == 500:
                    gc.collect()
                    before = tracemalloc.get_traced_memory()[0]
                await acceptor.offered(*offer_of_a_stranger(8000))
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
            tracemalloc.stop()
            assert acceptor.refused == {"unknown stream": WORDS + 500}
            assert len(dials.under_way) == under_way
            assert len(dials.ended) == ended
            assert grown < 200_000
            await echo_byte(dialled, accepted)
            assert not accepted.report.moves


async def test_at_the_tcp_port(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob") as bob:
        dialled, accepted = await connect(bob, alice)
        async with dialled, accepted:
            assert alice.listening_port is not None
            port, texts = alice.listening_port.port, [*words(), first_flight()]
            doorkeeper, most = alice._acceptor.doorkeeper, 0
            for number in range(CONNECTIONS):
                with trio.socket.socket() as stranger:
                    await stranger.connect(("127.0.0.1", port))
                    await stranger.send(texts[number % len(texts)])
                    most = max(most, len(doorkeeper.strangers))
            silent = []
            for _ in range(MAX_UNAUTHENTICATED + 20):
                silent.append(trio.socket.socket())
                await silent[-1].connect(("127.0.0.1", port))
                await silent[-1].send(first_flight())
                await trio.testing.wait_all_tasks_blocked()
                most = max(most, len(doorkeeper.strangers))
            assert most == MAX_UNAUTHENTICATED
            await echo_byte(dialled, accepted)
            for stranger in silent:
                stranger.close()
            with trio.fail_after(20):
                while doorkeeper.strangers:
                    await trio.sleep(0.01)
            counted = alice._acceptor.refused
            assert counted.pop("displaced") >= 20
            assert set(counted) <= {
                "authentication: ConnectionAbortedError",
                "authentication: ConnectionResetError",
            }
            assert sum(counted.values()) >= CONNECTIONS
            assert not accepted.report.moves
            await echo_byte(accepted, dialled)


async def test_at_the_udp_port(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob") as bob:
        dialled, accepted = await connect(bob, alice)
        async with dialled, accepted:
            assert alice.listening_port is not None
            assert alice.listening_port.datagram is not None
            place = "127.0.0.1", alice.listening_port.datagram.port.number
            texts = [*words(), b"\xc3\0\0\0\1" + bytes(1195)]
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                stranger.setblocking(False)
                for number in range(WORDS):
                    stranger.sendto(texts[number % len(texts)], place)
                    if not number % 100:
                        await trio.testing.wait_all_tasks_blocked()
            await echo_byte(dialled, accepted)
            assert not accepted.report.moves
