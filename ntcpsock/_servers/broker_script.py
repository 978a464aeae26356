"""What `servers/udp_broker.py` and `servers/tcp_broker.py` have in common: all but the names of their ports."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import NoReturn

import trio

from ntcpsock._servers import logs
from ntcpsock._servers.bans import BanFile
from ntcpsock._servers.broker import BrokerServer, serve_broker
from ntcpsock._servers.certificate import certificate_files
from ntcpsock._servers.descriptors import raise_descriptor_limit
from ntcpsock._servers.gate import Gate
from ntcpsock._servers.metrics import Sources
from ntcpsock._servers.operated import Operated, Parts, make_gate, operate, relay_limits
from ntcpsock._servers.operator_port import serve_operator_pages
from ntcpsock._servers.options import (
    POLICY,
    keys_of,
    parse_arguments,
    relay_places,
    state_dir,
    stun_endpoints,
)
from ntcpsock._servers.places import all_listens, told_addresses
from ntcpsock._servers.running import run_script, run_until_signalled

#: Settings of both.
BROKER: Sequence[str] = ("listen", "port", "state_dir", "stun", "relay", "store", *POLICY)


def run_broker(
    program: str, description: str, names: Sequence[str], *, udp: bool, tcp: bool, port: int
) -> None:
    """The whole of such a script. names: of its settings, beside those of both."""
    run_script(program, partial(_main, program, description, (*BROKER, *names), udp, tcp, port))


async def _main(
    program: str, description: str, names: Sequence[str], udp: bool, tcp: bool, port: int
) -> None:
    arguments = parse_arguments(description, names, port=port)
    logs.set_up(arguments.log, arguments.log_level)
    raise_descriptor_limit()
    ban_file = BanFile(state_dir(arguments.state_dir) / "bans.json")
    gate = make_gate(vars(arguments), ban_file)

    async def start(nursery: trio.Nursery) -> Operated:
        server: BrokerServer = await nursery.start(_serving(arguments, gate, udp, tcp))
        if (where := getattr(arguments, "metrics", None)) is not None:
            pages = partial(serve_operator_pages, where, lambda: Sources(server.core, server.unsent))
            await nursery.start(partial(pages, title="Broker", metrics_from=arguments.metrics_from or ()))
        parts = Parts(server.core, server.relay, server.certificate)
        return await operate(nursery, server, arguments, program, parts, ban_file=ban_file)

    await run_until_signalled(start, drain=getattr(arguments, "drain", 0.0))


def _serving(
    arguments: Namespace, gate: Gate, udp: bool, tcp: bool
) -> Callable[..., Coroutine[None, None, NoReturn]]:
    listen = all_listens(arguments.listen or ["::"])
    relays = relay_places(arguments.relay)
    if relays is None and not tcp:
        relays = []
    serve = partial(
        serve_broker,
        listen,
        arguments.port,
        state_dir=state_dir(arguments.state_dir),
        udp=udp,
        tcp=tcp,
        stun=stun_endpoints(arguments.stun),
        elsewhere=told_addresses(listen),
        relays=relays,
        store=arguments.store,
        gate=gate,
        relay_nodes=keys_of("relay_node", arguments.relay_node),
    )
    if not tcp:
        return partial(serve, allow_spoofing=arguments.allow_spoofing)
    return partial(
        serve,
        behind=arguments.behind or (),
        certificate=certificate_files(arguments.certificate, arguments.key),
        metrics_from=arguments.metrics_from or (),
        relay_limits=relay_limits(vars(arguments)),
    )
