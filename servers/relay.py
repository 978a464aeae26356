#!/usr/bin/env python3
"""A relay alone: it joins the connections of nodes that a broker with the same relay.key has introduced.

    relay.py --listen 0.0.0.0 --port 6061 --relay-key /var/lib/ntcp/relay.key

The broker makes relay.key in its state directory; copy it here (mode 0600), and start the broker with
`--relay HOST:6061`, or `--relay wss://HOST:6061` where this one has a certificate. Prints `ready ADDR:PORT` when it
serves. SIGTERM ends it when its connections have ended, SIGINT at once, both with exit code 0; SIGHUP reads the
certificate again.
"""

from __future__ import annotations

from functools import partial

import trio

from ntcpsock._config import default_state_dir
from ntcpsock._servers import logs
from ntcpsock._servers.certificate import certificate_files
from ntcpsock._servers.descriptors import raise_descriptor_limit
from ntcpsock._servers.options import WEB, parse_arguments
from ntcpsock._servers.relay import RelayLimits
from ntcpsock._servers.relay_server import RelayServer, serve_relay
from ntcpsock._servers.running import run_script, run_until_signalled
from ntcpsock._state import load_identity

DEFAULT_PORT = 6061
SETTINGS = ("listen", "port", "relay_key", "sessions", "sessions_of_a_node", "rate", *WEB)


async def main() -> None:
    arguments = parse_arguments("ntcpsock's relay", SETTINGS, port=DEFAULT_PORT)
    logs.set_up(arguments.log)
    limits = RelayLimits(
        sessions=arguments.sessions,
        sessions_of_a_node=arguments.sessions_of_a_node,
        bytes_per_second=arguments.rate,
    )
    raise_descriptor_limit()
    serve = partial(
        serve_relay,
        arguments.listen or ["::"],
        arguments.port,
        load_identity(arguments.relay_key or default_state_dir() / "relay.key").seed,
        limits=limits,
        behind=arguments.behind or (),
        certificate=certificate_files(arguments.certificate, arguments.key),
        metrics_from=arguments.metrics_from or (),
    )

    async def start(nursery: trio.Nursery) -> RelayServer:
        server: RelayServer = await nursery.start(serve)
        return server

    await run_until_signalled(start, drain=arguments.drain)


if __name__ == "__main__":
    run_script("relay", main)
