"""Runs at the start of every Python that a program under `ntcp run` starts, because its folder comes first
in that program's PYTHONPATH. It patches, takes its own traces out of `sys.path`, and then does what would
have been done without it: the installation's own `sitecustomize` runs, or there is none.

A Python that has no ntcpsock (another environment's) starts as it always does.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec


def _start() -> None:
    folder = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != folder]
    if os.environ.get("NTCP_PATCH") == "1":
        try:
            from ntcpsock.cli.children import begin
        except ImportError:
            pass
        else:
            begin()
    spec = PathFinder.find_spec(__name__, sys.path)
    if spec is None or spec.loader is None:
        # The module `site` passes over this one without a word, and so does a program that looks for it.
        raise ModuleNotFoundError(f"No module named {__name__!r}", name=__name__)
    module = module_from_spec(spec)
    sys.modules[__name__] = module
    spec.loader.exec_module(module)


_start()
