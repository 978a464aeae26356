"""`python -m benchmarks.measured_broker [--tcp]`: a broker without limits for each address, which tells what it costs.

A line on its standard input is answered by a line of JSON; the end of its standard input ends it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import trio

from ntcpsock._servers.broker import BrokerServer, serve_broker
from ntcpsock._servers.broker_core import BrokerLimits
from ntcpsock._servers.descriptors import raise_descriptor_limit
from ntcpsock._servers.web import WebLimits

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
    register_rate=1e9,
    register_burst=1e9,
)


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


async def main(*, tcp: bool) -> None:
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
                if line.strip() == "collect":
                    gc.collect()
                print(json.dumps(told(server)), flush=True)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tcp", action="store_true")
    trio.run(partial(main, tcp=parser.parse_args().tcp))
