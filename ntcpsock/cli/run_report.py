"""`ntcp run --report FILE`: one JSON line for each NTCP connection of the program, made, accepted or failed, and
for each move of one to another path."""

from __future__ import annotations

import json
import os
from collections import deque
from typing import Any

from ntcpsock import NTCPSocket
from ntcpsock._report import Move, Report, move_observers
from ntcpsock.cli.output import connected_fields, moved_fields


def install_report(path: str) -> None:
    """Append a line to `path` whenever an NTCPSocket gets its report, and when a connection moves."""
    # Every way to a connection (connect, connect_ex, non-blocking, accept) ends with the socket's being told
    # its report, after peer and path. The class is changed, not its users: `socket.socket`, and whatever was
    # imported from it before, is this very class.
    NTCPSocket.report = _ReportAttribute(path)  # type: ignore[assignment]
    move_observers.append(lambda report, move: _append(path, _moved(report, move)))


class _ReportAttribute:
    """The attribute `report`, which writes down what is assigned to it."""

    def __init__(self, path: str) -> None:
        self._path = path
        # Copies of a socket (`dup`) get its report again. The reports are held, so that no other one has their id.
        self._written: deque[Report] = deque(maxlen=256)

    def __get__(self, instance: NTCPSocket | None, owner: type) -> Report | None:
        return None if instance is None else vars(instance).get("report")

    def __set__(self, instance: NTCPSocket, report: Report | None) -> None:
        vars(instance)["report"] = report
        if report is not None and not any(report is known for known in self._written):
            self._written.append(report)
            _append(self._path, _event(instance, report))


def _event(connection: NTCPSocket, report: Report) -> dict[str, Any]:
    if connection.path is not None and connection.peer is not None:
        event = "accepted" if report.role == "listener" else "connected"
        return {"event": event, **connected_fields(report.seconds, connection.peer, connection.path, report)}
    return {
        "event": "error",
        "target": report.target,
        "stage": report.failed_stage,
        "message": next((s.outcome for s in reversed(report.stages) if s.outcome != "ok"), None),
        "advice": report.advice,
        "report": report.to_dict(),
    }


def _moved(report: Report, move: Move) -> dict[str, Any]:
    return {"event": "moved", "role": report.role, "target": report.target, **moved_fields(move)}


def _append(path: str, event: dict[str, Any]) -> None:
    line = json.dumps({"pid": os.getpid(), **event}) + "\n"
    # One write to a file opened for appending: lines of several processes do not mix.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
