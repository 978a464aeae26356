"""The error of a connection that QUIC itself, or the peer, has spoilt."""

from __future__ import annotations

import errno


def broken(text: str, cause: BaseException | None) -> OSError:
    error = ConnectionAbortedError(errno.ECONNABORTED, text)
    error.__cause__ = cause
    return error
