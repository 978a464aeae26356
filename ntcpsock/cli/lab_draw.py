"""`ntcp lab draw`: one punch as a sequence diagram."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ntcpsock.cli.lab import dial, enter_namespaces, lab_app, open_lab_stage, start_echo, technique_settings

if TYPE_CHECKING:
    from ntcpsock.cli.punch_drawing import Drawing
    from ntcpsock.testing.natlab import Lab

# Path round trips after the connect, in which what is under way arrives.
_SETTLE = 1.5


@lab_app.command("draw")
def draw(
    svg_file: Annotated[Path, typer.Argument(metavar="FILE.svg", help="Where the drawing goes.")],
    nat_a: Annotated[
        str, typer.Option("--nat-a", metavar="KIND", help="Host A's router: a kind of `ntcp lab list`.")
    ] = "linux",
    nat_b: Annotated[str, typer.Option("--nat-b", metavar="KIND", help="Host B's router.")] = "linux",
    technique: Annotated[
        str | None,
        typer.Option(
            "--technique", metavar="T[,T]", help="Only these, at both hosts. Default: all but relay."
        ),
    ] = None,
    delay_ms: Annotated[
        float, typer.Option("--delay-ms", min=0, help="One-way delay of each router's link, in ms.")
    ] = 25.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="The same as data: each packet and its way.")
    ] = None,
) -> None:
    """Connect two hosts behind two NATs once, and draw every packet of it: who sent what, when, and what became of it.

    Exit code 1 when they did not connect; the drawing is made all the same.
    """
    from ntcpsock.cli.sequence_svg import sequence_diagram
    from ntcpsock.cli.stage import StageError
    from ntcpsock.testing.natlab import LabUnavailable, parse_kind

    for option, kind in {"--nat-a": nat_a, "--nat-b": nat_b}.items():
        try:
            parse_kind(kind)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint=option) from None
    settings = technique_settings(technique)
    enter_namespaces()
    try:
        with open_lab_stage(nat_a, nat_b, delay_ms / 1000, record=True) as (opened, stage):
            start_echo(opened, stage, settings)
            events = list(dial(opened, stage, 1, dialer=settings))
            time.sleep(_SETTLE * opened.path_rtt)
            if not events:
                raise StageError("nothing was tried")
            drawing = _drawing(opened, events[0])
    except (LabUnavailable, StageError) as error:
        print(f"ntcp lab: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    svg_file.write_text(sequence_diagram(drawing), encoding="utf-8")
    if json_file is not None:
        json_file.write_text(json.dumps(drawing.to_dict(), indent=1) + "\n", encoding="utf-8")
    print(f"{svg_file}: {drawing.outcome}")
    if not drawing.connected:
        raise SystemExit(1)


def _drawing(lab: Lab, event: dict[str, object]) -> Drawing:
    from ntcpsock.cli.punch_drawing import make_drawing
    from ntcpsock.testing.natlab.journey import journeys

    kind_a, kind_b = str(lab.nat_a.kind), str(lab.nat_b.kind)
    return make_drawing(
        event,
        journeys(lab.sightings(), lab.server_addresses),
        places=(
            ("host-a", "host A", lab.host_a.address),
            ("nat-a", f"NAT {kind_a}", lab.public_address_a),
            ("server", "ntcp serve", lab.server_addresses[0]),
            ("nat-b", f"NAT {kind_b}", lab.public_address_b),
            ("host-b", "host B", lab.host_b.address),
        ),
        servers=lab.server_addresses,
        path_rtt=lab.path_rtt,
        title=f"From behind {kind_a} to behind {kind_b}",
    )
