"""`ntcp forward LOCAL:PORT NAME:PORT`: a local port that leads to a name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ntcpsock._errors import NTCPError
from ntcpsock.cli.options import (
    Broker,
    Encryption,
    Json,
    Linger,
    MaxConnections,
    Name,
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
    import trio

    from ntcpsock._config import Config
    from ntcpsock.cli.service import Service
    from ntcpsock.cli.traffic import Connection


def forward(
    local: Annotated[
        str,
        typer.Argument(
            metavar="LOCAL", help="PORT on 127.0.0.1, or HOST:PORT, [::1]:PORT, *:PORT. Port 0: any."
        ),
    ],
    address: NodeAddress,
    broker: Broker = None,
    name: Name = None,
    state_dir: StateDir = None,
    encryption: Encryption = None,
    linger: Linger = None,
    timeout: Timeout = None,
    max_connections: MaxConnections = 256,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Carry connections that arrive at a local port to NAME:PORT.

    For programs that know addresses only. Where connecting to NAME:PORT fails,
    the program's connection is reset.
    """
    from ntcpsock.cli.service import Service

    host, local_port = parse_place(local, hint="LOCAL", lowest=0)
    target, port = node_address(address)
    output = Output(json=json, verbose=verbose)
    try:
        config = load_config(
            broker=broker,
            name=name,
            state_dir=state_dir,
            timeout=timeout,
            encryption=encryption,
            linger=linger,
        )
    except NTCPError as error:
        fail(output, error)
    service = Service(output, max_connections)

    async def main() -> None:
        await _forward(service, config, (host, local_port), target, port)

    service.run(main)


async def _forward(service: Service, config: Config, local: tuple[str, int], target: str, port: int) -> None:
    import trio

    from ntcpsock.cli.bridge import Bridge, TcpEnd
    from ntcpsock.cli.local import addresses_of, open_local, serve_local, warn_if_wide
    from ntcpsock.trio import open_node

    listeners = await open_local(*local)
    shown = f"{target}.ntcp:{port}"
    warn_if_wide(service, listeners, f"can connect to {shown} through this node")
    async with open_node(config) as node:

        async def handle(connection: Connection, client: trio.SocketStream) -> None:
            near = TcpEnd(client)
            try:
                stream = await node.open_stream(target, port)
            except BaseException:
                near.reset()
                raise
            await service.carry(connection, Bridge(near, stream), shown, stream)

        with trio.move_on_after(config.connect_timeout):
            await node.wait_warm()
        places = addresses_of(listeners)
        service.traffic.listening(
            f"{', '.join(show_place(*place) for place in places)} leads to {shown}",
            addresses=[list(place) for place in places],
            name=target,
            port=port,
            node_id=node.node_id,
        )
        await serve_local(service, listeners, handle)
