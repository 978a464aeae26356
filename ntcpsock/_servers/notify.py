"""A word to systemd about the state of this process (sd_notify(3)), where systemd has started it and listens."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(state: bytes) -> None:
    """Say `READY=1`, `STOPPING=1` or another assignment. Nothing happens where nobody listens."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path or not hasattr(socket, "AF_UNIX"):
        return
    # A leading @ means the abstract namespace.
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, suppress(OSError):
        sock.sendto(state, address)
