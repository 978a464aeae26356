"""curl behind one NAT reaches http.server behind another, by `ntcp expose` there and `ntcp proxy` or `forward` here."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ntcpsock.cli.lab import open_lab_stage
from ntcpsock.cli.stage import NTCP, Stage, stop
from ntcpsock.testing.natlab import Host, Lab, namespaces_available

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(namespaces_available() is not None, reason=str(namespaces_available())),
    pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here"),
]

DEADLINE = 120


@pytest.fixture
def behind_nats(tmp_path: Path) -> Iterator[tuple[Lab, Stage, ExitStack]]:
    with open_lab_stage("default", "reject", 0.025) as (lab, stage), ExitStack() as stack:
        (tmp_path / "file.bin").write_bytes(os.urandom(300_000))
        start(
            lab.host_b,
            stack,
            stage.environment("www", PYTHONUNBUFFERED="1"),
            sys.executable,
            "-m",
            "http.server",
            "8080",
            "--directory",
            str(tmp_path),
        )
        command(lab.host_b, stack, stage.environment("web"), "expose", "web:80", "--to", "8080")
        yield lab, stage, stack


def start(host: Host, stack: ExitStack, environment: dict[str, str], *argv: str) -> subprocess.Popen[str]:
    """A process in a host, and its first line: that it is ready."""
    process = host.popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    stack.callback(process.stdout.close)
    stack.callback(stop, process)
    assert "Serving" in process.stdout.readline()
    return process


class Running:
    """A command in a host. Its event lines are read as they come: a full pipe would stop it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        self._reader.start()
        self.listening = self.event("listening")

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr as stderr:
            for line in stderr:
                self._lines.put(line)

    def event(self, name: str) -> dict[str, Any]:
        while True:
            event: dict[str, Any] = json.loads(self._lines.get(timeout=DEADLINE))
            assert event["event"] != "error", event
            if event["event"] == name:
                return event

    def join(self) -> None:
        self._reader.join(DEADLINE)


def command(host: Host, stack: ExitStack, environment: dict[str, str], *argv: str) -> Running:
    process = host.popen(
        [*NTCP, *argv, "--json"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    stack.callback(stop, process)
    running = Running(process)
    stack.callback(running.join)
    stack.callback(stop, process)
    return running


def curl(host: Host, *arguments: str) -> list[str]:
    process = host.popen(
        ["curl", "--silent", "--show-error", "--max-time", str(DEADLINE), *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        output: str = process.communicate(timeout=DEADLINE)[0]
    finally:
        stop(process)
    return output.split()


def test_fifty_downloads_through_the_proxy(behind_nats: tuple[Lab, Stage, ExitStack]) -> None:
    lab, stage, stack = behind_nats
    proxy = command(lab.host_a, stack, stage.environment("caller"), "proxy")
    downloads = curl(
        lab.host_a,
        "--no-progress-meter",
        "--parallel",
        "--parallel-immediate",
        "--parallel-max",
        "50",
        "--proxy",
        "socks5h://127.0.0.1:1080",
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code}:%{size_download}\n",
        "http://web.ntcp/file.bin?[1-50]",
    )
    assert downloads == ["200:300000"] * 50
    opened = proxy.event("opened")
    assert (opened["kind"], opened["technique"], opened["peer"]["name"]) == ("tcp", "tcp-open", "web")


def test_forward(behind_nats: tuple[Lab, Stage, ExitStack]) -> None:
    lab, stage, stack = behind_nats
    forward = command(lab.host_a, stack, stage.environment("caller"), "forward", "8000", "web:80")
    (answer,) = curl(
        lab.host_a,
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code}:%{size_download}",
        "http://127.0.0.1:8000/file.bin",
    )
    assert answer == "200:300000"
    opened = forward.event("opened")
    assert (opened["kind"], opened["technique"]) == ("tcp", "tcp-open")
    # Warm nodes: three path round trips of 100 ms, and a busy machine.
    assert opened["seconds"] < 5
    assert forward.event("closed")["broken_by"] is None
