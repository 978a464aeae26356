"""Which modules took what `install()` replaces before it did: they keep the system's, and names fail there."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

# `socket` is what is patched, `_socket` what it is made of. `ssl` has a hook, which the patch uses; trio looks
# the class up at each use, and keeps it in a left-over of its own.
_NOT_CONCERNED = ("socket", "_socket", "ssl", "trio", "ntcpsock")


def modules_that_took(originals: Mapping[str, Any]) -> dict[str, list[str]]:
    """{module: what it holds or derives from}, for modules that did `from socket import ...` earlier.

    originals: what the module `socket` held under each replaced name.
    """
    by_identity = {id(value): name for name, value in originals.items()}
    found: dict[str, list[str]] = {}
    for name, module in list(sys.modules.items()):
        if _is_concerned(name):
            for value in list(getattr(module, "__dict__", {}).values()):
                taken = by_identity.get(id(value))
                if taken is not None and taken not in found.get(name, ()):
                    found.setdefault(name, []).append(taken)
    for derived in _subclasses(originals["socket"]):
        module_name = derived.__module__
        if _is_concerned(module_name) and module_name in sys.modules:
            found.setdefault(module_name, []).append(f"a subclass, {derived.__qualname__}")
    return found


def describe(found: Mapping[str, list[str]]) -> str:
    """One line for people."""
    modules = "; ".join(f"{name} ({', '.join(found[name])})" for name in sorted(found))
    return (
        f"modules that were imported before install() keep the system's sockets, where .ntcp names are "
        f"unknown: {modules}. Call install() before they are imported, or start the program with `ntcp run`."
    )


def _is_concerned(module: str) -> bool:
    return module.split(".")[0] not in _NOT_CONCERNED


def _subclasses(cls: type) -> Iterator[type]:
    derived: type
    for derived in cls.__subclasses__():
        if _is_concerned(derived.__module__):
            yield derived
            yield from _subclasses(derived)
