"""Children of a program under `ntcp run`: patched, with its settings, and like plain python otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from ntcpsock.cli.children import FOLDER, export

RUN = [sys.executable, "-m", "ntcpsock", "run"]
IS_OURS = "import socket; print(socket.socket.__name__)"


def run(
    argv: list[str], folder: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    inherited |= {"NTCP_STATE": str(folder / "state")} | (environment or {})
    return subprocess.run(
        argv, cwd=folder, env=inherited, capture_output=True, text=True, timeout=120, check=False
    )


def outcome(program: str, folder: Path, environment: dict[str, str] | None = None) -> str:
    (folder / "program.py").write_text(program)
    done = run([*RUN, "program.py"], folder, environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def python(code: str, *options: str) -> str:
    return f"import subprocess, sys\nsubprocess.run([sys.executable, *{options!r}, '-c', {code!r}], check=True)\n"


def test_subprocess_and_its_child(tmp_path: Path) -> None:
    assert outcome(python(IS_OURS), tmp_path) == "NTCPSocket\n"
    assert outcome(python(python(IS_OURS)), tmp_path) == "NTCPSocket\n"


def test_fork_and_exec(tmp_path: Path) -> None:
    program = f"""
import os, sys
if os.fork() == 0:
    {IS_OURS}
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-c", {IS_OURS!r}])
os.wait()
"""
    assert outcome(program, tmp_path) == "NTCPSocket\nNTCPSocket\n"


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(method: str, tmp_path: Path) -> None:
    program = f"""
import multiprocessing, socket
def work(queue):
    queue.put(socket.socket.__name__)
if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    queue = context.Queue()
    child = context.Process(target=work, args=(queue,))
    child.start()
    print(queue.get(timeout=60))
    child.join()
"""
    assert outcome(program, tmp_path) == "NTCPSocket\n"


@pytest.mark.parametrize("option", ["-S", "-E", "-I"])
def test_children_that_are_not_reached(option: str, tmp_path: Path) -> None:
    assert outcome(python(IS_OURS, option), tmp_path) == "socket\n"


def test_the_child_is_like_plain_python_otherwise(tmp_path: Path) -> None:
    code = (
        "import sys, threading; print(sys.path, threading.active_count(), 'trio' in sys.modules);"
        "import importlib.util; print(importlib.util.find_spec('no_such'));"
        "import sitecustomize; print(sitecustomize.__file__)"
    )
    (tmp_path / "sitecustomize.py").write_text("print('the own one', flush=True)\n")
    environment = {"PYTHONPATH": str(tmp_path)}
    plain = run([sys.executable, "-c", code], tmp_path, environment).stdout
    # It runs in the program itself as well, before that is patched, as in every python.
    assert outcome(python(code), tmp_path, environment) == "the own one\n" + plain


def test_a_child_without_a_hook_of_its_own(tmp_path: Path) -> None:
    code = "import sys\nprint('sitecustomize' in sys.modules)\ntry: import sitecustomize\nexcept ImportError: pass"
    program = [sys.executable, "-s", "-c", code]
    plain = run(program, tmp_path)
    assert outcome(python(code, "-s"), tmp_path) == plain.stdout


def test_a_hook_that_fails_is_told_as_python_tells_it(tmp_path: Path) -> None:
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "sitecustomize.py").write_text("1 / 0\n")
    environment = {"PYTHONPATH": str(tmp_path / "hooks")}
    argv = [sys.executable, "-c", IS_OURS]
    plain = run(argv, tmp_path, environment)
    export(environment)
    ours = run(argv, tmp_path, environment)
    assert "ZeroDivisionError" in plain.stderr
    assert ours.stderr == plain.stderr
    assert ours.stdout == "NTCPSocket\n"


def test_settings_are_inherited_wherever_the_child_runs(tmp_path: Path) -> None:
    code = "import os; print(os.environ['NTCP_NAME'], os.environ['NTCP_STATE'], os.environ['NTCP_BROKER'])"
    (tmp_path / "program.py").write_text(
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {code!r}], cwd='/', check=True)\n"
    )
    options = ["--name", "alice", "--state-dir", "mine", "--broker", "ntcp://192.0.2.1"]
    done = run([*RUN, *options, "program.py"], tmp_path)
    assert done.stdout == f"alice {tmp_path / 'mine'} ntcp://192.0.2.1\n"


def test_an_environment_without_ntcpsock(tmp_path: Path) -> None:
    venv.create(tmp_path / "other", symlinks=True)
    environment: dict[str, str] = {}
    export(environment)
    other = [str(tmp_path / "other" / "bin" / "python"), "-c", IS_OURS]
    done = run(other, tmp_path, environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "socket\n", "")


def test_python_path_of_the_program_stays() -> None:
    environment = {"PYTHONPATH": f"/one{os.pathsep}{os.pathsep}/two"}
    export(environment)
    export(environment)
    assert environment["PYTHONPATH"] == os.pathsep.join([FOLDER, "/one", "", "/two"])


def test_patching_costs_little(tmp_path: Path) -> None:
    """The bound is 30 ms on an idle machine; what is counted here is what no load can change: modules."""
    code = "import sys; print(*sys.modules)"
    plain = run([sys.executable, "-c", "import socket, threading, typing, weakref; " + code], tmp_path)
    environment: dict[str, str] = {}
    export(environment)
    ours = run([sys.executable, "-c", code], tmp_path, environment)
    more = set(ours.stdout.split()) - set(plain.stdout.split())
    assert len([name for name in more if not name.startswith("ntcpsock")]) < 12
    assert not more & {"dataclasses", "inspect", "logging", "ssl", "asyncio", "trio"}
