"""The recipes of the pages about libraries do what they say: their programs, and the commands around them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ntcpsock.cli.stage import Stage, open_loopback_stage, stop

GUIDE = Path(__file__).parent.parent / "docs" / "guide"
PAGES = ("libraries.md", "web.md")
DEADLINE = 90.0
NEEDS = {
    "ssh and sftp": ("asyncssh", "paramiko"),
    "FTP": ("pyftpdlib",),
    "Redis": ("redis",),
    "gRPC": ("grpc",),
    "ZeroMQ": ("zmq",),
    "trio's own functions": ("trio",),
    "Twisted": ("twisted",),
    "Tornado": ("tornado",),
    "gunicorn": ("gunicorn", "requests"),
    "uvicorn": ("uvicorn", "uvloop", "urllib3"),
    "hypercorn": ("hypercorn", "httpx"),
    "flask": ("flask", "httpx"),
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


SECTIONS = {
    title: body
    for page in PAGES
    for title, body in re.findall(
        r"^## (.+?)\n(.*?)(?=^## |\Z)", (GUIDE / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    if blocks(body, "python")
}

# Where nothing else is said: each program on its machine.
PAIR = "alice$  python server.py\naway$  python client.py\n"


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


def environment(stage: Stage, node: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return stage.environment(node, NO_PROXY="*", no_proxy="*", PATH=path)


@pytest.mark.parametrize("title", SECTIONS)
def test_recipe(stage: Stage, tmp_path: Path, title: str) -> None:
    for module in NEEDS.get(title, (title,)):
        pytest.importorskip(module, reason=f"{module} is not installed")
    if title == "Redis" and shutil.which("redis-server") is None:
        pytest.skip("no redis-server here")
    body = SECTIONS[title]
    for program in blocks(body, "python"):
        (name,) = re.findall(r"\A# (\w+\.py)\n", program)
        (tmp_path / name).write_text(program)
    commands = re.findall(r"^(\w+)\$  (.+)$", "".join(blocks(body, "console")) or PAIR, flags=re.MULTILINE)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(open(tmp_path / "log", "wb"))
        for machine, command in commands[:-1]:
            process = subprocess.Popen(
                ["sh", "-c", f"exec {command}"],
                cwd=tmp_path,
                env=environment(stage, machine),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            stack.callback(stop, process)
        done = run_until_it_works(stage, tmp_path, *commands[-1])
    (expected,) = blocks(body, "text")
    assert done.stdout == expected, done.stderr + (tmp_path / "log").read_text()


def run_until_it_works(
    stage: Stage, folder: Path, machine: str, command: str
) -> subprocess.CompletedProcess[str]:
    """Programs in a guide do not say that they are ready: ask again until they are."""
    deadline = time.monotonic() + DEADLINE
    while True:
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=folder,
            env=environment(stage, machine),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        if (done.returncode == 0 and done.stdout) or time.monotonic() > deadline:
            return done
