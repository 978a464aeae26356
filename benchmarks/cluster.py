"""What a cluster costs an introduction: two nodes at one broker, and at two with a real redis-server between them.

Over loopback, so what is measured is the work of brokers and Redis. To it comes the way, from the one broker to
Redis and on to the other, and back.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import trio

from ntcpsock._errors import NTCPError
from ntcpsock._identity import Identity
from ntcpsock._state import Pins
from ntcpsock._traversal.broker.driver import BrokerSession, open_broker_session
from ntcpsock._traversal.broker.frame import OVERHEAD

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from redis_support import BrokerProcess, running_cluster, running_redis

SEALED = b"s" * (OVERHEAD + 400)
TRIES = 2000
WORKERS = 32


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        with running_redis(Path(folder) / "redis") as redis:
            with running_cluster(Path(folder), 2, "--store", redis.url) as brokers:
                trio.run(_measure, brokers)


async def _measure(brokers: Sequence[BrokerProcess]) -> None:
    listener = Identity.generate()
    async with (
        _session(brokers[0], listener) as alice,
        _session(brokers[0], Identity.generate()) as here,
        _session(brokers[1], Identity.generate()) as there,
    ):
        await alice.set_registration(("alice",), (80,), b"c" * 400, None)
        with trio.fail_after(30):
            while not await _introduced(there, listener):
                await trio.sleep(0.02)
        async with trio.open_nursery() as nursery:
            arrivals: dict[bytes, float] = {}
            nursery.start_soon(_receive, alice, arrivals)
            answers: dict[str, list[float]] = {"one broker": [], "two brokers": []}
            deliveries: dict[str, list[float]] = {"one broker": [], "two brokers": []}
            for number in range(TRIES):
                # In turn: a machine's speed drifts.
                for name, asker in (("one broker", here), ("two brokers", there)):
                    sealed = number.to_bytes(4, "big") + name.encode().ljust(len(SEALED) - 4)
                    begin = time.perf_counter()
                    await asker.introduce(listener.public_key, 80, sealed)
                    answers[name].append(time.perf_counter() - begin)
                    with trio.fail_after(30):
                        while sealed not in arrivals:
                            await trio.lowlevel.checkpoint()
                    deliveries[name].append(arrivals.pop(sealed) - begin)
            for what, times in (("card to the dialer", answers), ("offer to the listener", deliveries)):
                for name, values in times.items():
                    _show(f"{what}, {name}", values)
            for name, asker in (("one broker", here), ("two brokers", there)):
                print(
                    f"{name}, {WORKERS} at a time: {await _rate(asker, listener):.0f} introductions a second"
                )
            nursery.cancel_scope.cancel()


def _session(broker: BrokerProcess, identity: Identity):  # type: ignore[no-untyped-def]
    return open_broker_session(broker.address, identity, pins=Pins(None), timeout=30.0)


async def _introduced(asker: BrokerSession, listener: Identity) -> bool:
    try:
        await asker.introduce(listener.public_key, 80, SEALED)
    except NTCPError:
        return False
    return True


async def _receive(session: BrokerSession, arrivals: dict[bytes, float]) -> None:
    async for delivery in session.deliveries:
        arrivals[delivery.sealed] = time.perf_counter()


async def _rate(asker: BrokerSession, listener: Identity) -> float:
    begin = time.perf_counter()

    async def work() -> None:
        for _ in range(TRIES // WORKERS):
            await asker.introduce(listener.public_key, 80, SEALED)

    async with trio.open_nursery() as nursery:
        for _ in range(WORKERS):
            nursery.start_soon(work)
    return TRIES // WORKERS * WORKERS / (time.perf_counter() - begin)


def _show(name: str, values: list[float]) -> None:
    ordered = sorted(values)
    print(
        f"{name:36} {statistics.median(values) * 1e3:6.2f} ms median, "
        f"{ordered[int(len(ordered) * 0.99)] * 1e3:6.2f} ms 99 %"
    )


if __name__ == "__main__":
    main()
