"""A real redis-server with a port and a directory of its own, and brokers of a cluster as processes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ntcpsock._address import BrokerAddress, parse_broker
from ntcpsock._state import load_identity

REDIS = shutil.which("redis-server")
PATIENCE = 60.0
SERVERS = Path(__file__).parents[1] / "servers"

needs_redis = pytest.mark.skipif(REDIS is None, reason="redis-server is not installed (Debian: redis-server)")


def free_port(host: str = "127.0.0.1") -> int:
    """Free for UDP and TCP at all addresses of loopback, a moment ago."""
    while True:
        with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            stream.bind((host, 0))
            port: int = stream.getsockname()[1]
            try:
                datagrams.bind((host, port))
            except OSError:
                continue
            return port


class RedisServer:
    """keep: writes each change to its disk before it answers; without, a kill loses everything. arguments: in place of
    all of ours."""

    def __init__(self, folder: Path, *, keep: bool = True, arguments: Sequence[str] | None = None) -> None:
        self.folder = folder
        self.port = free_port() if arguments is None else int(arguments[arguments.index("--port") + 1])
        self._given = arguments
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._keep = keep
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert REDIS is not None
        self.folder.mkdir(exist_ok=True)
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        arguments += (
            ["--appendonly", "yes", "--appendfsync", "always"] if self._keep else ["--appendonly", "no"]
        )
        if self._given is not None:
            arguments = [*self._given, "--dir", str(self.folder)]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen([REDIS, *arguments], stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            assert time.monotonic() < deadline, "redis-server does not start"
            assert self._process.poll() is None, "redis-server has ended"
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            return self.ask("PING") == "PONG"
        except OSError:
            return False

    def ask(self, *words: str) -> str:
        """A command by its inline form, and the first line of the answer without its mark."""
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as connection:
            connection.sendall(" ".join(words).encode() + b"\r\n")
            return connection.makefile().readline().strip()[1:]

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """As a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def running_redis(
    folder: Path, *, keep: bool = True, arguments: Sequence[str] | None = None
) -> Iterator[RedisServer]:
    server = RedisServer(folder, keep=keep, arguments=arguments)
    server.start()
    try:
        yield server
    finally:
        server.kill()


#: `python -m ntcpsock` whose wall clock is as many seconds ahead as a file says.
_WITH_CLOCK = """
import runpy, sys, time
from pathlib import Path
ahead, real = Path(sys.argv.pop(1)), time.time
time.time = lambda: real() + float(ahead.read_text(encoding="ascii"))
runpy.run_module("ntcpsock", run_name="__main__", alter_sys=True)
"""


class BrokerProcess:
    """One broker of a cluster. Its state directory has the keys that all of them share."""

    def __init__(
        self, script: str, host: str, port: int, state: Path, *arguments: str, clock: Path | None = None
    ) -> None:
        """clock: says how many seconds the wall clock of `serve` is ahead, always anew."""
        self.host, self.port, self.state = host, port, state
        module = ["-m", "ntcpsock"] if clock is None else ["-c", _WITH_CLOCK, str(clock)]
        self._argv = [
            sys.executable,
            *([*module, "serve"] if script == "serve" else [str(SERVERS / script)]),
            *("--listen", host, "--state-dir", str(state)),
            *(["--broker-port", str(port)] if script == "serve" else ["--port", str(port)]),
            *arguments,
        ]
        self.log = state.with_suffix(".log")
        self._process: subprocess.Popen[str] | None = None
        self.address = BrokerAddress(host, port)

    def start(self, *more: str, limit_file_size: int | None = None) -> BrokerAddress:
        """more: further arguments; limit_file_size: bytes after which its disk is full."""
        prefix = [] if limit_file_size is None else ["prlimit", f"--fsize={limit_file_size}"]
        with open(self.log, "a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [*prefix, *self._argv, *more],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "NTCP_STATE": ""},
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline().split()
        assert line[:1] == ["ready"], self.said()
        self.address = parse_broker(line[1])
        return self.address

    def said(self) -> str:
        """Its log."""
        return self.log.read_text(encoding="utf-8")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def kill(self) -> None:
        """As a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def stop(self) -> None:
        """SIGTERM, and a clean end."""
        assert self._process is not None
        self._process.terminate()
        self._process.communicate(timeout=PATIENCE)
        assert self._process.returncode == 0, self.said()
        self._process = None


@contextmanager
def running_relay(folder: Path, port: int) -> Iterator[None]:
    """With the key of the cluster in `folder`."""
    share_keys(folder)
    argv = [sys.executable, str(SERVERS / "relay.py"), "--listen", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(
        [*argv, "--relay-key", str(folder / "relay.key")], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("ready ")
            yield
        finally:
            process.kill()


def share_keys(folder: Path, *states: Path) -> None:
    """What an operator copies from host to host."""
    folder.mkdir(exist_ok=True)
    for name in ("broker.key", "relay.key"):
        load_identity(folder / name)
        for state in states:
            state.mkdir(exist_ok=True, mode=0o700)
            shutil.copy2(folder / name, state / name)


@contextmanager
def running_cluster(
    folder: Path, count: int, *arguments: str, script: str = "udp_broker.py"
) -> Iterator[list[BrokerProcess]]:
    """Brokers at 127.0.0.1, 127.0.0.2 and so on, with one port and one key."""
    port = free_port()
    states = [folder / f"broker{number}" for number in range(1, count + 1)]
    share_keys(folder, *states)
    with ExitStack() as stack:
        brokers = []
        for number, state in enumerate(states, 1):
            broker = BrokerProcess(script, f"127.0.0.{number}", port, state, *arguments)
            stack.callback(broker.kill)
            broker.start()
            brokers.append(broker)
        yield brokers
