"""The documentation builds without a warning, its links lead somewhere, and its recipes do what they say."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from alice_certificate import make_certificate

from ntcpsock import _errors
from ntcpsock.cli.stage import Stage, open_loopback_stage, stop

ROOT = Path(__file__).parent.parent
DEADLINE = 90.0

RECIPES = (ROOT / "docs" / "guide" / "recipes.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


SECTIONS = {
    title: body
    for title, body in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", RECIPES, flags=re.DOTALL | re.MULTILINE)
    if blocks(body, "python")
}


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


@pytest.mark.parametrize("title", SECTIONS)
def test_recipes(stage: Stage, tmp_path: Path, title: str) -> None:
    server, client = blocks(SECTIONS[title], "python")
    (expected,) = blocks(SECTIONS[title], "text")
    assert server.startswith("# server.py\n")
    assert client.startswith("# client.py\n")
    (tmp_path / "server.py").write_text(server)
    (tmp_path / "client.py").write_text(client)
    make_certificate(tmp_path)
    with open(tmp_path / "server.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "server.py"],
            cwd=tmp_path,
            env=environment(stage, "alice"),
            stdout=log,
            stderr=log,
        )
    try:
        done = run_until_it_works(stage, tmp_path, process)
    finally:
        stop(process)
    assert done.stdout == expected, done.stderr + (tmp_path / "server.log").read_text()


def environment(stage: Stage, node: str) -> dict[str, str]:
    # A web proxy of this machine is of no use for names, as the guide says.
    return stage.environment(node, NO_PROXY="*", no_proxy="*")


def run_until_it_works(
    stage: Stage, folder: Path, server: subprocess.Popen[bytes]
) -> subprocess.CompletedProcess[str]:
    """Programs in a guide do not say that they are ready: ask again until the server is."""
    deadline = time.monotonic() + DEADLINE
    while True:
        done = subprocess.run(
            [sys.executable, "client.py"],
            cwd=folder,
            env=environment(stage, "caller"),
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        if done.returncode == 0 or time.monotonic() > deadline or server.poll() is not None:
            return done
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(0.2)


def build(target: Path, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(root / "docs" / "build.py"), str(target)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE,
        check=False,
    )


def test_site(tmp_path: Path) -> None:
    done = build(tmp_path / "site")
    assert (done.returncode, done.stderr) == (0, "")
    pages = {str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "design.html", "guide/recipes.html", "examples/echo_trio.py.html"} <= pages
    assert {"api/ntcpsock.html", "api/ntcpsock/trio.html", "api/ntcpsock/testing.html"} <= pages
    guide = (tmp_path / "site" / "guide" / "trouble.html").read_text()
    assert "<table>" in guide
    assert "```" not in re.sub(r"<[^>]+>", "", guide)
    api = (tmp_path / "site" / "api" / "ntcpsock.html").read_text()
    for word in ("NTCPSocket", "Config", "install", "patched", "NameNotFound"):
        assert f'id="{word}"' in api
    # What the standard library documents is not repeated.
    assert 'id="AF_INET"' not in api


def test_a_dead_link_is_an_error(tmp_path: Path) -> None:
    for name in ("docs", "examples"):
        (tmp_path / name).mkdir()
    for path in (
        *(ROOT / "docs").glob("*.*"),
        *(ROOT / "docs").glob("guide/*.md"),
        ROOT / "README.md",
        ROOT / "LICENSE",
    ):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    with open(tmp_path / "docs" / "guide" / "start.md", "a") as file:
        file.write("\n[nowhere](nowhere.md) [no section](recipes.md#cooking)\n")
    done = build(tmp_path / "site", tmp_path)
    assert done.returncode == 1
    assert "guide/start.html: nowhere.md leads nowhere" in done.stderr
    assert "recipes.html#cooking: no such section" in done.stderr


def test_the_guide_names_every_error() -> None:
    text = (ROOT / "docs" / "guide" / "trouble.md").read_text(encoding="utf-8")
    for name in set(_errors.__all__) - {"NTCPError", "BadMessage"}:
        assert f"| `{name}` |" in text, name
