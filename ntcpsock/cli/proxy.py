"""`ntcp proxy`: names for programs that are not Python, through SOCKS 5."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ntcpsock._errors import ConfigurationError, NTCPError
from ntcpsock.cli.options import (
    Broker,
    Json,
    Linger,
    MaxConnections,
    Name,
    StateDir,
    Timeout,
    Verbose,
    load_config,
)
from ntcpsock.cli.output import Output, fail
from ntcpsock.cli.places import parse_place, show_place

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ntcpsock._config import Config
    from ntcpsock.cli.service import Service


def proxy(
    socks5: Annotated[
        str,
        typer.Option(
            "--socks5", metavar="ADDR:PORT", help="Where to listen; PORT alone: on 127.0.0.1. Port 0: any."
        ),
    ] = "127.0.0.1:1080",
    passthrough: Annotated[
        bool,
        typer.Option("--passthrough", help="Connect to hosts that are no .ntcp names, too, as they are."),
    ] = False,
    users_file: Annotated[
        Path | None,
        typer.Option("--users", metavar="FILE", help="Let in only these users: lines of NAME:PASSWORD."),
    ] = None,
    broker: Broker = None,
    name: Name = None,
    state_dir: StateDir = None,
    linger: Linger = None,
    timeout: Timeout = None,
    max_connections: MaxConnections = 256,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """A SOCKS 5 proxy to .ntcp names, for programs that are not Python.

    curl --proxy socks5h://127.0.0.1:1080 http://alice.ntcp:8000/

    All other hosts are refused, unless --passthrough is given.
    """
    from ntcpsock.cli.service import Service

    host, port = parse_place(socks5, hint="--socks5", lowest=0)
    output = Output(json=json, verbose=verbose)
    try:
        users = None if users_file is None else read_users(users_file)
        config = load_config(broker=broker, name=name, state_dir=state_dir, timeout=timeout, linger=linger)
    except NTCPError as error:
        fail(output, error)
    service = Service(output, max_connections)

    async def main() -> None:
        await _proxy(service, config, (host, port), passthrough, users)

    service.run(main)


def read_users(path: Path) -> dict[str, str]:
    """Lines of NAME:PASSWORD; blank ones and those that begin with `#` say nothing. Raises ConfigurationError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    users = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, separator, password = line.partition(":")
        # RFC 1929 section 2: each of the two is 1 to 255 bytes.
        if not separator or not all(0 < len(part.encode()) < 256 for part in (name, password)):
            raise ConfigurationError(f"{path}: line {number} is not NAME:PASSWORD")
        users[name] = password
    if not users:
        raise ConfigurationError(f"{path}: nobody in it")
    return users


async def _proxy(
    service: Service,
    config: Config,
    place: tuple[str, int],
    passthrough: bool,
    users: Mapping[str, str] | None,
) -> None:
    import trio

    from ntcpsock.cli.local import addresses_of, open_local, serve_local, warn_if_wide
    from ntcpsock.cli.socks5_server import SocksServer
    from ntcpsock.trio import open_node

    listeners = await open_local(*place)
    if users is None:
        reach = "names and all that this machine reaches" if passthrough else "names"
        warn_if_wide(service, listeners, f"can connect to {reach} through this node; consider --users")
    async with open_node(config) as node:
        with trio.move_on_after(config.connect_timeout):
            await node.wait_warm()
        places = addresses_of(listeners)
        rest = "and all other hosts" if passthrough else "only"
        service.traffic.listening(
            f"SOCKS 5 on {', '.join(show_place(*place) for place in places)}, for .ntcp names {rest}",
            addresses=[list(place) for place in places],
            passthrough=passthrough,
            users=users is not None,
            node_id=node.node_id,
        )
        server = SocksServer(service, node, passthrough, users)
        await serve_local(service, listeners, server.handle)
