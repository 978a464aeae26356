"""`ntcp run --name alice -m http.server` and a child of `ntcp run` that fetches from it, over `ntcp serve`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

from sync_support import wait_until

NTCP = [sys.executable, "-m", "ntcpsock"]
FETCH = "import urllib.request as u; print(u.urlopen('http://alice.ntcp:{port}/page', timeout=60).read())"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def test_a_wildcard_server_is_reached_by_name_and_as_before(tmp_path: Path) -> None:
    (tmp_path / "page").write_text("hello")
    port = free_port()
    (tmp_path / "program.py").write_text(
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {FETCH.format(port=port)!r}])\n"
    )
    ports = ["--broker-port", "0", "--stun-port", "0", "--other-stun-port", "0"]
    serve = [*NTCP, "serve", "--listen", "127.0.0.1", *ports, "--state-dir", str(tmp_path / "serve")]
    log = tmp_path / "log"
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as servers, log.open("w") as errors:
        try:
            assert servers.stdout is not None
            environment = {**os.environ, "NTCP_BROKER": servers.stdout.readline().split()[1]}
            alice = [*NTCP, "run", "--name", "alice", "--state-dir", "alice", "-m", "http.server", str(port)]
            with subprocess.Popen(alice, cwd=tmp_path, env=environment, stdout=errors, stderr=errors) as web:
                try:
                    fetch = [*NTCP, "run", "--state-dir", "bob", "program.py"]

                    def fetched() -> bool:  # the name is registered in the background
                        done = subprocess.run(
                            fetch, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
                        )
                        return done.stdout == "b'hello'\n"

                    wait_until(fetched)
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/page", timeout=60) as answer:
                        assert answer.read() == b"hello"
                finally:
                    web.terminate()
        finally:
            servers.terminate()
    assert "127.0.0.1 - - " in log.read_text()
