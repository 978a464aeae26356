"""servers/stun_server.py --processes: one port, several processes, one life."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from stun_support import own_endpoint, udp_socket

from benchmarks.stun import children
from ntcpsock._address import Endpoint
from ntcpsock._traversal.stun.driver import binding_over_tcp, binding_over_udp

SCRIPT = Path(__file__).parents[1] / "servers" / "stun_server.py"
PATIENCE = 60

pytestmark = pytest.mark.skipif(
    not hasattr(socket, "SO_REUSEPORT") or not Path("/proc/self/task").exists(), reason="Linux alone"
)


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[str], Endpoint]]:
    command = [sys.executable, str(SCRIPT), "--listen", "127.0.0.1", "--port", "0", "--processes", "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, Endpoint("127.0.0.1", int(process.stdout.readline().rpartition(":")[2]))
        finally:
            process.kill()


def lives(pid: int) -> bool:
    """Whether it has not ended yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def gone(pid: int) -> None:
    """As soon as it has ended."""
    with trio.fail_after(PATIENCE):
        while lives(pid):
            await trio.sleep(0.05)


async def test_all_of_them_answer(server: tuple[subprocess.Popen[str], Endpoint]) -> None:
    process, address = server
    assert len(children(process.pid)) == 2
    # Whoever has one of the many ports, somebody answers.
    with trio.fail_after(PATIENCE):
        for _ in range(30):
            with await udp_socket() as sock:
                assert (await binding_over_udp(sock, address)).mapped == own_endpoint(sock)
            async with await trio.open_tcp_stream(*address) as stream:
                assert (await binding_over_tcp(stream.socket)).mapped == own_endpoint(stream.socket)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_they_end_together(
    server: tuple[subprocess.Popen[str], Endpoint], number: signal.Signals
) -> None:
    process, _ = server
    others = children(process.pid)
    process.send_signal(number)
    for pid in (process.pid, *others):
        await gone(pid)


async def test_one_that_dies_ends_all(server: tuple[subprocess.Popen[str], Endpoint]) -> None:
    process, _ = server
    first, second = children(process.pid)
    os.kill(first, signal.SIGKILL)
    await gone(second)
    code = await trio.to_thread.run_sync(process.wait, PATIENCE)
    assert code == 1
    assert process.stderr is not None
    assert "a process of the server ended" in process.stderr.read()


def test_a_link_has_one_process(tmp_path: Path) -> None:
    options = ["--listen", "127.0.0.1", "--port", "3478", "--other-address", "127.0.0.2", "--processes", "2"]
    command = [sys.executable, str(SCRIPT), *options, "--link-key", str(tmp_path / "link.key")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert "--link-key" in done.stderr
