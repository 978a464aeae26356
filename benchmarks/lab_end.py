"""A process in a host of the lab that tells its story in lines of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from typing import Any

from ntcpsock.cli.stage import Stage
from ntcpsock.testing.natlab import Host


class End:
    """One process of `python -m MODULE ARGUMENTS`, and what it has told. `stack` ends it."""

    def __init__(
        self,
        stack: ExitStack,
        host: Host,
        stage: Stage,
        name: str,
        module: str,
        *arguments: str,
        settings: dict[str, str] | None = None,
    ) -> None:
        self.lines: list[dict[str, Any]] = []
        self._what = f"{module} {' '.join(arguments)}"
        self._process = host.popen(
            [sys.executable, "-m", module, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=stage.environment(name, **(settings or {})),
        )
        stack.callback(self._end)
        threading.Thread(target=self._read, daemon=True).start()

    def _end(self) -> None:
        self._process.terminate()
        self._process.communicate()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(json.loads(line))

    def first(self, word: str = "", patience: float = 60.0) -> dict[str, Any]:
        """Its first line that has `word`, any where that is ""; TimeoutError after `patience` seconds."""
        deadline = time.monotonic() + patience
        while True:
            has_ended = self._process.poll() is not None
            for line in self.lines:
                if not word or word in line:
                    return line
            if time.monotonic() > deadline or has_ended:
                raise TimeoutError(f"{self._what}: no {word or 'word'}" + " before its end" * has_ended)
            time.sleep(0.02)
