"""Programs of their own with a server, a client and an accepted connection by name, over fake nodes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HEAD = """
import os, signal, socket, sys, threading, time
sys.path.insert(0, {tests!r})
import ntcpsock
from fake_node import FakeNetwork
from ntcpsock import _portal
network = FakeNetwork(encrypted={encrypted})
_portal.node_opener = network.open_node

def pair():
    client = ntcpsock.create_connection(("alice.ntcp", 8000), timeout=20)
    accepted, _ = server.accept()
    return client, accepted

server = ntcpsock.create_server(("alice.ntcp", 8000))
client, accepted = pair()
"""


def run(body: str, tmp_path: Path, *, encrypted: bool = False) -> subprocess.CompletedProcess[str]:
    """Run `body` behind HEAD. encrypted: with real streams, and so with the pump's own thread."""
    program = HEAD.format(tests=str(Path(__file__).parent), encrypted=encrypted) + body
    return subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={
            "PATH": "/usr/bin:/bin",
            "NTCP_STATE": str(tmp_path),
            "PYTHONPATH": str(Path(__file__).parent.parent),
        },
    )
