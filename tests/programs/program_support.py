"""Programs of users, as text, at both ends of a connection by name: each a process under `ntcp run`, with a
real `ntcp serve` between them. They use their libraries as if there were no ntcpsock."""

from __future__ import annotations

import contextlib
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ntcpsock.cli.stage import Stage, stop

NTCP = [sys.executable, "-m", "ntcpsock"]
DEADLINE = 90.0  # seconds, for what takes one on an idle machine

#: Bytes that both ends can make and compare: put in front of a program.
PAYLOAD = """\
import hashlib, random
PAYLOAD = random.Random(2026).randbytes(5_000_000)
DIGEST = hashlib.sha256(PAYLOAD).hexdigest()
"""


class Program:
    """A program of `source` under `ntcp run --name NODE`, with the lines that it prints."""

    def __init__(self, stage: Stage, folder: Path, node: str, source: str, *arguments: str) -> None:
        self.node = node
        path = folder / f"{node}.py"
        path.write_text(source)
        self.errors_path = folder / f"{node}.stderr"
        with self.errors_path.open("wb") as errors:
            self.process = subprocess.Popen(
                [*NTCP, "run", "--name", node, path.name, *arguments],
                cwd=folder,
                env=environment(stage, node),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stdout:
            for line in stdout:
                self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def wait_for(self, word: str) -> str:
        """The next line that begins with `word`."""
        before: list[str] = []
        while True:
            try:
                line = self._lines.get(timeout=DEADLINE)
            except queue.Empty:
                raise AssertionError(f"{self.node} never said {word!r}: {before}\n{self.errors()}") from None
            if line is None:
                raise AssertionError(f"{self.node} ended before {word!r}: {before}\n{self.errors()}")
            if line.startswith(word):
                return line
            before.append(line)

    def errors(self) -> str:
        return self.errors_path.read_text(errors="replace")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send the signal; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE)

    def close(self) -> None:
        stop(self.process)
        self._reader.join(DEADLINE)


def environment(stage: Stage, node: str) -> dict[str, str]:
    """That of a user's shell. A web proxy of this machine is of no use for names, as the guide says."""
    return stage.environment(node, NO_PROXY="*", no_proxy="*", PYTHONUNBUFFERED="1", PYTHONFAULTHANDLER="1")


@contextmanager
def running(stage: Stage, folder: Path, node: str, source: str, *arguments: str) -> Iterator[Program]:
    """A server that prints "ready" when it listens. Afterwards it is ended; it must not have failed before."""
    program = Program(stage, folder, node, source, *arguments)
    try:
        program.wait_for("ready")
        yield program
        assert program.process.poll() in (None, 0, -signal.SIGTERM, -signal.SIGINT), program.errors()
    finally:
        program.close()
    assert "Traceback" not in program.errors(), program.errors()


def run(
    stage: Stage, folder: Path, node: str, source: str, *arguments: str, named: bool = False
) -> list[str]:
    """Run a client to its end: the lines that it printed. It must end with 0 and say nothing on stderr.

    named: with a name of its own, `--name NODE`.
    """
    path = folder / f"{node}.py"
    path.write_text(source)
    process = subprocess.Popen(
        [*NTCP, "run", *(["--name", node] if named else []), path.name, *arguments],
        cwd=folder,
        env=environment(stage, node),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # faulthandler says where it hangs
        stdout, stderr = process.communicate(timeout=DEADLINE)
    finally:
        stop(process)
    assert (process.returncode, stderr) == (0, ""), f"{stdout}\n{stderr}\n{logs(folder)}"
    return stdout.splitlines()


def logs(folder: Path) -> str:
    """What the other programs of the test wrote on stderr."""
    return "\n".join(f"{path.name}:\n{path.read_text(errors='replace')}" for path in folder.glob("*.stderr"))


def free_port() -> int:
    """A port that is free at all addresses, and not of those that the kernel gives to anybody who connects."""
    while True:
        port = random.randrange(10_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port
