"""The wheel, installed into an empty environment by pip, is all that a user needs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ntcpsock._version import __version__

ROOT = Path(__file__).parent.parent
DEADLINE = 240


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Without isolation: hatchling is among the dev dependencies, so this part needs no network.
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def ntcp(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `ntcp` of an environment with nothing but the wheel and its dependencies."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    done = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    if done.returncode != 0 and "connection" in done.stderr.lower():
        pytest.skip("no package index to be reached")
    assert done.returncode == 0, done.stderr
    return folder / "bin" / "ntcp"


@pytest.fixture
def serve(ntcp: Path, tmp_path: Path) -> Iterator[str]:
    ports = ["--broker-port", "0", "--stun-port", "0"]
    with subprocess.Popen(
        [str(ntcp), "serve", "--listen", "127.0.0.1", *ports, "--state-dir", str(tmp_path / "serve")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as process:
        assert process.stdout is not None
        word, broker = process.stdout.readline().split()
        assert word == "ready"
        yield broker
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 0


def environment(tmp_path: Path, node: str, **more: str) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("NTCP_", "PYTHON"))}
    return {**inherited, "NTCP_STATE": str(tmp_path / node), **more}


def test_wheel_holds_the_package_only(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"ntcpsock", f"ntcpsock-{__version__}.dist-info"}
    assert "ntcpsock/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_version(ntcp: Path, tmp_path: Path) -> None:
    python = ntcp.with_name("python")
    for command in ([str(ntcp)], [str(python), "-m", "ntcpsock"]):
        done = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, cwd=tmp_path, check=True
        )
        assert done.stdout == f"ntcp {__version__}\n"


def test_connection(ntcp: Path, serve: str, tmp_path: Path) -> None:
    with subprocess.Popen(
        [str(ntcp), "listen", "wheel:7000", "--json"],
        env=environment(tmp_path, "listener", NTCP_BROKER=serve),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as listener:
        assert listener.stdout is not None
        assert listener.stderr is not None
        assert json.loads(listener.stderr.readline())["event"] == "listening"
        done = subprocess.run(
            [str(ntcp), "connect", "wheel:7000", "--broker", serve],
            input="from an empty environment",
            env=environment(tmp_path, "dialer"),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        output = listener.stdout.read()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert listener.returncode == 0
    assert output == "from an empty environment"


def test_run(ntcp: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import socket, ntcpsock; print(socket.socket is ntcpsock.NTCPSocket)"
    )
    done = subprocess.run(
        [str(ntcp), "run", "program.py"],
        env=environment(tmp_path, "run"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "True\n"
