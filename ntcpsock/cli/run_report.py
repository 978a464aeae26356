"""`ntcp run --report FILE`: one JSON line for each NTCP connection of the program, made, accepted or failed."""

from __future__ import annotations

import json
import os
from functools import wraps
from typing import Any

from ntcpsock import NTCPSocket
from ntcpsock.cli.output import connected_fields, error_event


def install_report(path: str) -> None:
    """Wrap the connecting methods of NTCPSocket so that each outcome is appended to `path`."""
    connect, connect_ex, accept = NTCPSocket.connect, NTCPSocket.connect_ex, NTCPSocket.accept

    @wraps(connect)
    def reporting_connect(self: NTCPSocket, address: Any, /) -> None:
        try:
            connect(self, address)
        except OSError as error:
            if getattr(error, "report", None) is not None:
                _append(path, error_event(error))
            raise
        _append_connection(path, "connected", self)

    @wraps(connect_ex)
    def reporting_connect_ex(self: NTCPSocket, address: Any, /) -> int:
        code = connect_ex(self, address)
        if code == 0:
            _append_connection(path, "connected", self)
        return code

    @wraps(accept)
    def reporting_accept(self: NTCPSocket) -> tuple[NTCPSocket, Any]:
        connection, address = accept(self)
        _append_connection(path, "accepted", connection)
        return connection, address

    # The class itself is changed, not its users: `socket.socket` and what was imported from it before
    # are this very class.
    for name, method in (
        ("connect", reporting_connect),
        ("connect_ex", reporting_connect_ex),
        ("accept", reporting_accept),
    ):
        setattr(NTCPSocket, name, method)


def _append_connection(path: str, event: str, connection: NTCPSocket) -> None:
    # Ordinary connections have no path and are none of our business.
    if connection.path is None or connection.peer is None:
        return
    report = connection.report
    seconds = report.seconds if report else None
    fields = connected_fields(seconds, connection.peer, connection.path, report)
    _append(path, {"event": event, **fields})


def _append(path: str, event: dict[str, Any]) -> None:
    line = json.dumps({"pid": os.getpid(), **event}) + "\n"
    # One write to a file opened for appending: lines of several processes do not mix.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
