"""`ntcp run PROGRAM.py ARGS...`: an unmodified Python program on NTCP sockets.

Options of ours end where the program begins, as python's own do. Nothing is imported here that the
program would not need: no trio, no command-line library.
"""

from __future__ import annotations

import atexit
import builtins
import io
import os
import signal
import sys
import types
from collections.abc import Callable, Sequence
from importlib.machinery import SourceFileLoader

HELP = "Run an unmodified Python program with its sockets replaced."

USAGE = """\
Usage: ntcp run [OPTIONS] PROGRAM.py [ARGS]...
       ntcp run [OPTIONS] COMMAND [ARGS]...
       ntcp run [OPTIONS] -m MODULE [ARGS]...

  Run an unmodified Python program: hosts called NAME.ntcp are reached through NTCP sockets,
  every other host as always. Everything after the program belongs to it. Python programs that
  it starts are reached too. With a name, what it listens on at all addresses is NAME.ntcp:PORT too.
  COMMAND is one of PATH that is a Python script, such as those that pip installs.

Options:
  -m MODULE         Run a library module as a program, as `python -m` does.
  --broker URI      The broker, ntcp://HOST[:6060][?key=KEY].  [env: NTCP_BROKER]
  --name NAME       This node's own name.  [env: NTCP_NAME]
  --state-dir DIR   Where keys and pins are kept.  [env: NTCP_STATE]
  --config FILE     A TOML file of settings.  [env: NTCP_CONFIG]
  --allow LIST      Names and node ids that may connect, separated by commas.  [env: NTCP_ALLOW]
  --encryption WHAT "off": plain TCP after an authenticated beginning; does not move.  [env: NTCP_ENCRYPTION]
  --linger SECONDS  So long a connection without a path waits for another one; 0: it does not.  [env: NTCP_LINGER]
  --report FILE     Append one JSON line for each NTCP connection.  [env: NTCP_REPORT]
  -h, --help        Show this message.
"""

_VARIABLES = {
    "--broker": "NTCP_BROKER",
    "--name": "NTCP_NAME",
    "--state-dir": "NTCP_STATE",
    "--config": "NTCP_CONFIG",
    "--allow": "NTCP_ALLOW",
    "--encryption": "NTCP_ENCRYPTION",
    "--linger": "NTCP_LINGER",
    "--report": "NTCP_REPORT",
}


class UsageError(Exception):
    """The command line is not ours to understand: exit 2."""


