"""`ntcp run` must be python, but for the sockets: compared with python itself, program by program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ntcpsock.cli.run import UsageError, parse

RUN = [sys.executable, "-m", "ntcpsock", "run"]

PROGRAMS = {
    "arguments": "import sys; print(sys.argv[1:], __name__)",
    "first_path": "import sys; print(sys.path[0])",
    "sibling": "import helper; print(helper.WORD)",
    "main_module": "import sys, __main__; print(__main__.__file__, sys.modules['__main__'].__dict__ is globals())",
    "dunder": "print(__name__, __file__, __spec__, __package__)",
    "exit_zero": "import sys; sys.exit()",
    "exit_status": "import sys; sys.exit(7)",
    "exit_text": "import sys; sys.exit('the reason')",
    "traceback": "def broken():\n    return 1 / 0\n\nbroken()\n",
    "chained": "try:\n    {}['x']\nexcept KeyError as error:\n    raise ValueError('second') from error\n",
    "syntax_error": "print('never')\nx = = 1\n",
    "own_import_error": "import no_such_module_at_all\n",
    "own_hook": "import sys\nsys.excepthook = lambda *a: print('hook', a[0].__name__)\nraise RuntimeError\n",
    "exit_handlers": "import atexit\natexit.register(print, 'bye')\nraise RuntimeError('end')\n",
    "late_thread": (
        "import threading, sys, time\n"
        "def late():\n    threading.main_thread().join()\n    import __main__\n    print(__main__.WORD)\n"
        "WORD = 'still here'\nthreading.Thread(target=late).start()\n"
    ),
    "future": "def f(x: undefined_name): pass\n",  # our own `from __future__` must not leak in
    "options_after": "import sys; print(sys.argv)",
    "unicode": "# -*- coding: latin-1 -*-\nprint(len('\xe9'))\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("WORD = 'sibling'\n")
    return tmp_path


def outcome(argv: list[str], cwd: Path, **variables: str) -> tuple[int, str, str]:
    environment = {**os.environ, "NTCP_STATE": str(cwd / "state"), "PYTHONPATH": "", **variables}
    environment.pop("PYTHONPATH")
    done = subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", PROGRAMS)
def test_like_python(name: str, folder: Path) -> None:
    path = folder / f"{name}.py"
    path.write_bytes(PROGRAMS[name].encode("latin-1"))
    arguments = [path.name, "one", "--json", "-m", "--", "--broker"]
    assert outcome([*RUN, *arguments], folder) == outcome([sys.executable, *arguments], folder)


def test_relative_path_from_elsewhere_and_symlink(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "program.py").write_text("import helper, sys; print(helper.WORD, sys.argv[0], __file__)")
    (folder / "sub" / "link.py").symlink_to(folder / "program.py")
    for argument in ("../program.py", "link.py"):
        got = outcome([*RUN, argument], folder / "sub")
        assert got == outcome([sys.executable, argument], folder / "sub")


@pytest.mark.parametrize(
    "body",
    [
        "import sys, helper; print(sys.argv[1:], sys.argv[0], __name__, __spec__.name, sys.path[0])",
        "raise SystemExit(3)",
        "import does_not_exist",
    ],
)
def test_module_like_python(body: str, folder: Path) -> None:
    package = folder / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(body)
    (package / "inner.py").write_text(body)
    for module in ("package", "package.inner"):
        arguments = ["-m", module, "--x", "-m", "y"]
        assert outcome([*RUN, *arguments], folder) == outcome([sys.executable, *arguments], folder)


def test_module_that_is_missing(folder: Path) -> None:
    arguments = ["-m", "no_such_module"]
    assert outcome([*RUN, *arguments], folder) == outcome([sys.executable, *arguments], folder)


def test_program_that_is_missing(folder: Path) -> None:
    status, _, stderr = outcome([*RUN, "missing.py"], folder)
    assert status == 2
    assert stderr == "ntcp run: can't open file 'missing.py': [Errno 2] No such file or directory\n"


def test_a_command_that_is_a_python_script(folder: Path) -> None:
    """`ntcp run gunicorn`: what pip has put beside the interpreter or on the PATH, for want of a file here."""
    tools = folder / "tools"
    tools.mkdir()
    (tools / "serve-it").write_text(f"#!{sys.executable}\nimport sys; print(sys.argv[1:], sys.path[0])")
    (tools / "no-python").write_text("#!/bin/sh\nexit 7\n")
    for path in tools.iterdir():
        path.chmod(0o755)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}"}
    expected = (0, f"['-b', 'x'] {tools}\n", "")
    assert outcome([*RUN, "serve-it", "-b", "x"], folder, **environment) == expected
    status, _, stderr = outcome([*RUN, "no-python"], folder, **environment)
    assert (status, stderr.split(":")[0]) == (2, "ntcp run")
    (folder / "serve-it").write_text("print('the file here')")
    assert outcome([*RUN, "serve-it"], folder, **environment) == (0, "the file here\n", "")
    assert outcome([*RUN, "pip", "--version"], folder)[0] == 0


def test_folder_and_zip(folder: Path) -> None:
    (folder / "app").mkdir()
    (folder / "app" / "__main__.py").write_text("import sys, part; print(part.WORD, sys.argv, sys.path[0])")
    (folder / "app" / "part.py").write_text("WORD = 'part'")
    with zipfile.ZipFile(folder / "app.pyz", "w") as archive:
        for file in ("__main__.py", "part.py"):
            archive.write(folder / "app" / file, file)
    for argument in ("app", "app.pyz"):
        assert outcome([*RUN, argument, "x"], folder) == outcome([sys.executable, argument, "x"], folder)


def test_interrupt_kills_by_signal_after_exit_handlers(folder: Path) -> None:
    (folder / "program.py").write_text(
        "import atexit, sys, time\natexit.register(print, 'bye')\nprint('up', flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen(
        [*RUN, "program.py"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert stdout == "bye\n"
    assert stderr.splitlines()[-1] == "KeyboardInterrupt"
    assert "ntcpsock" not in stderr


def test_socket_is_ours(folder: Path) -> None:
    (folder / "program.py").write_text("import socket, ntcpsock; print(socket.socket is ntcpsock.NTCPSocket)")
    assert outcome([*RUN, "program.py"], folder) == (0, "True\n", "")


def test_parse() -> None:
    assert parse(["a.py", "--broker", "x"]) == ({}, "a.py", False, ["--broker", "x"])
    assert parse(["--broker", "ntcp://h", "--name=n", "a.py"]) == (
        {"NTCP_BROKER": "ntcp://h", "NTCP_NAME": "n"},
        "a.py",
        False,
        [],
    )
    assert parse(["--linger", "5", "a.py"]) == ({"NTCP_LINGER": "5"}, "a.py", False, [])
    assert parse(["-m", "http.server", "-m"]) == ({}, "http.server", True, ["-m"])
    assert parse(["-mhttp.server"]) == ({}, "http.server", True, [])
    assert parse(["--", "-odd.py", "x"]) == ({}, "-odd.py", False, ["x"])
    assert parse(["--help", "a.py"])[1] is None


@pytest.mark.parametrize("arguments", [[], ["--nonsense", "a.py"], ["--broker"], ["-m"], ["--"]])
def test_usage_errors(arguments: list[str], folder: Path) -> None:
    with pytest.raises(UsageError):
        parse(arguments)
    status, stdout, stderr = outcome([*RUN, *arguments], folder)
    assert (status, stdout) == (2, "")
    assert stderr.startswith("Usage: ntcp run")
