"""gunicorn: forked workers that share a listener by name, three kinds of them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from program_support import free_port, run
from web_support import WAIT, WSGI_APP, ask, serving

from ntcpsock.cli.stage import Stage, open_loopback_stage

pytest.importorskip("gunicorn", reason="gunicorn is not installed")
pytest.importorskip("httpx", reason="httpx is not installed")

PIDS = (
    WAIT
    + """
import sys
from urllib.request import urlopen

url, count = sys.argv[1], int(sys.argv[2])
wait_until_up("alice.ntcp", int(url.rpartition(":")[2]))
pids = set()
while len(pids) < count:
    pids.add(urlopen(url + "/pid", timeout=60).read())
print(len(pids))
"""
)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


@pytest.mark.parametrize(
    "worker",
    ["sync", pytest.param("gthread", marks=pytest.mark.slow), pytest.param("gevent", marks=pytest.mark.slow)],
)
def test_workers_bound_to_a_name(stage: Stage, tmp_path: Path, worker: str) -> None:
    if worker == "gevent":
        pytest.importorskip("gevent", reason="gevent is not installed")
    (tmp_path / "app.py").write_text(WSGI_APP)
    words = ["gunicorn", "app:app", "-b", "alice.ntcp:8000", "-w", "2", "-k", worker, "--threads", "4"]
    with serving(stage, tmp_path, "alice", *words):
        ask(stage, tmp_path, "http://alice.ntcp:8000")
        assert run(stage, tmp_path, "counter", PIDS, "http://alice.ntcp:8000", "2") == ["2"]


def test_published_with_tls_inside_and_reloaded(stage: Stage, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "app.py").write_text(WSGI_APP)
    words = ["gunicorn", "app:app", "-b", f"0.0.0.0:{port}", "-w", "2", "-k", "gthread"]
    tls = ["--certfile", "certificate.pem", "--keyfile", "key.pem"]
    with serving(stage, tmp_path, "alice", *words, *tls) as server:
        ask(stage, tmp_path, f"https://alice.ntcp:{port}")
        server.process.send_signal(signal.SIGHUP)  # new workers on the same listener
        ask(stage, tmp_path, f"https://alice.ntcp:{port}")
