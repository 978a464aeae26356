"""Whether this process may send and capture raw packets, and what it lacks where it may not."""

from __future__ import annotations

import errno
import socket
import sys
from importlib.util import find_spec

#: What the extra `ntcpsock[raw]` brings: the module, and the package that has it.
_SENDING = {"scapy": "scapy"}
_CAPTURING = {"scapy": "scapy", "pcapy": "pcapy-ng"}


def missing_for_raw(*, capturing: bool = True) -> str | None:
    """What is missing, in words and with the remedy; None where raw packets work. Nothing is imported for it.

    capturing: False where packets are only sent, as a broker does.
    """
    if not sys.platform.startswith("linux"):
        return "raw packets are implemented for Linux only"
    lacks = []
    if not _may_open_raw_socket():
        lacks.append(
            "the right to send raw packets: run it as root, or give it CAP_NET_RAW "
            "(setcap cap_net_raw+ep on the Python program, AmbientCapabilities=CAP_NET_RAW in a systemd unit)"
        )
    needed = _CAPTURING if capturing else _SENDING
    absent = [package for module, package in needed.items() if find_spec(module) is None]
    if absent:
        lacks.append(f"{' and '.join(absent)}: pip install 'ntcpsock[raw]'")
    return " and ".join(lacks) or None


def check_raw(what: str, *, capturing: bool = True) -> None:
    """Raises PermissionError (EPERM) that says what `what` lacks."""
    lack = missing_for_raw(capturing=capturing)
    if lack is not None:
        raise PermissionError(errno.EPERM, f"{what} lacks {lack}")


def _may_open_raw_socket() -> bool:
    # The kernel's own answer: who one is tells nothing about capabilities, containers and user namespaces.
    try:
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).close()
    except OSError:
        return False
    return True
