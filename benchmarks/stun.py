"""STUN Binding requests over UDP: our server beside coturn's, on this machine, in turns.

`python -m benchmarks.stun`: answers a second, per core (a second of CPU time of the server's), for one process and two.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks import harness
from ntcpsock._address import Endpoint
from ntcpsock._servers.datagrams import pack_address
from ntcpsock._servers.mmsg import Headers
from ntcpsock._traversal.stun.message import binding_request, encode_message

ROOT = Path(__file__).parent.parent
_BATCH = 128
# Requests under way, of each socket: the server is never idle, and its socket's buffer never full.
_UNDER_WAY = 4
_SOCKETS = 4
_PATIENCE = 0.2  # seconds without an answer before what is missing counts as lost
_ANSWER_SIZE = 256


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def our_server(processes: int = 1, *, listen: str = "127.0.0.1") -> Iterator[tuple[Endpoint, list[int]]]:
    """`servers/stun_server.py`, and the ids of its processes."""
    command = [sys.executable, str(ROOT / "servers" / "stun_server.py"), "--listen", listen]
    # All requests come from one address here.
    command += ["--port", "0", "--processes", str(processes), "--requests-of-an-address", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().split()[1].rpartition(":")[2])
        try:
            yield Endpoint("127.0.0.1", port), [process.pid, *children(process.pid)]
        finally:
            process.send_signal(signal.SIGINT)


@contextmanager
def coturn(threads: int = 1) -> Iterator[tuple[Endpoint, list[int]]]:
    """coturn's turnserver for STUN alone."""
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        command = ["turnserver", "-n", "--stun-only", "-L", "127.0.0.1", f"--listening-port={port}"]
        command += [f"--relay-threads={threads}", "--no-tls", "--no-dtls", "--no-cli", "--log-file=stdout"]
        command += ["--simple-log", f"--pidfile={directory}/turnserver.pid"]
        with subprocess.Popen(
            command, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                wait_for(Endpoint("127.0.0.1", port))
                yield Endpoint("127.0.0.1", port), [process.pid]
            finally:
                process.terminate()


def children(pid: int) -> list[int]:
    """Whichever of its threads has started them."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(word) for task in tasks for word in (task / "children").read_text().split()]


def wait_for(server: Endpoint) -> None:
    """Until it answers."""
    request = encode_message(binding_request(bytes(12)))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.1)
        for _ in range(100):
            sock.sendto(request, server)
            with suppress(OSError):
                sock.recv(2048)
                return
    raise TimeoutError(f"{server} does not answer")


def cpu_seconds(pids: Sequence[int]) -> float:
    """Time that the threads of some processes have had a processor, by the nanosecond."""
    tasks = [task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


class Generator:
    """Requests in batches from a few sockets, some batches ahead of the answers."""

    def __init__(self, server: Endpoint, sockets: int = _SOCKETS) -> None:
        self.sockets = []
        for _ in range(sockets):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
            self.sockets.append(sock)
        requests = bytearray(b"".join(encode_message(binding_request(os.urandom(12))) for _ in range(_BATCH)))
        names = bytearray(pack_address(server).ljust(32, b"\0") * _BATCH)
        self._out = Headers(_BATCH, [(requests, 20, 20)], (names, 32, 16), None)
        answers = bytearray(_BATCH * _ANSWER_SIZE)
        self._in = Headers(
            _BATCH, [(answers, _ANSWER_SIZE, _ANSWER_SIZE)], (bytearray(32 * _BATCH), 32, 16), None
        )

    def run(self, seconds: float) -> int:
        """How many answers came."""
        answered = 0
        missing = array("l", [0]) * len(self.sockets)
        last = time.monotonic()
        end = last + seconds
        while (now := time.monotonic()) < end:
            idle = True
            for index, sock in enumerate(self.sockets):
                while count := self._in.receive(sock.fileno()):
                    answered += count
                    missing[index] -= count
                    idle = False
                    if count < _BATCH:
                        break
                if missing[index] <= (_UNDER_WAY - 1) * _BATCH:
                    missing[index] += _BATCH - len(self._out.send(sock.fileno(), 0, _BATCH))
                    idle = False
            if not idle:
                last = now
            elif now - last > _PATIENCE:
                missing = array("l", [0]) * len(self.sockets)
        return answered

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


def measure(serving: Callable[[], object], seconds: float, sockets: int = _SOCKETS) -> tuple[float, float]:
    """Answers a second of CPU time, and a second of time."""
    with serving() as (server, pids):  # type: ignore[attr-defined]
        generator = Generator(server, sockets)
        generator.run(0.5)
        before, start = cpu_seconds(pids), time.monotonic()
        answered = generator.run(seconds)
        elapsed = time.monotonic() - start
        # What is under way is answered, too, before the clock is read.
        cpu = cpu_seconds(pids) - before
        generator.close()
    return answered / cpu, answered / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stun", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    cases: dict[str, Callable[[], object]] = {
        "ours": our_server,
        "ours, all addresses": lambda: our_server(listen="0.0.0.0"),
        "ours, 2 processes": lambda: our_server(2),
    }
    if shutil.which("turnserver") is not None:
        cases = {"coturn": coturn, **cases}
    per_core: dict[str, list[float]] = {name: [] for name in cases}
    per_second: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(arguments.rounds):
        for name, serving in cases.items():
            sockets = 16 if "2" in name else _SOCKETS
            core, second = measure(serving, arguments.seconds, sockets)
            per_core[name].append(core)
            per_second[name].append(second)
    series = [harness.Series(name, "answers/CPU s", tuple(values)) for name, values in per_core.items()]
    relative = "coturn" if "coturn" in cases else "ours"
    harness.show("STUN over UDP, answers per second of the server's CPU time", series, relative_to=relative)
    rates = [harness.Series(name, "answers/s", tuple(values)) for name, values in per_second.items()]
    harness.show("STUN over UDP, answers per second", rates, relative_to=relative)
    harness.save("stun", series + rates)


if __name__ == "__main__":
    main()
