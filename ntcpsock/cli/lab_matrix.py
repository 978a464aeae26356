"""`ntcp lab matrix`: every pair of kinds of routers, and the heat maps of what happened."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ntcpsock.cli.lab import enter_namespaces, lab_app, technique_settings

if TYPE_CHECKING:
    from rich.console import Console

    from ntcpsock.cli.matrix import Cell, Matrix, PairResult, Settings


@lab_app.command("matrix")
def matrix(
    kinds: Annotated[
        str | None,
        typer.Option(
            "--kinds", metavar="KIND,KIND,...", help="Of `ntcp lab list`. Default: some 15 of them."
        ),
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option("--pairs", metavar="A:B,...", help="Only these; A::B where a kind has a colon."),
    ] = None,
    technique: Annotated[
        str | None,
        typer.Option(
            "--technique", metavar="T[,T]", help="Only these, at both hosts. Default: all over TCP."
        ),
    ] = None,
    port_mapping: Annotated[
        bool,
        typer.Option(
            "--port-mapping", help="One router maps ports: first the dialer's, then the listener's."
        ),
    ] = False,
    everything: Annotated[
        bool, typer.Option("--everything", help="All techniques, over UDP too, and the relay.")
    ] = False,
    topologies: Annotated[
        str | None,
        typer.Option(
            "--topologies",
            metavar="NAME,NAME,...",
            help="Only these networks with more than a router for each host, or all of them, in place of the pairs; "
            "with --everything, which has them anyway.",
        ),
    ] = None,
    tries: Annotated[int, typer.Option("--tries", min=1, max=1000, help="Connects of each pair.")] = 5,
    delay_ms: Annotated[
        float, typer.Option("--delay-ms", min=0, help="One-way delay of each router's link, in ms.")
    ] = 25.0,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, max=64, help="Pairs at once: more is faster and measures worse.")
    ] = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write results there, after each pair.")
    ] = None,
    svg_file: Annotated[
        Path | None,
        typer.Option("--svg", metavar="FILE", help="Draw heat maps of success, technique and time."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the --json file: only pairs that it lacks are tried.")
    ] = False,
) -> None:
    """Connect all ordered pairs of kinds of routers, and say where a direct path was missed.

    Exit code 1 when a pair that can be connected was not, in at least 97 % of its tries. With --everything, which adds
    networks with more than one router at each side: in all of them, and directly where that is possible.
    """
    from rich.console import Console

    from ntcpsock.cli import matrix as data
    from ntcpsock.cli.matrix_run import PairBroken, PairRunner

    technique_settings(technique)
    if everything and (technique is not None or port_mapping):
        raise typer.BadParameter("it leaves nothing to choose", param_hint="--everything")
    settings = data.Settings(tries, delay_ms, technique, port_mapping, everything)
    wanted, order = _wanted(kinds, pairs, topologies, settings)
    found = data.Matrix(settings, order)
    if resume:
        if json_file is None:
            raise typer.BadParameter("it reads the file of --json", param_hint="--resume")
        try:
            found = data.resume(json_file, settings, order)
        except data.MatrixFileError as error:
            raise typer.BadParameter(str(error), param_hint="--resume") from None
    missing = [cell for cell in wanted if cell not in found.cells]
    if missing:
        enter_namespaces()
    console = Console(stderr=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with _progress(console, len(wanted), len(wanted) - len(missing)) as advance:

            def done(result: data.PairResult) -> None:
                found.add(result)
                if json_file is not None:
                    data.save(found, json_file)
                advance(result)

            PairRunner(settings, jobs).run(missing, done)
    except PairBroken as error:
        print(f"ntcp lab: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        if json_file is not None and found.cells:
            print(f"ntcp lab: interrupted; {len(found.cells)} pairs are in {json_file}", file=sys.stderr)
        raise SystemExit(130) from None
    if json_file is not None:
        data.save(found, json_file)
    if svg_file is not None:
        from ntcpsock.cli.matrix_svg import heat_maps

        svg_file.write_text(heat_maps(found), encoding="utf-8")
    _show(found, Console())
    if found.below_expectation:
        raise SystemExit(1)


def _wanted(
    kinds: str | None, pairs: str | None, topologies: str | None, settings: Settings
) -> tuple[list[Cell], tuple[str, ...]]:
    """What is to be tried, and the order of rows and columns; what is no kind, and what does not go together, is a
    usage error. With port mapping pairs without a NAT are left out."""
    from ntcpsock.cli.matrix import DEFAULT_KINDS, EVERY_KIND, MAPPING_KINDS, Cell
    from ntcpsock.cli.matrix_topologies import TOPOLOGIES, TOPOLOGY_KINDS
    from ntcpsock.testing.natlab import parse_kind

    if kinds is not None and pairs is not None:
        raise typer.BadParameter("give --kinds or --pairs, not both", param_hint="--pairs")
    if topologies is not None and (pairs is not None or not settings.everything):
        raise typer.BadParameter("it goes with --everything, without --pairs", param_hint="--topologies")
    wanted: list[Cell] = []
    if topologies is not None:
        order = TOPOLOGY_KINDS if kinds is None else tuple(dict.fromkeys(kinds.split(",")))
        _check_kinds(order, "--kinds")
        return _strip(topologies, order), order
    if pairs is None:
        usual: tuple[str, ...] = DEFAULT_KINDS
        if settings.port_mapping:
            usual = MAPPING_KINDS
        elif settings.everything:
            usual = EVERY_KIND
        order = usual if kinds is None else tuple(dict.fromkeys(kinds.split(",")))
        wanted = [Cell(a, b) for a in order for b in order]
    else:
        # Words of a behaviour may have colons of their own (udp:eim): "::" divides then.
        for text in pairs.split(","):
            a, divided, b = text.partition("::" if "::" in text else ":")
            if not divided:
                raise typer.BadParameter(f"{text!r} is no pair A:B", param_hint="--pairs")
            wanted.append(Cell(a, b))
        wanted = list(dict.fromkeys(wanted))
        order = tuple(dict.fromkeys(kind for cell in wanted for kind in (cell.nat_a, cell.nat_b)))
    _check_kinds(order, "--pairs" if pairs is not None else "--kinds")
    if settings.port_mapping:
        wanted = [
            cell for cell in wanted if any(parse_kind(kind).translates for kind in (cell.nat_a, cell.nat_b))
        ]
        if not wanted:
            raise typer.BadParameter("no router of these is a NAT", param_hint="--port-mapping")
    if settings.everything and kinds is None and pairs is None:
        wanted += _strip(",".join(TOPOLOGIES), TOPOLOGY_KINDS)
    return wanted, order


def _check_kinds(kinds: Iterable[str], option: str) -> None:
    from ntcpsock.testing.natlab import parse_kind

    for kind in kinds:
        try:
            parse_kind(kind)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint=option) from None


def _strip(topologies: str, kinds: tuple[str, ...]) -> list[Cell]:
    """Each of the topologies, or all, with each of the kinds."""
    from ntcpsock.cli.matrix import Cell
    from ntcpsock.cli.matrix_topologies import TOPOLOGIES, topology_cells

    names = tuple(TOPOLOGIES) if topologies == "all" else tuple(dict.fromkeys(topologies.split(",")))
    if unknown := sorted(set(names) - set(TOPOLOGIES)):
        known = ", ".join(TOPOLOGIES)
        raise typer.BadParameter(
            f"unknown {', '.join(unknown)}; known are all, {known}", param_hint="--topologies"
        )
    return [Cell(kind, kind, name) for name, kind in topology_cells(names, kinds)]


@contextmanager
def _progress(console: Console, total: int, already: int) -> Iterator[Callable[[PairResult], None]]:
    """A bar on a terminal, a line for each pair elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if not console.is_terminal:
        yield lambda result: print(_line(result), file=sys.stderr, flush=True)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=total, completed=already)

        def advance(result: PairResult) -> None:
            progress.update(task, advance=1, description=str(result.cell))
            if result.below_expectation:
                progress.console.print(_line(result), style="red", highlight=False)

        yield advance


