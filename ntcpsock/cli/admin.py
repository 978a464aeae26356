"""`ntcp admin`: look at a running server of this machine, and act on it."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ntcpsock._config import default_state_dir
from ntcpsock.cli import admin_view
from ntcpsock.cli.output import Output, fail

admin_app = typer.Typer(
    help="Look at a server that runs on this machine, and act on it: over its Unix socket, as its own user or root.",
    no_args_is_help=True,
)
names_app = typer.Typer(help="Who has which name; give and free names.", no_args_is_help=True)
admin_app.add_typer(names_app, name="names")

Socket = Annotated[
    Path | None,
    typer.Option(
        "--socket",
        metavar="PATH",
        envvar="NTCP_ADMIN_SOCKET",
        help="The server's second line says it. Default: the one in the state directory (NTCP_STATE).",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="The answer as one JSON object.")]
Match = Annotated[str, typer.Option("--match", metavar="TEXT", help="Only those that have this in them.")]
Limit = Annotated[int, typer.Option("--limit", metavar="N", min=1, max=1000, help="So many rows.")]
Who = Annotated[str, typer.Argument(metavar="WHO", help="A name, a node id, an address or a network.")]
Name = Annotated[str, typer.Argument(metavar="NAME")]

_TIMEOUT = 30.0
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@admin_app.command()
def status(socket: Socket = None, as_json: AsJson = False) -> None:
    """How the server is, in numbers."""
    _run(socket, as_json, lambda message: message.Status(), admin_view.status)


@admin_app.command("list")
def list_nodes(match: Match = "", limit: Limit = 100, socket: Socket = None, as_json: AsJson = False) -> None:
    """The nodes that are connected."""
    _run(socket, as_json, lambda message: message.ListNodes(match, limit), admin_view.nodes)


@admin_app.command()
def show(
    who: Annotated[str, typer.Argument(metavar="NODE", help="A name or a node id.")],
    socket: Socket = None,
    as_json: AsJson = False,
) -> None:
    """All that the broker knows of one node."""
    _run(socket, as_json, lambda message: message.Show(who), admin_view.show)


@admin_app.command()
def drop(who: Who, socket: Socket = None, as_json: AsJson = False) -> None:
    """End its sessions and relayed connections. It may come back: `ban` keeps it away."""
    _run(socket, as_json, lambda message: message.Drop(who), admin_view.drop)


@admin_app.command()
def bans(socket: Socket = None, as_json: AsJson = False) -> None:
    """Who is banned."""
    _run(socket, as_json, lambda message: message.Bans(), admin_view.bans)


@admin_app.command()
def ban(
    who: Who,
    time: Annotated[
        str | None, typer.Option("--for", metavar="TIME", help="30m, 12h, 7d. Without: until `unban`.")
    ] = None,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="To be read by `bans`.")] = "",
    socket: Socket = None,
    as_json: AsJson = False,
) -> None:
    """Serve it no more, from this moment on; a restart does not forget it."""
    seconds = None if time is None else _seconds(time)
    _run(socket, as_json, lambda message: message.AddBan(who, seconds, why), admin_view.ban)


@admin_app.command()
def unban(who: Who, socket: Socket = None, as_json: AsJson = False) -> None:
    """Take a ban back."""
    _run(socket, as_json, lambda message: message.LiftBan(who), admin_view.unban)


@admin_app.command()
def drain(socket: Socket = None, as_json: AsJson = False) -> None:
    """As SIGTERM: take no new work, and end when relayed connections have ended."""
    _run(socket, as_json, lambda message: message.Drain(), admin_view.drain)


@names_app.command("list")
def list_names(match: Match = "", limit: Limit = 100, socket: Socket = None, as_json: AsJson = False) -> None:
    """Who has which name, connected or not."""
    _run(socket, as_json, lambda message: message.ListNames(match, limit), admin_view.names)


@names_app.command("give")
def give_name(
    name: Name,
    node_id: Annotated[str, typer.Argument(metavar="NODE_ID", help="`ntcp id` prints a node's.")],
    socket: Socket = None,
    as_json: AsJson = False,
) -> None:
    """Bind a name to a node, whoever had it. Nodes that have pinned the old key go on to refuse the new one."""
    _run(socket, as_json, lambda message: message.GiveName(name, node_id), admin_view.give)


@names_app.command("free")
def free_name(name: Name, socket: Socket = None, as_json: AsJson = False) -> None:
    """Bind a name to nobody."""
    _run(socket, as_json, lambda message: message.FreeName(name), admin_view.free)


def _run(
    socket: Path | None,
    as_json: bool,
    make: Callable[[Any], Any],
    view: Callable[[dict[str, Any]], None],
) -> None:
    from ntcpsock._servers.admin import message
    from ntcpsock._servers.admin.driver import ask

    output = Output(json=as_json)
    try:
        answer = ask(socket or find_socket(), make(message), _TIMEOUT)
        if answer.error:
            raise OSError(errno.EINVAL, answer.error)
    except OSError as error:
        fail(output, error)
    if as_json:
        print(json.dumps(answer.result))
    else:
        view(answer.result)


def find_socket() -> Path:
    """The only one in the state directory. Raises OSError where there is none, or a choice."""
    found = sorted(default_state_dir().glob("admin-*.sock"))
    if not found:
        raise FileNotFoundError(
            errno.ENOENT,
            f"no server's socket in {default_state_dir()}: is one running? Its second line says where its socket is: "
            "give that with --socket, or set NTCP_STATE to its state directory",
        )
    if len(found) > 1:
        raise OSError(errno.EINVAL, f"several servers: give --socket {' or --socket '.join(map(str, found))}")
    return found[0]


def _seconds(text: str) -> float:
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if parts is None or not float(parts[1]):
        raise typer.BadParameter("expected a time such as 30m, 12h or 7d", param_hint="--for")
    return float(parts[1]) * _UNITS[parts[2]]
