"""How `ntcp run` reaches the Python programs that its program starts: by their environment.

Variables say that and how to patch, and a folder in front of PYTHONPATH holds a `sitecustomize` that does it
before the child's own code runs: `subprocess`, multiprocessing's spawn and forkserver, `os.exec`. A forked
child has the patch already. Not reached: `python -S`, `-E` and `-I`, programs whose environment was replaced,
and interpreters that have no ntcpsock.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

#: "1" in the environment of programs that are to be patched.
VARIABLE = "NTCP_PATCH"

FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "_start_up")

# Settings that name files: a child may run in another directory.
_PATHS = ("NTCP_STATE", "NTCP_CONFIG", "NTCP_REPORT")


def export(environment: MutableMapping[str, str]) -> None:
    """Have the Python programs started with `environment` begin with `begin`."""
    environment[VARIABLE] = "1"
    # An empty entry, unlike an empty variable, means the current directory.
    before = environment["PYTHONPATH"].split(os.pathsep) if environment.get("PYTHONPATH") else []
    others = [entry for entry in before if entry != FOLDER]
    environment["PYTHONPATH"] = os.pathsep.join([FOLDER, *others])
    for name in _PATHS:
        if environment.get(name):
            environment[name] = os.path.abspath(os.path.expanduser(environment[name]))


def begin() -> None:
    """Patch this process, before its program is imported. Nothing heavy is loaded, no engine starts."""
    import ntcpsock

    ntcpsock.install()
    if report := os.environ.get("NTCP_REPORT"):
        from ntcpsock.cli.run_report import install_report

        install_report(report)
