"""uvicorn: on asyncio's loop and on uvloop, with workers that it spawns, with TLS inside, and its reloader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from program_support import free_port
from web_support import ASGI_APP, TLS, ask, edit_and_ask, serving, watched_folder

from ntcpsock.cli.stage import Stage, open_loopback_stage

pytest.importorskip("uvicorn", reason="uvicorn is not installed")
pytest.importorskip("httpx", reason="httpx is not installed")

# Both ways in each test; the slow ones are all run by `make test-all`.
BOTH = ["asyncio", pytest.param("uvloop", marks=pytest.mark.slow)]
BOTH_REVERSED = [pytest.param("asyncio", marks=pytest.mark.slow), "uvloop"]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_bound_to_a_name(stage: Stage, tmp_path: Path, loop: str) -> None:
    (tmp_path / "app.py").write_text(ASGI_APP)
    words = ["uvicorn", "app:app", "--host", "alice.ntcp", "--port", "8000", "--loop", loop]
    with serving(stage, tmp_path, "alice", *words) as server:
        ask(stage, tmp_path, "http://alice.ntcp:8000")
    assert "shut down" in server.log


@pytest.mark.parametrize("loop", BOTH)
def test_published_with_tls_inside(stage: Stage, tmp_path: Path, loop: str) -> None:
    port = free_port()
    (tmp_path / "app.py").write_text(ASGI_APP)
    words = ["-m", "uvicorn", "app:app", "--host", "0.0.0.0", "--port", str(port), "--loop", loop]
    with serving(stage, tmp_path, "alice", *words, *TLS):
        ask(stage, tmp_path, f"https://alice.ntcp:{port}")


@pytest.mark.parametrize("loop", BOTH_REVERSED)
def test_spawned_workers(stage: Stage, tmp_path: Path, loop: str) -> None:
    (tmp_path / "app.py").write_text(ASGI_APP)
    words = ["uvicorn", "app:app", "--host", "alice.ntcp", "--port", "8000", "--loop", loop, "--workers", "2"]
    with serving(stage, tmp_path, "alice", *words):
        ask(stage, tmp_path, "http://alice.ntcp:8000")


@pytest.mark.parametrize("loop", BOTH)
def test_reload(stage: Stage, tmp_path: Path, loop: str) -> None:
    """The listener is the parent's; the child that serves is replaced when the program is edited."""
    watched = watched_folder(tmp_path, ASGI_APP)
    words = ["uvicorn", "app:app", "--host", "alice.ntcp", "--port", "8000", "--loop", loop, "--reload"]
    with serving(stage, watched, "alice", *words):
        edit_and_ask(stage, tmp_path, watched)
