"""`os._exit` in a process whose engine runs: what the program has sent goes out first.

A process that leaves without exit handlers loses no bytes that it has given to plain sockets: they are the
kernel's. Those of a connection by name are the engine's to carry, and the engine ends with its process. Forked
servers and workers leave this way at the end of each connection, and so it must not cost the last answer.
What no function of Python's announces (a signal that kills, `exec`, C's own `_exit`) still ends the engine
at once, and its connections are reset.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from typing import NoReturn

_plain = os._exit
_bring_out: Callable[[], object] = int


def install(bring_out: Callable[[], object]) -> None:
    """From now on `os._exit` calls `bring_out` first, which sets its own limit."""
    global _plain, _bring_out
    _bring_out = bring_out
    if os._exit is not _exit:
        _plain = os._exit
        os._exit = _exit


def uninstall() -> None:
    """The plain `os._exit` again, unless somebody has replaced ours meanwhile."""
    if os._exit is _exit:
        os._exit = _plain


def _exit(status: int) -> NoReturn:
    """Exit to the system with `status`, without the interpreter's clean-up."""
    operator.index(status)  # a wrong type is an error, not an end
    try:
        _bring_out()
    finally:
        _plain(status)
