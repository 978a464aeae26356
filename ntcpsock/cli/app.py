"""The commands, put together. Their modules import trio and the rest only when they are called."""

from __future__ import annotations

from typing import Annotated

import typer

from ntcpsock._version import __version__
from ntcpsock.cli.admin import admin_app
from ntcpsock.cli.connect import connect
from ntcpsock.cli.doctor import doctor
from ntcpsock.cli.expose import expose
from ntcpsock.cli.forward import forward
from ntcpsock.cli.identity import identity
from ntcpsock.cli.lab_commands import lab_app
from ntcpsock.cli.listen import listen
from ntcpsock.cli.proxy import proxy
from ntcpsock.cli.run import HELP as RUN_HELP
from ntcpsock.cli.run import main as run_main
from ntcpsock.cli.serve import serve_command

app = typer.Typer(
    help="Sockets that reach any peer by name, through any NAT.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"ntcp {__version__}")
        raise typer.Exit


def run(context: typer.Context) -> None:
    # `main` takes `run` before we are asked; this entry is for the list of commands, and for
    # options before the word `run`.
    run_main(list(context.args))


app.command("serve")(serve_command)
app.command()(listen)
app.command()(connect)
app.command()(expose)
app.command()(forward)
app.command()(proxy)
app.command(
    help=RUN_HELP,
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(run)
app.command()(doctor)
app.command("id")(identity)
app.add_typer(admin_app, name="admin")
app.add_typer(lab_app, name="lab")
