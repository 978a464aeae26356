"""The wire from its owner's side: start it, ask it, end it."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from ntcpsock.testing.natlab.namespace import LabUnavailable

_GRACE = 10.0  # seconds to remove namespaces in


class WireProcess:
    """The running helper process (see `wire`). Questions may come from any thread."""

    def __init__(
        self,
        links: Sequence[dict[str, Any]],
        namespaces: Sequence[str],
        device: str,
        seed: int | None,
        *,
        record: bool = False,
    ) -> None:
        specification = {
            "owner": os.getpid(),
            "device": device,
            "seed": seed,
            "record": record,
            "links": list(links),
            "namespaces": list(namespaces),
        }
        self._asking = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ntcpsock.testing.natlab.wire"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests = self._process.stdin
        self._answers = self._process.stdout
        self._tell(pickle.dumps(specification).hex())

    def wait_ready(self) -> None:
        """Return when its devices exist. Raises LabUnavailable where they cannot."""
        answer = self._answers.readline().strip()
        if answer != "ready":
            raise LabUnavailable(f"the wire does not start: {answer or 'see its error above'}")

    def ask(self, what: str, router: str | None = None, **more: Any) -> Any:
        """One question, and its answer. Raises LabUnavailable where the wire has died."""
        with self._asking:
            self._tell(json.dumps({"ask": what, "router": router, **more}))
            answer = self._answers.readline()
        if not answer:
            raise LabUnavailable("the wire has ended: see its error above")
        return json.loads(answer)

    def stop(self) -> None:
        """End it; it removes the namespaces on its way out."""
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()

    def _tell(self, line: str) -> None:
        # Where it has died already, its answer will be missing, and that says more.
        with contextlib.suppress(BrokenPipeError):
            self._requests.write(line + "\n")
            self._requests.flush()
