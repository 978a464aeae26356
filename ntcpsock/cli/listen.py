"""`ntcp listen NAME:PORT`: netcat that waits."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from ntcpsock._errors import NTCPError
from ntcpsock.cli.options import (
    Allow,
    Broker,
    Encryption,
    Json,
    Linger,
    NodeAddress,
    StateDir,
    Verbose,
    load_config,
    node_address,
)
from ntcpsock.cli.output import (
    Output,
    connected_fields,
    connected_text,
    fail,
    moved_fields,
    moved_text,
    only_cause,
    run_command,
)

if TYPE_CHECKING:
    from ntcpsock._config import Config
    from ntcpsock._report import Move
    from ntcpsock.cli.stdio import Stdin
    from ntcpsock.trio import NTCPStream


def listen(
    address: NodeAddress,
    keep_open: Annotated[
        bool, typer.Option("--keep-open", "-k", help="Serve one connection after another.")
    ] = False,
    broker: Broker = None,
    state_dir: StateDir = None,
    encryption: Encryption = None,
    linger: Linger = None,
    allow: Allow = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Wait for a connection to NAME:PORT and join it with stdin and stdout.

    The end of stdin half-closes the connection. Ends when both directions have ended.
    """
    name, port = node_address(address)
    output = Output(json=json, verbose=verbose)
    try:
        config = load_config(
            broker=broker, name=name, state_dir=state_dir, allow=allow, encryption=encryption, linger=linger
        )
    except NTCPError as error:
        fail(output, error)

    async def main() -> None:
        await _listen(config, name, port, keep_open, output)

    run_command(output, main)


async def _listen(config: Config, name: str, port: int, keep_open: bool, output: Output) -> None:
    import trio

    from ntcpsock.cli.stdio import open_stdin
    from ntcpsock.trio import open_node

    async with open_node(config) as node, open_stdin() as stdin:
        async with await node.open_listener(port, name=name) as listener:
            # Announced when it is worth calling: the first dialer finds warm candidates.
            await node.wait_warm()
            output.event(
                "listening",
                f"listening on {name}:{port} as {node.node_id}",
                name=name,
                port=port,
                node_id=node.node_id,
            )
            if not keep_open:
                await _serve_one(await listener.accept(), stdin, output, until_peer_ends=False)
                return
            # At a terminal nobody can end stdin for one connection and keep it for the next.
            at_terminal = os.isatty(0)
            while True:
                stream = await listener.accept()
                try:
                    await _serve_one(stream, stdin, output, until_peer_ends=at_terminal)
                except* (OSError, trio.BrokenResourceError) as errors:
                    # One peer's end is not the listener's; a closed stdout is.
                    if errors.subgroup(BrokenPipeError) is not None:
                        raise
                    output.error(only_cause(errors))


async def _serve_one(stream: NTCPStream, stdin: Stdin, output: Output, *, until_peer_ends: bool) -> None:
    from ntcpsock.cli.moves import telling_moves
    from ntcpsock.cli.stdio import exchange

    def moved(move: Move) -> None:
        output.event("moved", moved_text(move), **moved_fields(move))

    async with stream:
        seconds = stream.report.seconds
        output.event(
            "connected",
            connected_text(seconds, stream.peer, stream.path),
            **connected_fields(seconds, stream.peer, stream.path, stream.report),
        )
        async with telling_moves(stream, moved):
            transfer = await exchange(stream, stdin, until_peer_ends=until_peer_ends)
    output.event(
        "closed",
        f"closed, {transfer.sent} bytes sent, {transfer.received} received",
        sent=transfer.sent,
        received=transfer.received,
    )
