"""`python -m benchmarks.measured_broker [--tcp]`: a broker without limits for each address, which tells what it costs.

A line on its standard input is answered by a line of JSON; the end of its standard input ends it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

from benchmarks.fleet import made_up
from ntcpsock._address import Endpoint
from ntcpsock._servers.broker import BrokerServer, serve_broker
from ntcpsock._servers.broker_state import BrokerLimits
from ntcpsock._servers.descriptors import raise_descriptor_limit
from ntcpsock._servers.sources import WAYS
from ntcpsock._servers.web import WebLimits
from ntcpsock._traversal.broker.message import Register

#: Everything comes from this machine.
LIMITS = BrokerLimits(
    nodes=2_000_000,
    names=2_000_000,
    greeting_rate=1e9,
    greeting_burst=1e9,
    strangers_rate=1e9,
    strangers_burst=1e9,
    request_rate=1e9,
    request_burst=1e9,
    datagram_rate=1e9,
    register_rate=1e9,
    register_burst=1e9,
)


#: Long enough to fill it with a million.
_TTL = 240


def resident() -> int:
    """Bytes of this process in memory that are its own, files not counted."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def dropped_by_kernel() -> int:
    """Datagrams that found no room in a socket of this network namespace, by `/proc/net/udp`."""
    lines = Path("/proc/net/udp").read_text().splitlines()[1:]
    return sum(int(line.split()[12]) for line in lines)


def told(server: BrokerServer) -> dict[str, object]:
    counters = server.core.counters
    return {
        "nodes": len(server.core),
        "resident": resident(),
        "cpu": time.process_time(),
        "introductions": counters.introductions,
        "dropped": dict(server.core.dropped),
        "lost": dropped_by_kernel(),
        "unsent": dict(server.unsent),
        "refused": dict(counters.refused),
    }


def fill(server: BrokerServer, first: int, end: int, places: list[Endpoint]) -> None:
    """Put nodes into the registry as their registrations would, without these: `made_up` says who they are."""
    registry, now = server.core._registry, trio.current_time()
    (way,) = (way for way in WAYS._classes.values() if way.way[0].local == server.address)
    for number in range(first, end):
        node = made_up(number)
        source = way(*places[number % len(places)])
        record = registry.add(node.key, node.shared, bytes(8), node.session, source, now)
        assert record is not None
        assert record.session == node.session
        record.register(1, Register((f"node-{number}",), (80,), _TTL, node.card))
        record.show(f"node-{number}")
        registry.touch(record, now)


async def main(*, tcp: bool) -> None:
    with suppress(OSError, ValueError):  # a limit above the hard one is for root
        resource.setrlimit(resource.RLIMIT_NOFILE, (65536, 65536))
    raise_descriptor_limit()
    with tempfile.TemporaryDirectory() as state_dir:
        async with trio.open_nursery() as nursery:
            serve = partial(
                serve_broker,
                "127.0.0.1",
                0,
                state_dir=Path(state_dir),
                udp=not tcp,
                tcp=tcp,
                limits=LIMITS,
                web_limits=WebLimits(connections=30_000, unproven=30_000, unproven_of_a_host=30_000)
                if tcp
                else None,
            )
            server: BrokerServer = await nursery.start(serve)
            print(server.ready, os.getpid(), flush=True)
            async for line in trio.wrap_file(sys.stdin):
                words = line.split()
                if words[0] == "collect":
                    gc.collect()
                elif words[0] == "fill":
                    fill(
                        server,
                        int(words[1]),
                        int(words[2]),
                        [Endpoint(*place) for place in json.loads(words[3])],
                    )
                print(json.dumps(told(server)), flush=True)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tcp", action="store_true")
    trio.run(partial(main, tcp=parser.parse_args().tcp))
