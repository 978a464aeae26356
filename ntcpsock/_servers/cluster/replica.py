"""The names of a cluster as one broker has them: all of them, so that reading needs nobody, and Redis may be away.

The same file as a broker's that is alone: who joins a cluster brings its names along.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from ntcpsock._servers.cluster.rows import Change
from ntcpsock._servers.names import NameRecord, NameStore


class NameReplica(NameStore):
    """Follows the changes that the store tells. What a disk refuses is counted in `unwritten`, and read from the store
    when it is asked for."""

    unwritten = 0
    #: Names whose owner the store knew better: there were two stores, or one was emptied.
    lost = 0

    @property
    def per_key(self) -> int:
        """How many names one key may have."""
        return self._per_key

    @property
    def total(self) -> int:
        """How many names there may be."""
        return self._total

    def apply(self, changes: Iterable[Change]) -> None:
        """Take them over, whatever stood here. Beyond the bound of names, new ones are left out."""
        for change in changes:
            try:
                self._apply(change)
            except sqlite3.Error:
                self.unwritten += 1

    def _apply(self, change: Change) -> None:
        ours = self.get(change.name)
        if ours == change.record:
            return
        if change.record is None:
            self._database.execute("DELETE FROM names WHERE name = ?", (change.name,))
            self._count -= 1
            return
        if ours is not None and ours.key != change.record.key:
            self.lost += 1
        if ours is None and self._count >= self._total:
            return
        self._database.execute(
            "INSERT INTO names (name, key, allow) VALUES (?, ?, ?) "
            "ON CONFLICT (name) DO UPDATE SET key = excluded.key, allow = excluded.allow",
            (change.name, change.record.key, change.record.allow),
        )
        self._count += ours is None

    def page(self, after: str, count: int) -> list[NameRecord]:
        """The next names in alphabetical order. Raises sqlite3.Error."""
        rows = self._database.execute(
            "SELECT name, key, allow FROM names WHERE name > ? ORDER BY name LIMIT ?", (after, count)
        )
        return [NameRecord(*row) for row in rows]