def _line(result: PairResult) -> str:
    line = f"{result.cell}: {len(result.connected)} of {len(result.tries)}"
    if result.technique is not None:
        line += f" by {result.technique}"
    if result.median_rtts is not None:
        line += f", {result.median_rtts:.2f} path RTT"
    if result.below_expectation and result.expected is not None:
        line += f"; below expectation: {result.expected.value}"
    return line


def _show(found: Matrix, console: Console) -> None:
    """The figures, and the pairs that are not as they should be."""
    from rich.table import Table

    from ntcpsock.cli.matrix import (
        EXPECTED_MEDIAN,
        EXPECTED_P95,
        EXPECTED_SHARE,
        EXPECTED_SHARE_DIRECT,
        EXPECTED_SHARE_RELAYED,
    )

    figures = found.summary()

    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    def rtts(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f} path RTT"

    table = Table(box=None, pad_edge=False)
    for heading in ("", "found", "expected"):
        table.add_column(heading)
    expected = figures["pairs_expected"]
    table.add_row("pairs connected", f"{figures['pairs_connected']} of {figures['pairs']}", str(expected))
    everything = found.settings.everything
    wanted = share(EXPECTED_SHARE_RELAYED if everything else EXPECTED_SHARE)
    # To ask a router for a port takes what the router takes, and a relay waits for what is direct.
    timed = not (found.settings.port_mapping or everything)
    table.add_row("their tries", share(figures["share_expected"]), wanted)
    if everything:
        table.add_row("  directly", share(figures["share_direct"]), "-")
        table.add_row(
            "  directly, where one may be",
            share(figures["share_direct_expected"]),
            share(EXPECTED_SHARE_DIRECT),
        )
    else:
        table.add_row("without prediction", share(figures["share_unpredicted"]), wanted)
        table.add_row("  at the first attempt", share(figures["first_attempt"]), wanted)
    table.add_row("  median", rtts(figures["median_rtts"]), f"{EXPECTED_MEDIAN}" if timed else "-")
    table.add_row("  95th percentile", rtts(figures["p95_rtts"]), f"{EXPECTED_P95:g}" if timed else "-")
    console.print(table)
    for pair in found.below_expectation:
        console.print(_line(pair), style="red", highlight=False)
        for text in dict.fromkeys(entry.message for entry in pair.tries if entry.message):
            console.print(f"  {text}", style="dim", highlight=False)
