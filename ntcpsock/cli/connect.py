"""`ntcp connect NAME:PORT`: netcat that calls."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ntcpsock._errors import NTCPError
from ntcpsock.cli.options import (
    Broker,
    Encryption,
    Json,
    Linger,
    Name,
    NodeAddress,
    StateDir,
    Timeout,
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
    run_command,
)

if TYPE_CHECKING:
    from ntcpsock._config import Config
    from ntcpsock._report import Move, Report


def connect(
    address: NodeAddress,
    broker: Broker = None,
    name: Name = None,
    state_dir: StateDir = None,
    encryption: Encryption = None,
    linger: Linger = None,
    timeout: Timeout = None,
    json: Json = False,
    verbose: Verbose = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what was sent and seen, and why it failed, on stderr.")
    ] = False,
    draw: Annotated[
        Path | None, typer.Option("--draw", metavar="FILE.svg", help="Draw all attempts on a time axis.")
    ] = None,
) -> None:
    """Connect to NAME:PORT (or ntcp://NAME:PORT) and join it with stdin and stdout.

    The end of stdin half-closes the connection. Ends when both directions have ended.
    """
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

    async def main() -> None:
        await _connect(config, target, port, output, Telling(explain, draw))

    run_command(output, main)


@dataclass(frozen=True)
class Telling:
    """What is told of the report, besides."""

    explain: bool
    draw: Path | None

    def tell(self, report: Report | None) -> None:
        """Raises OSError where the drawing cannot be written."""
        if report is None:
            return
        if self.explain:
            from ntcpsock.cli.explanation import explanation

            print(explanation(report.to_dict()), file=sys.stderr, flush=True)
        if self.draw is not None:
            from ntcpsock.cli.report_svg import report_diagram

            self.draw.write_text(report_diagram(report.to_dict()), encoding="utf-8")


async def _connect(config: Config, target: str, port: int, output: Output, telling: Telling) -> None:
    import trio

    from ntcpsock.cli.moves import telling_moves
    from ntcpsock.cli.stdio import exchange, open_stdin
    from ntcpsock.trio import open_node

    def moved(move: Move) -> None:
        output.event("moved", moved_text(move), **moved_fields(move))

    async with open_node(config) as node:
        # What is measured is the connect of a warm node. Cold STUN servers do not hold us up for
        # longer than the user would wait.
        with trio.move_on_after(config.connect_timeout):
            await node.wait_warm()
        await node.resolve(target)
        started = trio.current_time()
        try:
            stream = await node.open_stream(target, port, timeout=config.connect_timeout)
        except NTCPError as error:
            telling.tell(error.report)
            raise
        seconds = trio.current_time() - started
        async with stream:
            telling.tell(stream.report)
            output.event(
                "connected",
                connected_text(seconds, stream.peer, stream.path),
                **connected_fields(seconds, stream.peer, stream.path, stream.report),
            )
            async with open_stdin() as stdin, telling_moves(stream, moved):
                transfer = await exchange(stream, stdin, until_peer_ends=False)
        output.event(
            "closed",
            f"closed, {transfer.sent} bytes sent, {transfer.received} received",
            sent=transfer.sent,
            received=transfer.received,
        )
