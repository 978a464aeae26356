"""How many files and sockets this process may have open. Windows counts differently, and sets no such limit."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Final

if sys.platform != "win32":
    import resource

_UNLIMITED: Final = 1 << 20


def descriptor_limit() -> int:
    """The number of descriptors that this process may have now."""
    if sys.platform == "win32":
        return _UNLIMITED
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _UNLIMITED if soft == resource.RLIM_INFINITY else soft


def raise_descriptor_limit() -> None:
    """As many descriptors as this process may have: the usual 1,024 are for programs that use `select`."""
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # not where "any number" is not meant
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
