#!/usr/bin/env python3
"""A relay alone: it joins the connections of nodes that a broker with the same relay.key has introduced.

    relay.py --listen 0.0.0.0 --port 6061 --relay-key /var/lib/ntcp/relay.key --broker 'ntcp://HOST:6060?key=KEY'

The broker makes relay.key in its state directory; copy it here (mode 0600). With `--broker` the relay registers there,
and the broker tells nodes of it as long as it is there. Without, start the broker with `--relay HOST:6061`, or `--relay
wss://HOST:6061` where this one has a certificate. Prints `ready ADDR:PORT` when it serves. SIGTERM ends it when its
connections have ended, SIGINT at once, both with exit code 0; SIGHUP reads the settings and the certificate again.
"""

from __future__ import annotations

from functools import partial

import trio

from ntcpsock._config import default_state_dir
from ntcpsock._identity import Identity
from ntcpsock._servers import logs
from ntcpsock._servers.bans import BanFile
from ntcpsock._servers.certificate import certificate_files
from ntcpsock._servers.descriptors import raise_descriptor_limit
from ntcpsock._servers.operated import Operated, Parts, make_bans, operate, relay_limits
from ntcpsock._servers.options import REGISTER, RELAY_LIMITS, RELAY_POLICY, WEB, parse_arguments
from ntcpsock._servers.relay_offering import brokers_of, offer_at_brokers, place_of
from ntcpsock._servers.relay_server import RelayServer, serve_relay
from ntcpsock._servers.running import run_script, run_until_signalled
from ntcpsock._state import load_identity

DEFAULT_PORT = 6061
SETTINGS = ("listen", "port", "relay_key", *RELAY_LIMITS, *RELAY_POLICY, *REGISTER, *WEB)


async def main() -> None:
    arguments = parse_arguments("ntcpsock's relay", SETTINGS, port=DEFAULT_PORT)
    logs.set_up(arguments.log, arguments.log_level)
    raise_descriptor_limit()
    brokers = brokers_of(arguments.broker)
    secret = None
    if arguments.relay_key is not None or arguments.identity is None:
        secret = load_identity(arguments.relay_key or default_state_dir() / "relay.key").seed
    identity = Identity.generate() if arguments.identity is None else load_identity(arguments.identity)
    bans = make_bans(vars(arguments), BanFile(None))
    tls = arguments.certificate is not None
    if brokers:
        place_of(
            arguments.public, arguments.port, tls=tls
        )  # what is wrong with it is said before anything is bound
    serve = partial(
        serve_relay,
        arguments.listen or ["::"],
        arguments.port,
        secret,
        limits=relay_limits(vars(arguments)),
        behind=arguments.behind or (),
        certificate=certificate_files(arguments.certificate, arguments.key),
        metrics_from=arguments.metrics_from or (),
    )

    async def start(nursery: trio.Nursery) -> Operated:
        server: RelayServer = await nursery.start(serve)
        server.desk.bans = bans
        if brokers:
            place = place_of(arguments.public, server.address.port, tls=tls)
            nursery.start_soon(offer_at_brokers, brokers, identity, secret, place, server.desk)
        parts = Parts(relay=server.desk, certificate=server.certificate)
        return await operate(nursery, server, arguments, "relay", parts)

    await run_until_signalled(start, drain=arguments.drain)


if __name__ == "__main__":
    run_script("relay", main)
