"""`ntcp expose NAME:PORT --to HOST:PORT`: a TCP service, reachable by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ntcpsock._errors import NTCPError
from ntcpsock.cli.options import (
    Allow,
    Broker,
    Encryption,
    Json,
    Linger,
    MaxConnections,
    NodeAddress,
    StateDir,
    Timeout,
    Verbose,
    load_config,
    node_address,
)
from ntcpsock.cli.output import Output, fail
from ntcpsock.cli.places import parse_place, show_place

if TYPE_CHECKING:
    from ntcpsock._config import Config
    from ntcpsock.cli.service import Service
    from ntcpsock.cli.traffic import Connection
    from ntcpsock.trio import NTCPStream


def expose(
    address: NodeAddress,
    to: Annotated[
        str, typer.Option("--to", metavar="HOST:PORT", help="The service; PORT alone: on this machine.")
    ],
    broker: Broker = None,
    state_dir: StateDir = None,
    encryption: Encryption = None,
    linger: Linger = None,
    allow: Allow = None,
    timeout: Timeout = None,
    max_connections: MaxConnections = 256,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Carry connections that arrive at NAME:PORT to a TCP service.

    The service sees connections from this machine. --timeout is for connecting
    to it; where that fails, the caller's connection is reset.
    """
    from ntcpsock.cli.service import Service

    name, port = node_address(address)
    host, service_port = parse_place(to, hint="--to")
    output = Output(json=json, verbose=verbose)
    try:
        config = load_config(
            broker=broker,
            name=name,
            state_dir=state_dir,
            allow=allow,
            timeout=timeout,
            encryption=encryption,
            linger=linger,
        )
    except NTCPError as error:
        fail(output, error)
    service = Service(output, max_connections)

    async def main() -> None:
        await _expose(service, config, name, port, (host, service_port))

    service.run(main)


async def _expose(service: Service, config: Config, name: str, port: int, to: tuple[str, int]) -> None:
    from ntcpsock.cli.bridge import Bridge, TcpEnd, open_tcp
    from ntcpsock.trio import open_node

    target = show_place(*to)

    async def handle(connection: Connection, stream: NTCPStream) -> None:
        try:
            tcp = TcpEnd(await open_tcp(*to, timeout=config.connect_timeout))
        except BaseException:
            # The caller has a connection already; a reset says that it leads nowhere.
            stream.reset()
            raise
        await service.carry(connection, Bridge(stream, tcp), target, stream)

    async with open_node(config) as node, await node.open_listener(port, name=name) as listener:
        # Announced when it is worth calling: the first dialer finds warm candidates.
        await node.wait_warm()
        service.traffic.listening(
            f"{target} is {name}.ntcp:{port}, node {node.node_id}",
            name=name,
            port=port,
            node_id=node.node_id,
            to=list(to),
        )
        await service.accept_from(listener.accept, handle, _caller)


def _caller(stream: NTCPStream) -> str:
    return stream.peer.name or stream.peer.node_id
