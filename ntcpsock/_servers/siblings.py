"""More processes of one server, on the same port: the kernel shares what comes among their sockets (SO_REUSEPORT).

The first process starts the others as it was started itself, waits for their ready lines, and ends when one of them
does, so that whoever looks after it starts them all again. Each of the others ends with its standard input, which is
the first one's, however that one died.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Final

import trio

# Set in those that were started by the first.
_VARIABLE: Final = "NTCP_SERVE_SIBLING"
_START_DEADLINE: Final = 30.0
_END_DEADLINE: Final = 5.0
_LONGEST_LINE: Final = 4096


def is_sibling() -> bool:
    """Whether the first process started this one."""
    return os.environ.get(_VARIABLE) == "1"


class Siblings:
    """The others."""

    def __init__(self) -> None:
        self._processes: list[trio.Process] = []

    async def run(
        self, count: int, port: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """`count` of them at `port`, until cancelled. Raises OSError where one does not start, or ends."""
        environ = {**os.environ, _VARIABLE: "1"}
        command = [sys.executable, *sys.argv, "--port", str(port)]
        try:
            for _ in range(count):
                process = await trio.lowlevel.open_process(
                    command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
                self._processes.append(process)
                await _wait_ready(process)
            task_status.started()
            async with trio.open_nursery() as nursery:
                for process in self._processes:
                    nursery.start_soon(_watch, process)
        finally:
            await self._end()

    def hang_up(self) -> None:
        """Have them read their files again."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGHUP)

    async def _end(self) -> None:
        for process in self._processes:
            process.terminate()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _END_DEADLINE):
            for process in self._processes:
                await process.wait()
        for process in self._processes:
            if process.returncode is None:
                process.kill()


async def end_with_the_first(scope: trio.CancelScope) -> None:
    """In a sibling: cancel `scope` when the first process is gone."""
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stream:
        with suppress(trio.BrokenResourceError):
            while await stream.receive_some(64):
                pass
    scope.cancel()


async def _wait_ready(process: trio.Process) -> None:
    assert process.stdout is not None
    line = b""
    with trio.move_on_after(_START_DEADLINE):
        while not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
            data = await process.stdout.receive_some(_LONGEST_LINE)
            if not data:
                break
            line += data
    if not line.startswith(b"ready"):
        raise OSError("one more process of the server did not start")


async def _watch(process: trio.Process) -> None:
    code = await process.wait()
    raise OSError(f"a process of the server ended with {code}")
