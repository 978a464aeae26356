#!/usr/bin/env python3
"""The UDP broker as a program: nodes register with it, find each other and are introduced.

    udp_broker.py --listen 0.0.0.0 --port 6060 --state-dir /var/lib/ntcp --stun 192.0.2.1:3478

Prints `ready ntcp://ADDR:PORT?key=KEY` when it serves; SIGINT and SIGTERM end it with exit code 0.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

import trio

from ntcpsock._address import DEFAULT_BROKER_PORT, DEFAULT_STUN_PORT, Endpoint, parse_host_port
from ntcpsock._config import default_state_dir
from ntcpsock._servers.broker import BrokerServer, serve_udp_broker


async def serve(listen: str, port: int, state_dir: Path, stun: list[Endpoint]) -> None:
    """Serve until a signal comes."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def start(task_status: trio.TaskStatus[BrokerServer]) -> None:
                await serve_udp_broker(listen, port, state_dir=state_dir, stun=stun, task_status=task_status)

            server: BrokerServer = await nursery.start(start)
            print(f"ready {server.uri}", flush=True)
            await anext(aiter(signals))
            nursery.cancel_scope.cancel()


def main() -> int:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description="ntcpsock's UDP broker")
    parser.add_argument("--listen", default="0.0.0.0", metavar="ADDR", help="address to bind (default: all)")
    parser.add_argument("--port", type=int, default=DEFAULT_BROKER_PORT, help="UDP port (default: 6060)")
    parser.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="for the broker's key and the names (default: NTCP_STATE)",
    )
    parser.add_argument(
        "--stun",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="a STUN server that nodes are told; a numeric address, 0.0.0.0 for this host",
    )
    arguments = parser.parse_args()
    try:
        stun = [Endpoint(*parse_host_port(text, DEFAULT_STUN_PORT)) for text in arguments.stun]
        trio.run(serve, arguments.listen, arguments.port, arguments.state_dir or default_state_dir(), stun)
    except* OSError as group:
        print(f"udp_broker: {group.exceptions[0]}", file=sys.stderr)
        return_code = 1
    else:
        return_code = 0
    return return_code


if __name__ == "__main__":
    sys.exit(main())
