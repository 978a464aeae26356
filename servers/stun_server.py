#!/usr/bin/env python3
"""A STUN server on UDP and TCP: RFC 8489, with --other-address also RFC 5780; answers RFC 3489 clients."""

from __future__ import annotations

import argparse
import signal
import sys
from functools import partial

import trio

from ntcpsock._address import DEFAULT_STUN_PORT
from ntcpsock._servers.places import all_listens, version_of
from ntcpsock._servers.stun import StunAddresses, serve_stun


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--listen",
        action="append",
        metavar="ADDR",
        help="numeric address, IPv4 or IPv6; may be repeated (default: all; ::, too, means all)",
    )
    parser.add_argument("--port", type=int, default=DEFAULT_STUN_PORT)
    parser.add_argument(
        "--other-address",
        metavar="ADDR2",
        help="second address of this host, for behaviour discovery; with one --listen of its family",
    )
    parser.add_argument(
        "--other-port", type=int, metavar="PORT2", help="second port (3479 beside --other-address)"
    )
    parser.add_argument(
        "--no-connect-back", action="store_true", help="never connect to TCP clients that ask for it"
    )
    return parser.parse_args()


async def main(arguments: argparse.Namespace) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        ready: list[str] = []
        async with trio.open_nursery() as nursery:
            for listen in all_listens(arguments.listen or ["::"]):
                other_address = arguments.other_address
                if other_address is not None and version_of(other_address) != version_of(listen):
                    other_address = None
                addresses: StunAddresses = await nursery.start(
                    partial(
                        serve_stun,
                        listen,
                        arguments.port,
                        other_address=other_address,
                        other_port=arguments.other_port,
                        connect_back=not arguments.no_connect_back,
                    )
                )
                # Where the system chose the port, all addresses have the same.
                arguments.port = addresses.primary.port
                other = f" other {addresses.other}" if addresses.other else ""
                ready.append(f"{addresses.primary}{other}")
            print("ready", *ready, flush=True)
            async for _signal in signals:
                nursery.cancel_scope.cancel()
                break


if __name__ == "__main__":
    complaint = None
    try:
        trio.run(main, parse_arguments())
    except* (OSError, ValueError, OverflowError) as errors:
        complaint = f"stun_server: {errors.exceptions[0]}"
    sys.exit(complaint)  # not above: before 3.11.4 what an except* clause raises comes out as a group
