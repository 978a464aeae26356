"""Another user of the same machine, who tries what he can."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from sync_support import PATIENCE

NOBODY = 65534

# Everything is imported before: nobody may not read the folder that Python is in.
_PROGRAM = """
import errno, json, os, socket, sys, time
try:
    os.setgroups([])
    os.setgid({nobody})
    os.setuid({nobody})
except OSError as error:
    print(json.dumps(["cannot", str(error)]))
    sys.exit()
arguments = json.loads(sys.argv[1])
{body}
print(json.dumps(result))
"""

#: Connects to `arguments` from another user: what came of it.
CONNECT = """
with socket.socket() as sock:
    sock.settimeout(5)
    try:
        sock.connect(tuple(arguments))
        sock.sendall(b"intruder")
        result = ["received", sock.recv(100).decode()]
    except OSError as error:
        result = ["error", errno.errorcode.get(error.errno, "timeout")]
"""

#: Tries to sit at the address `arguments`, by every option that lets sockets share.
LISTEN = """
result = []
for options in ([], [socket.SO_REUSEADDR], [socket.SO_REUSEPORT], [socket.SO_REUSEADDR, socket.SO_REUSEPORT]):
    with socket.socket() as sock:
        for option in options:
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
        try:
            sock.bind(tuple(arguments))
            sock.listen()
            result.append("listens")
        except OSError as error:
            result.append(errno.errorcode[error.errno])
"""

#: Listens at `arguments` until its input ends; says "listens" first.
SQUAT = """
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.bind(tuple(arguments))
sock.listen()
print(json.dumps(["listens"]), flush=True)
sys.stdin.read()
sock.settimeout(0)
try:
    sock.accept()
    result = ["somebody came"]
except BlockingIOError:
    result = ["nobody came"]
"""


def _command(body: str, arguments: Any) -> list[str]:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    program = _PROGRAM.format(nobody=NOBODY, body=body)
    return [sys.executable, "-I", "-c", program, json.dumps(arguments)]


def _answer(line: str) -> Any:
    answer = json.loads(line)
    if answer[:1] == ["cannot"]:
        pytest.skip(f"root of this user namespace cannot become another user: {answer[1]}")
    return answer


def as_nobody(body: str, arguments: Any) -> Any:
    """What the program `body` leaves in `result`, run by the user nobody. Skips where that cannot be."""
    done = subprocess.run(
        _command(body, arguments), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    return _answer(done.stdout)


@functools.cache
def _reason() -> str | None:
    try:
        as_nobody("result = []", None)
    except pytest.skip.Exception as skipped:
        return str(skipped)
    return None


def need_nobody() -> None:
    """Skip a test where there is no second user, before it has begun."""
    reason = _reason()
    if reason is not None:
        pytest.skip(reason)


class Squatter:
    """A program of nobody's that listens at an address and says so; `leave()` returns its result: whether somebody
    came."""

    def __init__(self, address: Any, body: str = SQUAT) -> None:
        self._process = subprocess.Popen(
            _command(body, address), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        try:
            assert _answer(line) == ["listens"]
        except BaseException:
            self.leave()
            raise

    def leave(self) -> Any:
        output, _ = self._process.communicate("", timeout=PATIENCE)
        return json.loads(output) if output else None
