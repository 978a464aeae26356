"""The far side of `Host.start`: a process inside a host's namespace that runs one pickled call.

Run as `python -m ntcpsock.testing.natlab.call FD`; the call comes on standard input, its outcome goes to FD.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys


def main() -> None:
    outcome_fd = int(sys.argv[1])
    # The path comes first and alone: the function may live in a module that only it leads to.
    sys.path[:] = pickle.load(sys.stdin.buffer)
    function, args = pickle.load(sys.stdin.buffer)
    try:
        outcome = (True, function(*args))
    except Exception as error:
        error.__traceback__ = None
        outcome = (False, error)
    # Nobody may be left who asks.
    with contextlib.suppress(BrokenPipeError), os.fdopen(outcome_fd, "wb", buffering=0) as stream:
        data = memoryview(pickle.dumps(outcome))
        while data:
            data = data[stream.write(data) :]


if __name__ == "__main__":
    main()
