"""How long the NATs of the networks seen so far keep an idle mapping, in `lifetimes.json` of the state directory.

`ntcp doctor --lifetime` measures and writes it, nodes read it when they start. A network is known by the public
address that the world sees. The file is a memory, not a truth: what is unreadable counts as forgotten.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

#: Seconds between keep-alives through a NAT that was not measured; most keep UDP for 30 s or more.
USUAL_INTERVAL = 20.0
_SHARE = 0.6
SHORTEST_INTERVAL = 2.0
# A STUN server may close a TCP connection after 120 s without a request, and warm ports ask 2.25 times as seldom.
LONGEST_INTERVAL = 45.0

_MOST_NETWORKS = 64
_LONGEST_FILE = 16384


class Lifetimes:
    """The memory in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "lifetimes.json"

    def get(self, public_host: str) -> float | None:
        """Seconds after which a mapping was still alive there, or None."""
        return self._read().get(public_host)

    def put(self, public_host: str, seconds: float) -> None:
        """Remember; the networks noted longest ago go first. Raises OSError where it cannot be written."""
        table = self._read()
        table.pop(public_host, None)
        table[public_host] = seconds
        kept = dict(list(table.items())[-_MOST_NETWORKS:])
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=".lifetimes.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(kept, file, indent=1)
        # Of two writers at once the later one wins: the other one's network is measured again.
        os.replace(temporary, self._path)

    def _read(self) -> dict[str, float]:
        try:
            with open(self._path, encoding="utf-8") as file:
                table = json.loads(file.read(_LONGEST_FILE))
        except (OSError, ValueError):
            return {}
        if not isinstance(table, dict):
            return {}
        return {
            host: float(seconds)
            for host, seconds in table.items()
            if isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and seconds > 0
        }


def keep_alive_interval(lifetime: float) -> float:
    """Seconds between keep-alives through a NAT that keeps an idle mapping for `lifetime` seconds."""
    return max(SHORTEST_INTERVAL, min(LONGEST_INTERVAL, _SHARE * lifetime))
