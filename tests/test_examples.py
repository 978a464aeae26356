"""Each example runs, over loopback with a real `ntcp serve`."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import IO

import pytest
from service_support import tcp_service

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


@contextmanager
def background(argv: list[str], environment: dict[str, str], ready: str) -> Iterator[IO[str]]:
    """A server of an example, from its first line on; the rest of what it prints."""
    server = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        assert server.stdout.readline() == ready
        yield server.stdout
    finally:
        stop(server)
        server.stdout.close()


def test_http_by_name_in_the_program(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<p>it works</p>")
    server = [sys.executable, str(EXAMPLES / "http_server.py"), "site.ntcp", "8000", str(tmp_path)]
    client = [sys.executable, str(EXAMPLES / "http_client.py")]
    with background(server, stage.environment("site"), "http://site.ntcp:8000/\n"):
        output = run([*client, "http://site.ntcp:8000/"], stage.environment("browser"))
        assert output == "<p>it works</p>200 text/html\n"
        done = subprocess.run(
            [*client, "http://site.ntcp:8001/"],
            env=stage.environment("browser"),
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "dialer of site:8001" in done.stderr


def test_echo_with_asyncio(stage: Stage) -> None:
    environment = stage.environment("echo-asyncio")
    output = run([sys.executable, str(EXAMPLES / "echo_asyncio.py")], environment)
    assert output == "10 answers, the last is 'hello 9'\n"


def test_file_transfer(stage: Stage, tmp_path: Path) -> None:
    files = {f"file-{number}.bin": os.urandom(size) for number, size in enumerate((0, 1, 3_000_000))}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    inbox = tmp_path / "inbox"
    program = [sys.executable, str(EXAMPLES / "file_transfer.py")]
    with background(
        [*program, "receive", "inbox.ntcp:9000", str(inbox)],
        stage.environment("inbox"),
        f"files sent to inbox.ntcp:9000 go to {inbox}\n",
    ):
        paths = [str(tmp_path / name) for name in files]
        output = run([*program, "send", "inbox.ntcp:9000", *paths], stage.environment("sender"))
    for name, data in files.items():
        assert f"received {name} {hashlib.sha256(data).hexdigest()}" in output
        assert (inbox / name).read_bytes() == data
    assert "B/s" in output
    assert sorted(path.name for path in inbox.iterdir()) == sorted(files)


def test_expose_ssh(stage: Stage) -> None:
    banner = b"SSH-2.0-example\r\n"
    scripts = str(Path(sys.executable).parent)

    def environment(node: str, **more: str) -> dict[str, str]:
        return stage.environment(node, PATH=f"{scripts}:{os.environ['PATH']}", **more)

    with tcp_service(lambda connection: connection.sendall(banner)) as port:
        exposed = subprocess.Popen(
            ["sh", str(EXAMPLES / "expose_ssh.sh"), "box", "--allow", "laptop"],
            env=environment("box", SSH_ADDRESS=f"127.0.0.1:{port}"),
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert exposed.stderr is not None
            assert f"127.0.0.1:{port} is box.ntcp:22" in exposed.stderr.readline()
            # What ssh runs as its ProxyCommand.
            words = ["ntcp", "connect", "--name", "laptop", "box.ntcp:22"]
            done = subprocess.run(
                words,
                env=environment("laptop"),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=DEADLINE,
                check=True,
            )
            assert done.stdout == banner
        finally:
            stop(exposed)
            exposed.stderr.close()  # type: ignore[union-attr]
    assert exposed.returncode == 0


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
    assert "B/s" in output


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
        "keep_alive",
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
        if command in ("listen", "run"):
            continue
        done = subprocess.run([*NTCP, command, "--help"], capture_output=True, check=False)
        assert done.returncode == 0, command
