"""Every exception that ntcpsock raises.

All of them are `OSError`s with the errno that a plain socket would give in the like case, by double
inheritance: `except ConnectionRefusedError`, `except socket.gaierror`, `err.errno` and pickling work
as in code that has never heard of this library. `report` says stage by stage what was tried.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ntcpsock._report import Report

__all__ = [
    "NTCPError",
    "NameNotFound",
    "NameTaken",
    "PeerOffline",
    "PeerRefused",
    "TraversalTimeout",
    "TraversalFailed",
    "BrokerUnreachable",
    "BrokerRefused",
    "IdentityMismatch",
    "EncryptionMismatch",
    "ConfigurationError",
    "BadMessage",
]


class NTCPError(OSError):
    """The root of what ntcpsock raises. `report` is the `Report` of the attempt, or None."""

    default_errno: int = errno.EIO
    report: Report | None = None

    def __init__(self, *args: object, report: Report | None = None) -> None:
        # One argument is a text: the class knows its errno. OSError's own two-argument form stays
        # as it is, because unpickling calls us with it.
        if len(args) == 1:
            args = (self.default_errno, args[0])
        super().__init__(*args)
        if report is not None:
            self.report = report

    def __str__(self) -> str:
        return str(self.strerror) if self.strerror else super().__str__()


class NameNotFound(NTCPError, socket.gaierror):
    """Nobody has registered this name, or whoever did does not let you know."""

    default_errno = socket.EAI_NONAME


class NameTaken(NTCPError):
    """The name that was to be registered belongs to another key."""

    default_errno = errno.EADDRINUSE


class PeerOffline(NTCPError, ConnectionRefusedError):
    """The name exists, but its node is not connected to the broker, or no longer answers."""

    default_errno = errno.ECONNREFUSED


class PeerRefused(NTCPError, ConnectionRefusedError):
    """The node is there, and nothing listens on the port."""

    default_errno = errno.ECONNREFUSED


class TraversalTimeout(NTCPError, TimeoutError):
    """The time-out passed before an authenticated path was up."""

    default_errno = errno.ETIMEDOUT


class TraversalFailed(NTCPError, ConnectionError):
    """Every attempt failed. `__cause__` is the `ExceptionGroup` of the attempts."""

    default_errno = errno.EHOSTUNREACH


class BrokerUnreachable(NTCPError, ConnectionError):
    """No answer from the broker, or no network at all."""

    default_errno = errno.ENETUNREACH


class BrokerRefused(NTCPError, PermissionError):
    """The broker is there and does not serve this node, or not this name: its operator decides who may."""

    default_errno = errno.EACCES


class IdentityMismatch(NTCPError, ConnectionError):
    """A name, a broker or a peer showed another key than the one pinned for it."""

    default_errno = errno.ECONNABORTED


class EncryptionMismatch(NTCPError, ConnectionError):
    """One end says `encryption="off"`, the other one does not. No byte of the application was sent."""

    default_errno = errno.EPROTO


class ConfigurationError(NTCPError, ValueError):
    """A setting is missing, unknown or malformed."""

    default_errno = errno.EINVAL


class BadMessage(ValueError):
    """Bytes from the network that a decoder refuses. The only exception that leaves a decoder;
    drivers count and drop, so users never see it."""