def main(arguments: Sequence[str]) -> None:
    """Run what `arguments` (those after the word `run`) name, in this process."""
    try:
        settings, program, module, rest = parse(arguments)
    except UsageError as error:
        print(f"Usage: ntcp run [OPTIONS] PROGRAM.py [ARGS]...\n\nntcp run: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if program is None:
        print(USAGE, end="")
        return
    os.environ.update(settings)
    # Exit handlers run last in, first out: this one after all of the program's.
    atexit.register(_die_if_interrupted)

    from ntcpsock.cli.children import begin, export

    export(os.environ)
    begin()
    run = run_module if module else run_program
    run(program, list(rest))


def parse(arguments: Sequence[str]) -> tuple[dict[str, str], str | None, bool, Sequence[str]]:
    """(environment, program or None for help, whether it is a module, its arguments). Raises UsageError."""
    settings: dict[str, str] = {}
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if argument in ("-h", "--help"):
            return settings, None, False, ()
        if argument == "--":
            break
        if not argument.startswith("-"):
            return settings, argument, False, arguments[position:]
        if argument.startswith("-m"):
            module, position = _value("-m", argument.removeprefix("-m"), arguments, position)
            return settings, module, True, arguments[position:]
        option, _, given = argument.partition("=")
        variable = _VARIABLES.get(option)
        if variable is None:
            raise UsageError(f"no such option: {option}")
        settings[variable], position = _value(option, given, arguments, position)
    if position < len(arguments):
        return settings, arguments[position], False, arguments[position + 1 :]
    raise UsageError("a program is missing")


def _value(option: str, given: str, arguments: Sequence[str], position: int) -> tuple[str, int]:
    if given:
        return given, position
    if position == len(arguments):
        raise UsageError(f"option {option} needs a value")
    return arguments[position], position + 1


def run_program(path: str, arguments: list[str]) -> None:
    """Run a script (or a folder or zip file with `__main__.py`), as `python PATH` does.

    The name of a command that is a Python script, as pip installs them (`gunicorn`), stands for its path.
    """
    path = _command(path) or path
    sys.argv[:] = [path, *arguments]
    absolute = os.path.join(os.getcwd(), path)
    if os.path.isdir(path) or _is_zip(path):
        _replace_first_path(absolute)
        _run_main_module("__main__", alter_argv=False)
        return
    _replace_first_path(os.path.dirname(os.path.realpath(path)))
    try:
        with io.open_code(absolute) as file:
            source = file.read()
    except OSError as error:
        # The words and the status of python itself.
        print(f"ntcp run: can't open file {path!r}: [Errno {error.errno}] {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None
    namespace = _new_main(absolute).__dict__
    # dont_inherit: the program must not get this file's own `from __future__`.
    _execute(lambda: exec(compile(source, absolute, "exec", dont_inherit=True), namespace))


def run_module(name: str, arguments: list[str]) -> None:
    """Run a module, as `python -m NAME` does."""
    sys.argv[:] = ["-m", *arguments]
    _replace_first_path(os.getcwd())
    _run_main_module(name, alter_argv=True)


def _run_main_module(name: str, *, alter_argv: bool) -> None:
    import runpy

    # What the interpreter itself calls, by this name, for `-m` and for folders; unlike run_module it
    # leaves the program's `__main__` in place for threads that outlive it.
    run_module_as_main: Callable[[str, bool], object] = vars(runpy)["_run_module_as_main"]
    _new_main(None)
    _execute(lambda: run_module_as_main(name, alter_argv))


def _new_main(path: str | None) -> types.ModuleType:
    """A fresh `__main__` that stays: threads that outlive the script may still ask for it."""
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    if path is not None:
        module.__dict__.update(__file__=path, __cached__=None, __loader__=SourceFileLoader("__main__", path))
    sys.modules["__main__"] = module
    return module


def _replace_first_path(folder: str) -> None:
    # Python itself leaves sys.path alone under -P and PYTHONSAFEPATH.
    if not sys.flags.safe_path:
        sys.path[0] = folder


def _command(name: str) -> str | None:
    """The path of the command `name`, where no file here is called so and the command is a Python script."""
    if os.path.dirname(name) or os.path.exists(name):
        return None
    import shutil

    # Those of the virtual environment that this is, whether it is activated or not.
    here = os.path.dirname(os.path.abspath(sys.executable))
    path = shutil.which(name, path=os.pathsep.join([here, os.environ.get("PATH", os.defpath)]))
    if path is None:
        return None
    with open(path, "rb") as file:
        lines = (file.readline(200), file.readline(200))
    # Where the interpreter's path is long, pip has a shell start it in the second line.
    return path if lines[0].startswith(b"#!") and any(b"python" in line for line in lines) else None


def _is_zip(path: str) -> bool:
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        if file.read(2) != b"PK":
            return False
    import zipfile

    return zipfile.is_zipfile(path)


def _execute(run: Callable[[], object]) -> None:
    """Call `run` with python's manners at the end: a traceback from the program's first frame on, exit
    status 1, and death by SIGINT after Ctrl-C."""
    try:
        run()
    except SystemExit:
        raise
    except BaseException as error:
        traceback = error.__traceback__
        while traceback is not None and traceback.tb_frame.f_code.co_filename == __file__:
            traceback = traceback.tb_next
        error.__traceback__ = traceback
        sys.excepthook(type(error), error, traceback)
        status = _die_at_exit() if isinstance(error, KeyboardInterrupt) else 1
        raise SystemExit(status) from None


def _die_at_exit() -> int:
    """Have the process die of SIGINT once the program's own exit handlers have run.

    A shell tells a program that was interrupted from one that failed by the signal.
    """
    _interrupted.append(os.getpid())
    return 130


_interrupted: list[int] = []


def _die_if_interrupted() -> None:
    if _interrupted != [os.getpid()]:
        return
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
