"""flask: werkzeug's server with threads, bound to a name and published, with TLS inside, and its reloader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from program_support import PAYLOAD, free_port
from web_support import ask, edit_and_ask, serving, watched_folder

from ntcpsock.cli.stage import Stage, open_loopback_stage

pytest.importorskip("flask", reason="flask is not installed")
pytest.importorskip("httpx", reason="httpx is not installed")

APP = (
    PAYLOAD
    + """
import os
from flask import Flask, request

app = Flask(__name__)

@app.get("/payload")
def payload():
    return PAYLOAD

@app.post("/digest")
def digest():
    return hashlib.sha256(request.get_data()).hexdigest()

@app.get("/stream")
def stream():
    return (PAYLOAD[at : at + 10_000] for at in range(0, 1_000_000, 10_000))

@app.get("/pid")
def pid():
    return str(os.getpid())
"""
)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


def test_bound_to_a_name(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    with serving(stage, tmp_path, "alice", "flask", "run", "--host", "alice.ntcp", "--port", "8000"):
        ask(stage, tmp_path, "http://alice.ntcp:8000")


@pytest.mark.slow
def test_published_with_tls_inside(stage: Stage, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "app.py").write_text(APP)
    words = ["-m", "flask", "run", "--host", "0.0.0.0", "--port", str(port)]
    with serving(stage, tmp_path, "alice", *words, "--cert", "certificate.pem", "--key", "key.pem"):
        ask(stage, tmp_path, f"https://alice.ntcp:{port}")


def test_reload(stage: Stage, tmp_path: Path) -> None:
    """The parent binds, and the child that serves gets the descriptor's number in its environment."""
    watched = watched_folder(tmp_path, APP)
    words = ["flask", "run", "--host", "alice.ntcp", "--port", "8000", "--debug"]
    with serving(stage, watched, "alice", *words) as server:
        edit_and_ask(stage, tmp_path, watched)
        assert server.log.count("Detected change") == 1, server.log
