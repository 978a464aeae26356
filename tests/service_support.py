"""`ntcp expose`, `forward` and `proxy` as processes, and TCP services and clients to use them with."""

from __future__ import annotations

import contextlib
import errno
import json
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ntcpsock.cli.stage import Stage, stop

NTCP = [sys.executable, "-m", "ntcpsock"]
DEADLINE = 60.0  # seconds, for what takes one on an idle machine


class Command:
    """A command that runs, with its event lines. `listening` is the event that it is ready."""

    def __init__(self, stage: Stage, node: str, *argv: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [*NTCP, *argv, "--json"],
            env=stage.environment(node, **environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.before: list[dict[str, Any]] = []
        try:
            self.listening = self.wait_for("listening")
        except BaseException:
            stop(self.process)
            raise

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stderr:
            for line in stderr:
                self._lines.put(json.loads(line) if line.startswith("{") else {"event": "?", "text": line})
        self._lines.put(None)

    def wait_for(self, event: str) -> dict[str, Any]:
        """The next such event; those before it are kept in `before`."""
        deadline = time.monotonic() + DEADLINE
        while (line := self._lines.get(timeout=max(0.1, deadline - time.monotonic()))) is not None:
            if line["event"] == event:
                return line
            self.before.append(line)
        raise AssertionError(f"ended before {event!r}: {self.before}")

    def end(self, number: int = signal.SIGTERM) -> tuple[int, dict[str, Any]]:
        """Send the signal: exit code and the last event."""
        self.process.send_signal(number)
        code = self.process.wait(DEADLINE)
        return code, self.wait_for("stopped")

    @property
    def place(self) -> tuple[str, int]:
        """Where `forward` and `proxy` listen."""
        host, port = self.listening["addresses"][0]
        return host, port

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *args: object) -> None:
        stop(self.process)
        self._reader.join(DEADLINE)


Handler = Callable[[socket.socket], None]


@contextmanager
def tcp_service(handler: Handler) -> Iterator[int]:
    """A service on 127.0.0.1 with a thread for each connection; its port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        connection.settimeout(DEADLINE)
        with connection, contextlib.suppress(ConnectionError):
            handler(connection)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve, args=(connection,), daemon=True))
            threads[-1].start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield listener.getsockname()[1]
    finally:
        # Closing alone does not wake accept().
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in (accepting, *threads):
            thread.join(DEADLINE)


def echo(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


def answer_after_end(connection: socket.socket) -> None:
    """Says something only after the client's half-close: how much it got."""
    received = 0
    while data := connection.recv(65536):
        received += len(data)
    connection.sendall(f"{received} bytes".encode())


def reset(connection: socket.socket) -> None:
    """Close with a RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def hear_and_reset(connection: socket.socket) -> None:
    """A service that resets once it has heard something: before that, the client's connect() might be what fails."""
    connection.recv(65536)
    reset(connection)


def dial(place: tuple[str, int]) -> socket.socket:
    return socket.create_connection(place, timeout=DEADLINE)


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def is_reset(connection: socket.socket) -> bool:
    """Whether the other side's next word is a RST, not an end."""
    try:
        return connection.recv(1) == b"never"
    except OSError as error:
        return error.errno == errno.ECONNRESET
