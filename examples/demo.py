"""`make demo`: an unmodified HTTP server behind one NAT, an unmodified HTTP client behind another.

Builds two real Linux NATs with 25 ms links in network namespaces, runs `ntcp serve` on the public segment between
them, `python -m http.server` under `ntcp run` behind NAT B and a urllib download under `ntcp run` behind NAT A.
Where this machine forbids namespaces, the same happens over loopback, without NATs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, DownloadColumn, Progress, TimeElapsedColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from ntcpsock.cli.lab import open_lab_stage, why_no_namespaces
from ntcpsock.cli.lab_view import picture
from ntcpsock.cli.stage import (
    NTCP,
    READY_DEADLINE,
    Runner,
    Stage,
    StageError,
    ThisMachine,
    open_loopback_stage,
)
from ntcpsock.cli.timeline import timeline
from ntcpsock.testing.natlab import LabUnavailable

DELAY = 0.025  # seconds one way, of each router's link
DOWNLOAD = Path(__file__).with_name("download.py")
URL = "http://files.ntcp:8000/demo.bin"

console = Console()


@dataclass(frozen=True, slots=True)
class Scene:
    """Where the two programs run. `path_rtt`: seconds there and back, 0 over loopback."""

    stage: Stage
    client: Runner
    server: Runner
    path_rtt: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--loopback", action="store_true", help="no lab, even where there could be one")
    options = parser.parse_args()
    try:
        with ExitStack() as stack:
            scene = stack.enter_context(open_scene(options.loopback))
            return 0 if show(stack, scene, options.megabytes * 1_000_000) else 1
    except (StageError, LabUnavailable) as error:
        console.print(f"[red]{error}[/]")
        return 1
    except KeyboardInterrupt:
        return 130


@contextmanager
def open_scene(loopback: bool) -> Iterator[Scene]:
    """The lab where namespaces are allowed, else this machine's loopback."""
    reason = "asked for with --loopback" if loopback else why_no_namespaces()
    console.rule("[bold]ntcpsock demo")
    if reason is not None:
        console.print(f"\n[yellow]No NATs this time, all over loopback:[/] {reason}\n")
        with step("ntcp serve on 127.0.0.1"):
            opened = open_loopback_stage()
        with opened as stage:
            yield Scene(stage, ThisMachine(), ThisMachine(), 0.0)
        return
    console.print()
    console.print(picture("default", "default", DELAY), justify="center")
    with ExitStack() as stack:
        with step("two NATs (nftables masquerade) and, between them, ntcp serve: STUN and broker"):
            lab, stage = stack.enter_context(open_lab_stage("default", "default", DELAY))
        yield Scene(stage, lab.host_a, lab.host_b, lab.path_rtt)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is being done, then that it is done."""
    with console.status(what):
        yield
    console.print(f" [green]✓[/] {what}")


def show(stack: ExitStack, scene: Scene, size: int) -> bool:
    """Serve, download, tell. Whether the bytes are the same."""
    folder = scene.stage.folder
    with step(f"a file of {size / 1e6:.0f} MB of random bytes"):
        expected = make_file(folder / "www" / "demo.bin", size)
    where_b, where_a = ("behind NAT B", "behind NAT A") if scene.path_rtt else ("server", "client")
    with step(f"{where_b}: [cyan]ntcp run -m http.server 8000 --bind files.ntcp[/]"):
        start_server(stack, scene)
    console.print(f" [green]✓[/] {where_a}: [cyan]ntcp run download.py {URL}[/]\n")
    report = folder / "report.jsonl"
    with subprocess_of(scene, folder / "downloaded.bin", report) as client:
        watch(client, folder / "downloaded.bin", size)
        output, errors = client.communicate()
    connections = read_events(report)
    if client.returncode != 0:
        console.print("[red]the download failed:[/]", errors.strip(), sep="\n")
        console.print("[red]the server says:[/]", (folder / "server.stderr").read_text().strip(), sep="\n")
        for event in connections:
            if event.get("report"):
                console.print(timeline(event["report"]))
        return False
    digest, received, seconds = output.split()
    same = digest == expected and int(received) == size
    tell(scene, connections[0], float(seconds), size, digest, same)
    return same


def make_file(path: Path, size: int) -> str:
    """Write random bytes; their SHA-256."""
    path.parent.mkdir()
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for offset in range(0, size, 1 << 20):
            block = os.urandom(min(1 << 20, size - offset))
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def start_server(stack: ExitStack, scene: Scene) -> None:
    """Python's own file server, which announces itself on stdout."""
    folder = scene.stage.folder
    command = ["run", "-m", "http.server", "8000", "--bind", "files.ntcp", "--directory", str(folder / "www")]
    environment = scene.stage.environment("b", PYTHONUNBUFFERED="1")
    errors = folder / "server.stderr"
    with open(errors, "wb") as stderr:
        server = scene.server.popen(
            [*NTCP, *command], env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    stack.callback(end, server)
    assert server.stdout is not None
    stack.enter_context(server.stdout)
    if "Serving HTTP" not in server.stdout.readline():
        server.wait(READY_DEADLINE)
        raise StageError(f"the server does not start:\n{errors.read_text()}")


@contextmanager
def subprocess_of(scene: Scene, target: Path, report: Path) -> Iterator[subprocess.Popen[str]]:
    command = ["run", "--report", str(report), str(DOWNLOAD), URL, str(target)]
    process = scene.client.popen(
        [*NTCP, *command],
        env=scene.stage.environment("a"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with process:
            yield process
    finally:
        end(process)


def end(process: subprocess.Popen[Any]) -> None:
    if process.poll() is None:
        process.terminate()
        process.wait(10)


def watch(client: subprocess.Popen[str], target: Path, size: int) -> None:
    """A progress bar from the size of the file: the client is not made to tell."""
    columns = (BarColumn(bar_width=None), DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, expand=True) as progress:
        task = progress.add_task("download", total=size)
        while client.poll() is None:
            if target.exists():
                progress.update(task, completed=target.stat().st_size)
            time.sleep(0.05)
        if target.exists():
            progress.update(task, completed=target.stat().st_size)


def read_events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def tell(
    scene: Scene, connection: dict[str, Any], seconds: float, size: int, digest: str, same: bool
) -> None:
    """What happened."""
    facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    facts.add_column(style="dim")
    facts.add_column()
    local, remote = (f"{host}:{port}" for host, port in (connection["local"], connection["remote"]))
    facts.add_row(
        "path", f"[bold]{connection['kind']}[/] by [bold]{connection['technique']}[/]: {local} → {remote}"
    )
    facts.add_row("peer", f"files.ntcp, proven by key {connection['peer']['node_id'][:16]}…")
    facts.add_row("connected in", connect_time(connection, scene.path_rtt))
    facts.add_row(
        "download", f"{size / 1e6:.0f} MB in {seconds:.1f} s, [bold]{size / 1e6 / seconds:.0f} MB/s[/]"
    )
    verdict = "[green]identical[/]" if same else "[red]DIFFERENT[/]"
    facts.add_row("sha256", f"{digest[:32]}… {verdict}")
    console.print()
    console.print(
        Panel(facts, title="what happened", title_align="left", border_style="green" if same else "red")
    )
    console.print(timeline(connection["report"], title="the connect, step by step"))
    if scene.path_rtt and connection["kind"] != "relay":
        console.print(
            Text("\nNo packet of the download passed a server: NAT A and NAT B talked directly.", "dim")
        )


def connect_time(connection: dict[str, Any], path_rtt: float) -> str:
    """The whole, and the part that a node which has been up for a second would need."""
    seconds = float(connection["seconds"])
    text = f"[bold]{seconds * 1000:.0f} ms[/], authenticated and encrypted"
    stages = {stage["name"]: stage for stage in connection["report"]["stages"]}
    if path_rtt and "broker" in stages:
        prepared = float(stages["broker"]["started"])
        rtts = (seconds - prepared) / path_rtt
        text += (
            f":\n{prepared * 1000:.0f} ms to find the name and open a first port, once,\n"
            f"{(seconds - prepared) * 1000:.0f} ms to connect, {rtts:.1f} round trips of the path"
        )
    return text


if __name__ == "__main__":
    sys.exit(main())
