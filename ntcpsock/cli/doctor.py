"""`ntcp doctor`: what NAT is this host behind, what will work, what would help."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ntcpsock.cli.options import Broker, StateDir
from ntcpsock.cli.output import Output, run_command


def doctor(
    broker: Broker = None,
    stun: Annotated[
        list[str] | None,
        typer.Option(
            "--stun", metavar="HOST[:PORT]", help="Ask this STUN server; repeatable. Or: NTCP_STUN."
        ),
    ] = None,
    state_dir: StateDir = None,
    lifetime: Annotated[
        bool,
        typer.Option(
            "--lifetime",
            help="Also measure how long the NAT keeps a mapping (up to 5 minutes), and remember it for keep-alives.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Find out what NAT this host is behind, who can be reached through it, and what would help.

    Takes less than 5 seconds. Exit code 1 where nothing can work: no STUN server, or no broker, was reached.
    """
    from ntcpsock._config import Config

    output = Output(json=as_json)
    works = False

    async def main() -> None:
        nonlocal works
        from ntcpsock.trio import diagnose

        config = Config.load(broker=broker, state_dir=state_dir, stun=tuple(stun) if stun else None)
        if as_json:
            diagnosis = await diagnose(config, lifetime=lifetime)
            print(json.dumps(diagnosis.to_dict()))
        else:
            from ntcpsock.cli.doctor_view import diagnose_and_show

            diagnosis = await diagnose_and_show(config, lifetime=lifetime)
        works = diagnosis.works

    run_command(output, main)
    if not works:
        raise SystemExit(1)
