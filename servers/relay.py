#!/usr/bin/env python3
"""A relay alone: it joins the connections of nodes that a broker with the same relay.key has introduced.

    relay.py --listen 0.0.0.0 --port 6061 --key /var/lib/ntcp/relay.key

The broker makes relay.key in its state directory; copy it here (mode 0600), and start the broker with
`--relay HOST:6061`. Prints `ready ADDR:PORT` when it serves; SIGINT and SIGTERM end it with exit code 0.
"""

from __future__ import annotations

import argparse
import signal
import sys
from functools import partial
from pathlib import Path

import trio

from ntcpsock._address import Endpoint
from ntcpsock._config import default_state_dir
from ntcpsock._servers.limits import raise_descriptor_limit
from ntcpsock._servers.relay import RelayLimits
from ntcpsock._servers.relay_server import serve_relay
from ntcpsock._state import load_identity

DEFAULT_PORT = 6061


def parse_arguments() -> argparse.Namespace:
    limits = RelayLimits()
    parser = argparse.ArgumentParser(description="ntcpsock's relay")
    parser.add_argument("--listen", default="0.0.0.0", metavar="ADDR", help="numeric address (default: all)")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="TCP port (default: 6061)")
    parser.add_argument(
        "--key",
        type=Path,
        default=default_state_dir() / "relay.key",
        metavar="FILE",
        help="what it shares with its broker (default: relay.key in NTCP_STATE)",
    )
    parser.add_argument(
        "--sessions", type=int, default=limits.sessions, help="at once (default: %(default)s)"
    )
    parser.add_argument(
        "--sessions-of-a-node", type=int, default=limits.sessions_of_a_node, help="(default: %(default)s)"
    )
    parser.add_argument("--rate", type=float, metavar="BYTES", help="of one node, per second (default: any)")
    return parser.parse_args()


async def main(arguments: argparse.Namespace) -> None:
    limits = RelayLimits(
        sessions=arguments.sessions,
        sessions_of_a_node=arguments.sessions_of_a_node,
        bytes_per_second=arguments.rate,
    )
    raise_descriptor_limit()
    secret = load_identity(arguments.key).seed
    serve = partial(serve_relay, arguments.listen, arguments.port, secret, limits=limits)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            address: Endpoint = await nursery.start(serve)
            print(f"ready {address}", flush=True)
            async for _signal in signals:
                nursery.cancel_scope.cancel()
                break


if __name__ == "__main__":
    complaint = None
    try:
        trio.run(main, parse_arguments())
    except* (OSError, ValueError, OverflowError) as errors:
        complaint = f"relay: {errors.exceptions[0]}"
    sys.exit(complaint)  # not above: before 3.11.4 what an except* clause raises comes out as a group
