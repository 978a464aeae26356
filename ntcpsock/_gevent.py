"""gevent: a clear word instead of half of it.

Its monkey patching puts its own sockets under a program, and greenlets under the threads of everybody. The
engine needs a thread that runs while the program waits, and trio one that has `select.epoll`, which gevent takes
away. So names are reached from beside: by `ntcp forward`, `ntcp proxy` and `ntcp expose`.
"""

from __future__ import annotations

import errno
import sys
import warnings
from typing import Any

from ntcpsock._errors import NTCPError

WORD = (
    "gevent's monkey patching replaces the sockets and threads of this program, and .ntcp names are unknown to "
    "its own. Reach a name through `ntcp forward PORT NAME:PORT` or `ntcp proxy`, and give a gevent server a name "
    "with `ntcp expose NAME:PORT --to PORT`"
)


def has_patched(module: str) -> bool:
    """Whether gevent has put its own into `module`. Never imports gevent."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched(module))


def check(module: str) -> None:
    """Raises NTCPError (EOPNOTSUPP) where gevent has patched `module`."""
    if has_patched(module):
        raise NTCPError(errno.EOPNOTSUPP, WORD)


def subscribe(monkey: Any) -> None:
    """When `gevent.monkey` was imported under `install()`: have it tell us what it is about to patch."""
    from importlib import import_module

    events: Any = import_module("gevent.events")
    if will_patch not in events.subscribers:
        events.subscribers.append(will_patch)


def will_patch(event: Any) -> None:
    """Called by gevent before it patches a module: where it takes the sockets from us, a PatchWarning says so."""
    if getattr(event, "module_name", None) != "socket":
        return
    patch = sys.modules["ntcpsock._patch"]
    if patch.is_installed():
        warnings.warn(WORD, patch.PatchWarning, stacklevel=_depth_of_caller())


def _depth_of_caller() -> int:
    """For `warnings.warn`: the frame that asked gevent to patch."""
    depth = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_between(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
        depth += 1
    return depth


def _is_between(module: str) -> bool:
    return module.split(".")[0] in ("gevent", "ntcpsock", "zope")
