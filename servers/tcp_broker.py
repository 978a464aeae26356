#!/usr/bin/env python3
"""The TCP broker as a program: the UDP broker's frames over WebSockets, and a relay on the same port.

    tcp_broker.py --listen 0.0.0.0 --port 6060 --state-dir /var/lib/ntcp --stun 192.0.2.1:3478

Prints `ready ntcp://ADDR:PORT?key=KEY` when it serves; SIGINT and SIGTERM end it with exit code 0.
"""

from __future__ import annotations

import argparse
import signal
import sys
from functools import partial
from pathlib import Path

import trio

from ntcpsock._address import DEFAULT_BROKER_PORT, DEFAULT_STUN_PORT, Endpoint, parse_host_port
from ntcpsock._config import default_state_dir
from ntcpsock._servers.broker import BrokerServer, serve_broker
from ntcpsock._servers.limits import raise_descriptor_limit
from ntcpsock._servers.places import all_listens, told_addresses


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="ntcpsock's TCP broker, with a relay")
    parser.add_argument(
        "--listen",
        action="append",
        metavar="ADDR",
        help="numeric address, IPv4 or IPv6; may be repeated (default: all; ::, too, means all)",
    )
    parser.add_argument("--port", type=int, default=DEFAULT_BROKER_PORT, help="TCP port (default: 6060)")
    parser.add_argument(
        "--state-dir",
        type=Path,
        default=default_state_dir(),
        metavar="DIR",
        help="of the broker's keys and the names (default: NTCP_STATE)",
    )
    parser.add_argument(
        "--stun",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="a STUN server that nodes are told: numeric, or this host as 0.0.0.0 and as ::; may be repeated",
    )
    parser.add_argument(
        "--relay",
        action="append",
        metavar="HOST:PORT",
        help="a relay that nodes are told, in place of this port's own; it needs our relay.key; may be repeated",
    )
    parser.add_argument(
        "--behind",
        action="append",
        default=[],
        metavar="ADDR",
        help="a reverse proxy before us, whose X-Forwarded-For is believed; may be repeated",
    )
    return parser.parse_args()


async def main(arguments: argparse.Namespace) -> None:
    stun = [Endpoint(*parse_host_port(text, DEFAULT_STUN_PORT)) for text in arguments.stun]
    relays = arguments.relay and [
        Endpoint(*parse_host_port(text, DEFAULT_BROKER_PORT)) for text in arguments.relay
    ]
    raise_descriptor_limit()
    listen = all_listens(arguments.listen or ["::"])
    serve = partial(
        serve_broker,
        listen,
        arguments.port,
        state_dir=arguments.state_dir,
        udp=False,
        stun=stun,
        elsewhere=told_addresses(listen),
        relays=relays,
        behind=arguments.behind,
    )
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            server: BrokerServer = await nursery.start(serve)
            print(f"ready {server.uri}", flush=True)
            async for _signal in signals:
                nursery.cancel_scope.cancel()
                break


if __name__ == "__main__":
    complaint = None
    try:
        trio.run(main, parse_arguments())
    except* (OSError, ValueError, OverflowError) as errors:
        complaint = f"tcp_broker: {errors.exceptions[0]}"
    sys.exit(complaint)  # not above: before 3.11.4 what an except* clause raises comes out as a group
