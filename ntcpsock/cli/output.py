"""What a command says on stderr: short lines for people, JSON event lines for programs, errors explained."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from ntcpsock._errors import NTCPError
from ntcpsock._report import Move, PathInfo, PeerInfo, Report

INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


class Output:
    """One command's messages. Without `json`, events are told only with `verbose`; errors always."""

    def __init__(self, *, json: bool = False, verbose: bool = False) -> None:
        self.json = json
        self.verbose = verbose

    def event(self, event: str, text: str, **fields: Any) -> None:
        """One event: `fields` for programs, `text` for people."""
        if self.json:
            self._line(json.dumps({"event": event, **fields}))
        elif self.verbose:
            self._line(f"ntcp: {text}")

    def say(self, event: str, text: str, **fields: Any) -> None:
        """An event that people are told without -v, too."""
        if self.json:
            self.event(event, text, **fields)
        else:
            self._line(f"ntcp: {text}")

    def error(self, error: BaseException) -> None:
        """An error with the stage that failed and the advice of its report."""
        report: Report | None = getattr(error, "report", None)
        if self.json:
            self._line(json.dumps(error_event(error)))
            return
        self._line(f"ntcp: {describe(error)}")
        if report is None:
            return
        if self.verbose:
            self._line(str(report))
            return
        if report.failed_stage:
            self._line(f"  failed at: {report.failed_stage}")
        if report.advice and report.advice not in str(error):
            self._line(f"  advice: {report.advice}")

    def _line(self, text: str) -> None:
        try:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
        except (OSError, ValueError, AttributeError):
            pass  # Nobody reads stderr any more; the exit code still tells.


def describe(error: BaseException) -> str:
    """One line: the text, and the kind of error where the text alone would be vague."""
    if isinstance(error, NTCPError):
        return f"{error} ({type(error).__name__})"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    if text := str(error):
        return text
    code = getattr(error, "errno", None)
    return os.strerror(code) if isinstance(code, int) else type(error).__name__


def error_event(error: BaseException) -> dict[str, Any]:
    report: Report | None = getattr(error, "report", None)
    code = getattr(error, "errno", None)
    return {
        "event": "error",
        "type": type(error).__name__,
        "errno": code,
        "errno_name": errno.errorcode.get(code) if isinstance(code, int) and code > 0 else None,
        "message": str(error),
        "stage": report.failed_stage if report else None,
        "advice": report.advice if report else None,
        "report": report.to_dict() if report else None,
    }


def connected_fields(
    seconds: float | None, peer: PeerInfo, path: PathInfo, report: Report | None
) -> dict[str, Any]:
    """The fields of a `connected` event."""
    return {
        "seconds": seconds,
        "peer": {"name": peer.name, "node_id": peer.node_id, "port": peer.port},
        **path_fields(path),
        "report": report.to_dict() if report else None,
    }


def connected_text(seconds: float | None, peer: PeerInfo, path: PathInfo) -> str:
    took = f" in {seconds * 1000:.0f} ms" if seconds is not None else ""
    who = peer.name or peer.node_id
    return f"connected with {who}:{peer.port}{took}, {path.kind} path, {path.technique}"


def path_fields(path: PathInfo) -> dict[str, Any]:
    """How the bytes travel, in all events that tell it."""
    return {
        "kind": path.kind,
        "technique": path.technique,
        "local": list(path.local),
        "remote": list(path.remote),
        "rtt": path.rtt,
    }


def moved_fields(move: Move) -> dict[str, Any]:
    """The fields of a `moved` event: the new path, why, and the seconds without a path before it."""
    return {**path_fields(move.path), "reason": move.reason, "pause": move.pause, "at": move.at}


def moved_text(move: Move) -> str:
    pause = f", after {move.pause:.1f} s without a path" if move.pause else ""
    return f"moved to another path, {move.path.kind}, {move.path.technique}{pause}: {move.reason}"


def only_cause(error: BaseException) -> BaseException:
    """What a nursery wrapped: the one exception that a person should read."""
    while isinstance(error, BaseExceptionGroup):
        inner = [found for found in error.exceptions if not isinstance(found, KeyboardInterrupt)]
        if not inner:
            return KeyboardInterrupt()
        error = next((found for found in inner if isinstance(found, NTCPError)), inner[0])
    return error


def run_command(output: Output, main: Callable[[], Awaitable[None]]) -> None:
    """`trio.run(main)` for a command: exit 1 with an explained OSError, 130 after Ctrl-C."""
    import trio

    try:
        trio.run(main)
    except BaseException as raised:
        error = only_cause(raised)
        if isinstance(error, KeyboardInterrupt):
            raise SystemExit(INTERRUPTED) from None
        if isinstance(error, (OSError, trio.BrokenResourceError, trio.ClosedResourceError)):
            fail(output, error)
        raise


def fail(output: Output, error: BaseException) -> NoReturn:
    """Explain `error`, exit 1."""
    # trio's stream errors carry the kernel's one, which says more.
    if not isinstance(error, OSError) and isinstance(error.__cause__, OSError):
        error = error.__cause__
    output.error(error)
    raise SystemExit(1) from None
