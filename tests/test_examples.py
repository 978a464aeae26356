"""Each example runs, over loopback with a real `ntcp serve`."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from ntcpsock._config import Config, read_file
from ntcpsock.cli.stage import Stage, open_loopback_stage, stop
from ntcpsock.testing.natlab import namespaces_available

EXAMPLES = Path(__file__).parent.parent / "examples"
NTCP = [sys.executable, "-m", "ntcpsock"]
DEADLINE = 90


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


def run(argv: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        argv, env=environment, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_echo_with_plain_sockets(stage: Stage) -> None:
    server = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "echo_server.py"), "echo.ntcp", "7000"],
        env=stage.environment("echo-server"),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "echo on echo.ntcp:7000\n"
        client = [sys.executable, str(EXAMPLES / "echo_client.py"), "echo.ntcp", "7000"]
        for words in ("hello there", "and again"):
            output = run([*client, words], stage.environment("echo-client"))
            assert output.startswith(f"{words}\n")
            assert "path by" in output
    finally:
        stop(server)
        server.stdout.close()  # type: ignore[union-attr]


def test_echo_with_trio(stage: Stage) -> None:
    output = run([sys.executable, str(EXAMPLES / "echo_trio.py")], stage.environment("echo-trio"))
    assert "client: 'hello from trio'" in output


def test_http_server_and_download_unmodified(stage: Stage, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "file.bin").write_bytes(data)
    folder = str(tmp_path / "www")
    server = subprocess.Popen(
        [*NTCP, "run", "-m", "http.server", "8000", "--bind", "web.ntcp", "--directory", folder],
        env=stage.environment("web", PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        assert "Serving HTTP" in server.stdout.readline()
        report = tmp_path / "report.jsonl"
        target = tmp_path / "got.bin"
        url = "http://web.ntcp:8000/file.bin"
        client = [*NTCP, "run", "--report", str(report), str(EXAMPLES / "download.py"), url, str(target)]
        digest, size, _ = run(client, stage.environment("downloader")).split()
    finally:
        stop(server)
        server.stdout.close()  # type: ignore[union-attr]
    assert digest == hashlib.sha256(data).hexdigest()
    assert int(size) == len(data)
    assert target.read_bytes() == data
    (line,) = report.read_text().splitlines()
    assert '"event": "connected"' in line
    assert '"web"' in line


def demo(*options: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NTCP_")}
    return run(
        [sys.executable, str(EXAMPLES / "demo.py"), "--megabytes", "3", *options],
        {**environment, "COLUMNS": "100", "TERM": "dumb"},
    )


def test_demo_over_loopback() -> None:
    output = demo("--loopback")
    assert "No NATs this time" in output
    assert "identical" in output
    assert "MB/s" in output


@pytest.mark.lab
@pytest.mark.skipif(namespaces_available() is not None, reason=str(namespaces_available()))
def test_demo_in_the_lab() -> None:
    output = demo()
    assert "tcp by tcp-open" in output
    assert "identical" in output
    assert "round trips of the path" in output
    assert "█" in output


def test_settings_file_names_every_setting() -> None:
    path = EXAMPLES / "ntcp.toml"
    settings = read_file(path)
    assert list(settings) == [entry.name for entry in fields(Config)]
    config = Config(**settings)
    default = Config()
    for name in (
        "stun",
        "techniques",
        "connect_timeout",
        "broker_timeout",
        "keep_alive_interval",
        "warm_ports",
    ):
        assert getattr(config, name) == getattr(default, name), f"{name}: the file says it shows the default"


def test_settings_file_comments_every_setting() -> None:
    text = (EXAMPLES / "ntcp.toml").read_text()
    blocks = [
        block
        for block in re.split(r"\n\s*\n", text)
        if not all(s.startswith("#") for s in block.splitlines())
    ]
    assert len(blocks) == len(tomllib.loads(text))
    for block in blocks:
        *comments, last = block.strip().splitlines()
        setting = last.partition(" ")[0]
        variable = {"state_dir": "NTCP_STATE"}.get(setting, f"NTCP_{setting.upper()}")
        assert comments, setting
        assert all(line.startswith("#") for line in comments), setting
        assert any(variable in line for line in comments), f"{setting}: its comment names {variable}"


def test_readme_names_what_exists() -> None:
    readme = (EXAMPLES.parent / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", readme):
        assert (EXAMPLES.parent / target).exists(), target
    for command in re.findall(r"`ntcp (\w+)", readme):
        if command in ("doctor", "listen", "run"):
            continue
        done = subprocess.run([*NTCP, command, "--help"], capture_output=True, check=False)
        assert done.returncode == 0, command
