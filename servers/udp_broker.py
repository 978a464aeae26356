#!/usr/bin/env python3
"""The UDP broker as a program: nodes register with it, find each other and are introduced.

    udp_broker.py --listen 0.0.0.0 --port 6060 --state-dir /var/lib/ntcp --stun 192.0.2.1:3478

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
from ntcpsock._servers.broker import BrokerServer, serve_udp_broker
from ntcpsock._servers.places import all_listens, told_addresses


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="ntcpsock's UDP broker")
    parser.add_argument(
        "--listen",
        action="append",
        metavar="ADDR",
        help="numeric address, IPv4 or IPv6; may be repeated (default: all; ::, too, means all)",
    )
    parser.add_argument("--port", type=int, default=DEFAULT_BROKER_PORT, help="UDP port (default: 6060)")
    parser.add_argument(
        "--state-dir",
        type=Path,
        default=default_state_dir(),
        metavar="DIR",
        help="of the broker's key and the names (default: NTCP_STATE)",
    )
    parser.add_argument(
        "--stun",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="a STUN server that nodes are told: numeric, or this host as 0.0.0.0 and as ::; may be repeated",
    )
    parser.add_argument(
        "--allow-spoofing",
        action="store_true",
        help="let two nodes that both ask for it have a SYN-ACK under each other's address (tcp-stunt1); "
        "needs CAP_NET_RAW",
    )
    parser.add_argument(
        "--relay",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="a relay that nodes are told, likewise; it needs our relay.key (see relay.py); may be repeated",
    )
    return parser.parse_args()


async def main(arguments: argparse.Namespace) -> None:
    stun = [Endpoint(*parse_host_port(text, DEFAULT_STUN_PORT)) for text in arguments.stun]
    relays = [Endpoint(*parse_host_port(text, DEFAULT_BROKER_PORT)) for text in arguments.relay]
    listen = all_listens(arguments.listen or ["::"])
    serve = partial(
        serve_udp_broker,
        listen,
        arguments.port,
        state_dir=arguments.state_dir,
        stun=stun,
        elsewhere=told_addresses(listen),
        relays=relays,
        allow_spoofing=arguments.allow_spoofing,
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
        complaint = f"udp_broker: {errors.exceptions[0]}"
    sys.exit(complaint)  # not above: before 3.11.4 what an except* clause raises comes out as a group
