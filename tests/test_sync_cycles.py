"""Thousands of connections in one process leave nothing behind: no descriptor, thread, task, record or zombie."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import gc, os, sys, threading, time
sys.path.insert(0, {tests!r})
import ntcpsock, trio
from fake_node import FakeNetwork
from ntcpsock import _forwarding, _known, _portal

network = FakeNetwork(encrypted={encrypted})
_portal.node_opener = network.open_node
cycles = {cycles}

def accept():
    while True:
        try:
            sock, _ = server.accept()
        except OSError:
            return
        try:
            sock.sendall(sock.recv(100))
        except ConnectionError:
            pass  # the dialler's reset
        sock.close()

def cycle(number):
    kind = number % 5
    client = ntcpsock.NTCPSocket()
    client.settimeout(60)
    if kind == 4:  # nobody listens there
        assert client.connect_ex(("alice.ntcp", 1)) == 111
    elif kind == 3:  # non-blocking, closed under way
        client.setblocking(False)
        assert client.connect_ex(("alice.ntcp", 1)) == 115
    else:
        client.connect(("alice.ntcp", 8000))
        client.sendall(b"%d" % number)
        if kind == 2:  # closed without reading
            client.setsockopt(1, 13, b"\\1\\0\\0\\0\\0\\0\\0\\0")
        else:
            assert client.recv(100) == b"%d" % number
        if kind == 1:
            client.dup().close()
    client.close()

class Tasks(trio.abc.Instrument):
    alive = 0
    def task_spawned(self, task): self.alive += 1
    def task_exited(self, task): self.alive -= 1

def state():
    network.streams.clear()
    gc.collect()
    engine = _portal.get().engine
    return dict(
        descriptors=len(os.listdir("/proc/self/fd")),
        threads=threading.active_count(),
        tasks=tasks.alive,
        pumps=len(engine._pumps),
        records=len(_known.connections) + len(_known.holders) + len(_forwarding._ways) + len(_forwarding._early),
        sockets=sum(isinstance(one, ntcpsock.NTCPSocket) for one in gc.get_objects()),
    )

def settle(expected):
    # The engine closes its ends behind the program's.
    for _ in range(6000):
        now = state()
        if expected is None:
            if not now["pumps"] and not now["records"]:
                return now
        elif all(now[key] <= expected[key] for key in now):
            return now
        time.sleep(0.01)
    raise SystemExit(f"left behind: {{expected}} -> {{now}}")

server = ntcpsock.create_server(("alice.ntcp", 8000))
threading.Thread(target=accept, daemon=True).start()
tasks = Tasks()
_portal.get().soon(lambda: trio.lowlevel.add_instrument(tasks))
for number in range(20):
    cycle(number)
before = settle(None)
started = time.perf_counter()
for number in range(cycles):
    cycle(number)
seconds = time.perf_counter() - started
after = settle(before)
try:
    os.waitpid(-1, os.WNOHANG)
    raise SystemExit("a child is left")
except ChildProcessError:
    pass
import resource
print(cycles, "cycles", f"{{seconds:.1f}} s", before, after,
      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "MiB", file=sys.stderr)
print("clean")
"""


def run(cycles: int, *, encrypted: bool, folder: Path, timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            PROGRAM.format(tests=str(Path(__file__).parent), cycles=cycles, encrypted=encrypted),
        ],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={
            "PATH": "/usr/bin:/bin",
            "NTCP_STATE": str(folder),
            "PYTHONPATH": str(Path(__file__).parent.parent),
        },
    )


@pytest.mark.parametrize("encrypted", [False, True])
def test_300_cycles(encrypted: bool, tmp_path: Path) -> None:
    done = run(300, encrypted=encrypted, folder=tmp_path, timeout=120)
    assert (done.returncode, done.stdout) == (0, "clean\n"), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("encrypted", [False, True])
def test_10000_cycles(encrypted: bool, tmp_path: Path) -> None:
    done = run(10_000, encrypted=encrypted, folder=tmp_path, timeout=1200)
    assert (done.returncode, done.stdout) == (0, "clean\n"), done.stderr
