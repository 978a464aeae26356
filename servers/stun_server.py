#!/usr/bin/env python3
"""A STUN server on UDP and TCP: RFC 8489, with --other-address also RFC 5780; answers RFC 3489 clients."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from functools import partial

import trio

from ntcpsock._address import DEFAULT_STUN_PORT
from ntcpsock._errors import ConfigurationError
from ntcpsock._servers import logs
from ntcpsock._servers.certificate import certificate_files
from ntcpsock._servers.metrics import Sources
from ntcpsock._servers.operated import Parts, operate, stun_status
from ntcpsock._servers.operator_port import serve_operator_pages
from ntcpsock._servers.options import parse_arguments
from ntcpsock._servers.places import all_listens, version_of
from ntcpsock._servers.running import Service, Simple, run_script, run_until_signalled
from ntcpsock._servers.siblings import Siblings, end_with_the_first, is_sibling
from ntcpsock._servers.stun import StunAddresses, StunCounters, serve_stun
from ntcpsock._state import load_identity

SETTINGS = (
    "listen",
    "port",
    "other_address",
    "other_port",
    "link_key",
    "connect_back",
    "certificate",
    "key",
    "tls_port",
    "metrics",
    "metrics_from",
    "processes",
    "requests_of_an_address",
)


@dataclass(frozen=True, slots=True)
class _Stun(Simple):
    siblings: Siblings = field(default_factory=Siblings)

    def reload(self) -> None:
        Simple.reload(self)
        self.siblings.hang_up()


async def main() -> None:
    arguments = parse_arguments(__doc__ or "", SETTINGS, port=DEFAULT_STUN_PORT)
    logs.set_up(arguments.log, arguments.log_level)
    certificate = certificate_files(arguments.certificate, arguments.key)
    link_key = None if arguments.link_key is None else load_identity(arguments.link_key).seed

    alone = arguments.processes <= 1 and not is_sibling()
    if not alone and (link_key is not None or not hasattr(socket, "SO_REUSEPORT")):
        raise ConfigurationError(
            "--processes needs SO_REUSEPORT, and goes without --link-key, whose orders count once"
        )

    async def start(nursery: trio.Nursery) -> Service:
        port, ready = arguments.port, ["ready"]
        counters: list[StunCounters] = []
        for listen in all_listens(arguments.listen or ["::"]):
            other_address = arguments.other_address
            if other_address is not None and version_of(other_address) != version_of(listen):
                other_address = None
            serve = partial(
                serve_stun,
                listen,
                port,
                other_address=other_address,
                other_port=arguments.other_port,
                connect_back=arguments.connect_back,
                link_key=link_key if other_address is not None else None,
                certificate=certificate,
                tls_port=arguments.tls_port,
                share=not alone,
                requests_of_an_address=arguments.requests_of_an_address,
            )
            addresses: StunAddresses = await nursery.start(serve)
            counters.append(addresses.counters)
            # Where the system chose the port, all addresses have the same.
            port = addresses.primary.port
            ready.append(f"{addresses.primary}" + (f" other {addresses.other}" if addresses.other else ""))
        siblings = Siblings()
        if is_sibling():
            nursery.start_soon(end_with_the_first, nursery.cancel_scope)
            return Simple(" ".join(ready), certificate)
        if not alone:
            await nursery.start(siblings.run, arguments.processes - 1, port)
        if arguments.metrics is not None:
            pages = partial(serve_operator_pages, arguments.metrics, lambda: Sources(stun=counters))
            await nursery.start(
                partial(pages, title="STUN server", metrics_from=arguments.metrics_from or ())
            )
        service = _Stun(" ".join(ready), certificate, siblings)
        parts = Parts(certificate=certificate)
        return await operate(
            nursery,
            service,
            arguments,
            "stun_server",
            parts,
            status=lambda: stun_status(counters),
            further=[lambda _: siblings.hang_up],
        )

    await run_until_signalled(start)


if __name__ == "__main__":
    run_script("stun_server", main)
