"""gevent: its sockets replace ours, which a clear word says; through `ntcp expose` and `forward` it works."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from program_support import DEADLINE, NTCP, PAYLOAD, environment
from service_support import Command

from ntcpsock.cli.stage import Stage, open_loopback_stage, stop

pytest.importorskip("gevent", reason="gevent is not installed")

SERVER = """
from gevent import monkey
monkey.patch_all()
import hashlib
from gevent.server import StreamServer

def handle(connection, address):
    digest = hashlib.sha256()
    while data := connection.recv(65536):
        digest.update(data)
    connection.sendall(digest.hexdigest().encode())

server = StreamServer(("127.0.0.1", 0), handle)
server.start()
print(server.server_port, flush=True)
server.serve_forever()
"""

CLIENT = (
    """
from gevent import monkey
monkey.patch_all()
"""
    + PAYLOAD
    + """
import gevent, socket, sys

def ask(data):
    with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 60) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

assert ask(PAYLOAD) == DIGEST
tasks = [gevent.spawn(ask, bytes([number])) for number in range(20)]
gevent.joinall(tasks)
print(len({task.value for task in tasks}))
"""
)

PATCHED_AWAY = """
from gevent import monkey
monkey.patch_all()
import socket
try:
    socket.create_connection(("alice.ntcp", 8000), 60)
except socket.gaierror as error:
    print("gaierror")
# What has no name is gevent's business, and works.
with socket.create_server(("127.0.0.1", 0)) as server:
    with socket.create_connection(server.getsockname()) as client:
        client.sendall(b"hello")
        connection, address = server.accept()
        print(connection.recv(10).decode())
        connection.close()
"""

TOO_LATE = """
from gevent import monkey
monkey.patch_all()
import errno, ntcpsock
for attempt in (ntcpsock.install, lambda: ntcpsock.NTCPSocket().connect(("alice.ntcp", 8000))):
    try:
        attempt()
    except OSError as error:
        print(error.errno == errno.EOPNOTSUPP, "ntcp forward" in str(error))
"""


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


def execute(stage: Stage, argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, env=environment(stage, "bob"), capture_output=True, text=True, timeout=DEADLINE, check=True
    )


def test_through_exposed_and_forwarded_ports(stage: Stage) -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        port = server.stdout.readline().strip()
        with (
            Command(stage, "alice", "expose", "alice:8000", "--to", port),
            Command(stage, "bob", "forward", "0", "alice:8000") as forward,
        ):
            done = execute(stage, [sys.executable, "-c", CLIENT, str(forward.place[1])])
    finally:
        stop(server)
        server.stdout.close()
    assert (done.stdout, done.stderr) == ("20\n", "")


def test_its_patch_over_ours_is_told(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PATCHED_AWAY)
    done = execute(stage, [*NTCP, "run", str(tmp_path / "program.py")])
    assert done.stdout == "gaierror\nhello\n"
    warning = done.stderr.splitlines()[0]
    assert warning.startswith(f"{tmp_path / 'program.py'}:3: PatchWarning: gevent's monkey patching")
    assert "`ntcp forward PORT NAME:PORT`" in warning


def test_ours_over_its_patch_is_refused(stage: Stage) -> None:
    done = execute(stage, [sys.executable, "-c", TOO_LATE])
    assert (done.stdout, done.stderr) == ("True True\nTrue True\n", "")
