"""Places of the lab where programs run: hosts and routers."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ntcpsock.testing.natlab.conntrack import flush
from ntcpsock.testing.natlab.kinds import NatKind
from ntcpsock.testing.natlab.namespace import enter_command
from ntcpsock.testing.natlab.router.behaviour import Behaviour

if TYPE_CHECKING:
    from ntcpsock.testing.natlab.lab import Lab

T = TypeVar("T")

# Seconds for a process that has told its outcome to end: on a busy machine interpreters take their time.
_EXIT_PATIENCE = 60.0
_GRACE = 2.0  # seconds between SIGTERM and SIGKILL at the end of a lab
_FAREWELL = 60.0  # seconds for a process to end when its call has returned


class RunningCall(Generic[T]):
    """A call that runs in a place; `result` waits for it."""

    def __init__(self, process: subprocess.Popen[bytes], outcome_fd: int) -> None:
        self.process = process
        self._outcome = outcome_fd
        # A call whose outcome nobody takes (a server) is ordinary, and no reason for a ResourceWarning.
        self._close = weakref.finalize(self, os.close, outcome_fd)

    def result(self, timeout: float | None = None) -> T:
        """What the function returned, or its exception; it can be taken once.

        Raises subprocess.TimeoutExpired after `timeout` seconds without an outcome, and RuntimeError where
        the process ended without one.
        """
        if timeout is not None:
            _wait_readable(self._outcome, timeout, self.process)
        data = b"".join(iter(lambda: os.read(self._outcome, 1 << 16), b""))
        self._close()
        self.process.wait(timeout=_FAREWELL)
        if not data:
            raise RuntimeError(f"the call ended without an outcome (status {self.process.returncode})")
        succeeded, value = pickle.loads(data)
        if not succeeded:
            raise value
        return value  # type: ignore[no-any-return]


class Place:
    """A network namespace of the lab, with the processes that were started in it."""

    def __init__(self, name: str, namespace: str) -> None:
        self.name = name
        self.namespace = namespace
        self._processes: list[subprocess.Popen[Any]] = []

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} ({self.namespace})>"

    def command(self, argv: Sequence[str]) -> list[str]:
        """`argv` as it must be spelled outside to run inside, for other ways to start processes.

        What is started so is killed at the end of the lab too, without a SIGTERM before.
        """
        return [*enter_command(self.namespace), *argv]

    def popen(self, argv: Sequence[str], **popen_arguments: Any) -> subprocess.Popen[Any]:
        """`subprocess.Popen` inside, with standard input from /dev/null unless `stdin` says otherwise.

        The process leads its own group, so Ctrl-C reaches the lab's owner alone; at the end of the lab the
        group gets SIGTERM, then SIGKILL.
        """
        popen_arguments.setdefault("start_new_session", True)
        popen_arguments.setdefault("stdin", subprocess.DEVNULL)
        process = subprocess.Popen(self.command(argv), **popen_arguments)
        self._processes.append(process)
        return process

    def run(self, argv: Sequence[str], **run_arguments: Any) -> subprocess.CompletedProcess[Any]:
        """`subprocess.run` inside."""
        return subprocess.run(self.command(argv), **run_arguments)

    def start(self, function: Callable[..., T], *args: Any) -> RunningCall[T]:
        """Run `function(*args)` in a new Python process inside.

        Function, arguments and result must pickle; a function of `__main__` does not.
        """
        reader, writer = os.pipe()
        try:
            process = self.popen(
                [sys.executable, "-m", "ntcpsock.testing.natlab.call", str(writer)],
                stdin=subprocess.PIPE,
                pass_fds=[writer],
            )
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        call: RunningCall[T] = RunningCall(process, reader)
        assert process.stdin is not None
        with process.stdin, contextlib.suppress(BrokenPipeError):
            process.stdin.write(pickle.dumps(sys.path) + pickle.dumps((function, args)))
        return call

    def call(self, function: Callable[..., T], *args: Any, timeout: float | None = 60.0) -> T:
        """`start(...).result(timeout)`."""
        return self.start(function, *args).result(timeout)

    def terminate(self) -> None:
        """Ask the processes started here to end."""
        for process in self._processes:
            self._signal(process, signal.SIGTERM)

    def reap(self) -> None:
        """Wait for the processes started here, and kill those that do not end."""
        deadline = time.monotonic() + _GRACE
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._signal(process, signal.SIGKILL)
                process.wait()
        self._processes.clear()

    @staticmethod
    def _signal(process: subprocess.Popen[Any], number: signal.Signals) -> None:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(process.pid) == process.pid:
                    os.killpg(process.pid, number)
                else:
                    process.send_signal(number)


class Host(Place):
    """A machine where the programs under test run."""

    def __init__(self, name: str, namespace: str, *addresses: str) -> None:
        super().__init__(name, namespace)
        self.address = addresses[0]
        """Its own (first) address: private behind a NAT."""
        self.addresses = addresses
        """All of its IPv4 addresses; a multi-homed host has two, and what is bound to one leaves by its router."""
        self.addresses6: tuple[str, ...] = ()
        """Its IPv6 addresses, where the lab has IPv6."""
        self.devices: dict[str, str] = {}
        """The device that leads to each of its routers, by the router's name."""
        self.proxy: tuple[str, int] | None = None
        """The HTTP proxy that is its way out, where nothing else leads out."""


class Router(Place):
    """A router with its NAT or firewall."""

    def __init__(self, name: str, namespace: str, kind: NatKind | Behaviour, public_address: str) -> None:
        super().__init__(name, namespace)
        self.kind = kind
        self.public_address = public_address
        """What its uplink's network sees of the hosts behind: the address of the NAT, or of the public host."""
        self.proxy: tuple[str, int] | None = None
        """The HTTP proxy that runs on it, where nothing else leads out."""
        self._lab: Lab | None = None

    @property
    def engine(self) -> str:
        """Who translates: "linux" (nftables), or "userspace"."""
        return "userspace" if isinstance(self.kind, Behaviour) else "linux"

    def flush_mappings(self) -> None:
        """Forget every mapping and flow, as a restart of the router does."""
        if isinstance(self.kind, Behaviour):
            assert self._lab is not None
            self._lab._ask("forget", self)
        else:
            self.call(flush)

    def mappings(self) -> list[dict[str, Any]]:
        """The mappings in force: `protocol`, `inner`, `outer` and the `remotes` that have a session.

        Raises ValueError for a router of the Linux engine: ask its conntrack.
        """
        assert self._lab is not None
        if not isinstance(self.kind, Behaviour):
            raise ValueError(f"{self.name} is a real Linux router: its table is in the kernel")
        return self._lab._mappings(self)

    def drops(self) -> dict[str, int]:
        """How many packets the NAT has dropped, by reason. Raises ValueError as `mappings` does."""
        assert self._lab is not None
        if not isinstance(self.kind, Behaviour):
            raise ValueError(f"{self.name} is a real Linux router: ask its nft counters")
        drops: dict[str, int] = self._lab._ask("dropped", self)
        return drops


@dataclass(frozen=True, slots=True)
class MappedPort:
    """A port of the router that leads to a host behind it."""

    external_port: int
    host: str
    port: int


def _wait_readable(fd: int, timeout: float, process: subprocess.Popen[bytes]) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(timeout * 1000):
        raise subprocess.TimeoutExpired(process.args, timeout)
