"""hypercorn: on asyncio and on trio, HTTP/1 and HTTP/2, with TLS inside and with workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from program_support import free_port
from web_support import ASGI_APP, ask, serving

from ntcpsock.cli.stage import Stage, open_loopback_stage

pytest.importorskip("hypercorn", reason="hypercorn is not installed")
pytest.importorskip("httpx", reason="httpx is not installed")


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


@pytest.mark.parametrize("worker", ["trio", "asyncio", pytest.param("uvloop", marks=pytest.mark.slow)])
def test_bound_to_a_name(stage: Stage, tmp_path: Path, worker: str) -> None:
    (tmp_path / "app.py").write_text(ASGI_APP)
    words = ["hypercorn", "app:app", "-b", "alice.ntcp:8000", "-k", worker]
    with serving(stage, tmp_path, "alice", *words) as server:
        ask(stage, tmp_path, "http://alice.ntcp:8000")
    assert "shut down" in server.log


@pytest.mark.parametrize("worker", ["trio", pytest.param("asyncio", marks=pytest.mark.slow)])
def test_published_with_workers_and_tls_inside(stage: Stage, tmp_path: Path, worker: str) -> None:
    port = free_port()
    (tmp_path / "app.py").write_text(ASGI_APP)
    words = ["hypercorn", "app:app", "-b", f"0.0.0.0:{port}", "-k", worker, "-w", "2"]
    tls = ["--certfile", "certificate.pem", "--keyfile", "key.pem"]
    with serving(stage, tmp_path, "alice", *words, *tls):
        ask(stage, tmp_path, f"https://alice.ntcp:{port}")
