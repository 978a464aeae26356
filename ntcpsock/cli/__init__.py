"""The `ntcp` command. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of `ntcp` and of `python -m ntcpsock`."""
    arguments = sys.argv[1:]
    # These two come before the command-line library: a version is a matter of milliseconds, and a
    # program under `ntcp run` pays for nothing but what it uses.
    if arguments == ["--version"]:
        from ntcpsock._version import __version__

        print(f"ntcp {__version__}")
    elif arguments[:1] == ["run"]:
        from ntcpsock.cli.run import main as run_main

        run_main(arguments[1:])
    else:
        from ntcpsock.cli.app import app

        app(prog_name="ntcp")
