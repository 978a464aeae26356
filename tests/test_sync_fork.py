"""Fork before the engine has started, and while a connect is under way; each test is a program of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from process_support import run

GATED = """
import trio
from fake_node import FakeNode
gate = trio.Event()
dialling = threading.Event()
dial = FakeNode.open_stream
async def wait(self, name, port, **options):
    if name == "alice":
        dialling.set()
        await gate.wait()
    return await dial(self, name, port, **options)
FakeNode.open_stream = wait

def child_uses_names():
    network.listeners.clear()
    with ntcpsock.create_server(("bob.ntcp", 1)) as mine:
        one = ntcpsock.create_connection(("bob.ntcp", 1), timeout=20)
        two, _ = mine.accept()
        one.sendall(b"child")
        assert two.recv(10) == b"child"
        one.close()
        two.close()

def fork(work):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


@pytest.mark.parametrize("encrypted", [False, True])
def test_fork_during_a_blocking_connect(encrypted: bool, tmp_path: Path) -> None:
    body = f"""{GATED}
made = []
connecting = threading.Thread(target=lambda: made.append(ntcpsock.create_connection(("alice.ntcp", 8000), 30)))
connecting.start()
dialling.wait(20)
print(fork(child_uses_names))
_portal.get().soon(gate.set)
connecting.join()
other, _ = server.accept()
made[0].sendall(b"parent")
print(other.recv(10), made[0].peer.name)
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no child is left")
"""
    result = run(body, tmp_path, encrypted=encrypted)
    assert result.stderr == ""
    assert (result.returncode, result.stdout) == (0, "0\nb'parent' alice\nno child is left\n")


@pytest.mark.parametrize("encrypted", [False, True])
def test_fork_during_a_non_blocking_connect(encrypted: bool, tmp_path: Path) -> None:
    body = f"""{GATED}
import errno, select
sock = ntcpsock.NTCPSocket()
sock.setblocking(False)
assert sock.connect_ex(("alice.ntcp", 8000)) == errno.EINPROGRESS
dialling.wait(20)
def work():
    sock.close()  # the child's copy: the connect is the parent's
    child_uses_names()
print(fork(work))
poll = select.poll()
poll.register(sock, select.POLLIN | select.POLLOUT)
print(poll.poll(50))
_portal.get().soon(gate.set)
print(poll.poll(20000) == [(sock.fileno(), select.POLLOUT)], sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
other, _ = server.accept()
sock.sendall(b"parent")
print(other.recv(10))
"""
    result = run(body, tmp_path, encrypted=encrypted)
    assert result.stderr == ""
    assert (result.returncode, result.stdout) == (0, "0\n[]\nTrue 0\nb'parent'\n")


@pytest.mark.parametrize("how", ["os.fork", "multiprocessing"])
def test_fork_after_import(how: str, tmp_path: Path) -> None:
    """The parent has used no name yet, and does afterwards."""
    program = """
import multiprocessing, os, sys
sys.path.insert(0, sys.argv[1])
import ntcpsock
from fake_node import FakeNetwork
from ntcpsock import _portal
_portal.node_opener = FakeNetwork(encrypted=True).open_node

def use_names():
    with ntcpsock.create_server(("alice.ntcp", 1)) as server:
        with ntcpsock.create_connection(("alice.ntcp", 1), 20) as one, server.accept()[0] as two:
            one.sendall(b"hello")
            assert two.recv(10) == b"hello"

if sys.argv[2] == "os.fork":
    child = os.fork()
    if child == 0:
        use_names()
        sys.exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    process = multiprocessing.get_context("fork").Process(target=use_names)
    process.start()
    process.join()
    print(process.exitcode)
use_names()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(Path(__file__).parent), how],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "NTCP_STATE": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
