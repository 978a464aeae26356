"""A stage for `ntcp lab`, the demo and the benchmarks: servers and nodes as processes, in a NAT lab or, where
there can be none, on this machine's loopback."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

NTCP = (sys.executable, "-m", "ntcpsock")
READY_DEADLINE = 20.0  # seconds; a busy machine starts interpreters slowly


class StageError(RuntimeError):
    """A process of the stage did not do its part; the message ends with what it said."""


class Runner(Protocol):
    """What a lab's host and `ThisMachine` have in common."""

    name: str

    def popen(self, argv: Sequence[str], **popen_arguments: Any) -> subprocess.Popen[Any]: ...


class ThisMachine:
    """Runs programs here, in no namespace."""

    name = "this machine"

    def popen(self, argv: Sequence[str], **popen_arguments: Any) -> subprocess.Popen[Any]:
        popen_arguments.setdefault("start_new_session", True)
        popen_arguments.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.Popen(argv, **popen_arguments)


class Events:
    """A process whose stdout is JSON lines. Its stderr goes to a file and into error messages."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self.process = process
        self._errors = errors
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        assert process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
        self._reader.start()

    def _read(self, stdout: IO[str]) -> None:
        with stdout:
            for line in stdout:
                self._lines.put(line)
        self._lines.put(None)

    def next(self, timeout: float) -> dict[str, Any] | None:
        """The next event, None at the end. Raises StageError after `timeout` seconds."""
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise StageError(f"{self._name}: silent for {timeout:g} s\n{self.errors()}") from None
        if line is None:
            self._lines.put(None)
            return None
        event: dict[str, Any] = json.loads(line)
        return event

    def wait_for(self, name: str, timeout: float) -> dict[str, Any]:
        """The next event called `name`. Raises StageError when it does not come."""
        deadline = time.monotonic() + timeout
        while (event := self.next(max(0.0, deadline - time.monotonic()))) is not None:
            if event["event"] == name:
                return event
            if event["event"] == "error":
                raise StageError(f"{self._name}: {event['message']}")
        raise StageError(f"{self._name}: ended before {name!r}\n{self.errors()}")

    def errors(self) -> str:
        """What the process wrote on stderr."""
        return self._errors.read_text(errors="replace").strip()

    def stop(self) -> None:
        """SIGTERM, and after 5 s SIGKILL."""
        stop(self.process)

    @property
    def _name(self) -> str:
        return " ".join(str(word) for word in self.process.args[-3:])  # type: ignore[index]


class Stage:
    """A running `ntcp serve`, and a place for nodes. Made by `open_stage`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broker = ""
        self._started: list[Events] = []

    def environment(self, node: str, **more: str) -> dict[str, str]:
        """The environment of `node`: own state directory, our broker, no settings from outside."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("NTCP_")}
        state = self.folder / node
        return {**inherited, "NTCP_BROKER": self.broker, "NTCP_STATE": str(state), **more}

    def start(
        self, host: Runner, node: str, argv: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> Events:
        """Start a program that speaks in event lines."""
        errors = self.folder / f"{node}.stderr"
        with open(errors, "ab") as stderr:
            process = host.popen(
                argv,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment or self.environment(node),
            )
        events = Events(process, errors)
        self._started.append(events)
        return events

    def serve(self, host: Runner, *options: str) -> None:
        """Start `ntcp serve` and wait until it is ready."""
        state = str(self.folder / "servers")
        argv = [*NTCP, "serve", "--json", "--state-dir", state, *options]
        self.broker = self.start(host, "serve", argv).wait_for("ready", READY_DEADLINE)["broker"]

    def close(self) -> None:
        # Last in, first out: nodes say goodbye to a broker that is still there.
        for events in reversed(self._started):
            events.stop()
        self._started.clear()


@contextlib.contextmanager
def open_stage(host: Runner, *serve_options: str) -> Iterator[Stage]:
    """`ntcp serve` on `host`, with a temporary folder for everybody's state. Raises StageError."""
    with tempfile.TemporaryDirectory(prefix="ntcp-") as folder:
        stage = Stage(Path(folder))
        try:
            stage.serve(host, *serve_options)
            yield stage
        finally:
            stage.close()


@contextlib.contextmanager
def open_loopback_stage() -> Iterator[Stage]:
    """A stage on 127.0.0.1, on ports that are free."""
    ports = ["--broker-port", "0", "--stun-port", "0", "--other-stun-port", "0"]
    with open_stage(ThisMachine(), "--listen", "127.0.0.1", *ports) as stage:
        yield stage


def stop(process: subprocess.Popen[Any]) -> None:
    """End a process that was started here."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
