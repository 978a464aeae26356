"""The names of a cluster as one broker has them: all of them, so that reading needs nobody, and Redis may be away.

The same file as a broker's that is alone: who joins a cluster brings its names along. What is learnt is written some
hundreds at a time, and known before: a commit costs more than all else that a new name does here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from ntcpsock._errors import ConfigurationError
from ntcpsock._servers.cluster.rows import Change
from ntcpsock._servers.names import Claim, NameRecord, NameStore

#: Changes that wait to be written, at most.
MAX_UNWRITTEN: Final = 500


class NameReplica(NameStore):
    """Follows the changes that the store tells. What a disk refuses is counted in `unwritten`, and read from the store
    when it is asked for."""

    def __init__(self, path: Path | None, *, per_key: int = 16, total: int = 1_000_000) -> None:
        """As a NameStore."""
        self._learnt: dict[str, NameRecord | None] = {}
        self.unwritten = 0
        #: Names whose owner the store knew better: there were two stores, or one was emptied.
        self.lost = 0
        #: Told of a key whose names may be others now.
        self.changed: Callable[[bytes], None] = _nothing
        #: Tells the store what the operator says: a name, and whose it is from now on.
        self.decree: Callable[[str, bytes | None], None] = _nobody
        super().__init__(path, per_key=per_key, total=total)

    @property
    def per_key(self) -> int:
        """How many names one key may have."""
        return self._per_key

    @property
    def total(self) -> int:
        """How many names there may be."""
        return self._total

    def get(self, name: str) -> NameRecord | None:
        """Who has `name`."""
        return self._learnt[name] if name in self._learnt else super().get(name)

    def names_of(self, key: bytes) -> tuple[str, ...]:
        """The names of `key`, oldest first."""
        written = super().names_of(key)
        if not self._learnt:
            return written
        ours = [name for name, record in self._learnt.items() if record is not None and record.key == key]
        # Those that were there before keep their places.
        before = [name for name in written if name not in self._learnt or name in ours]
        return (*before, *(name for name in ours if name not in written))

    def claim(self, names: tuple[str, ...], key: bytes, allow: bytes | None) -> tuple[Claim, str | None]:
        """As a store that is alone. Raises sqlite3.Error."""
        self.flush()
        return super().claim(names, key, allow)

    def search(self, match: str, limit: int) -> list[tuple[str, bytes, int]]:
        """Names that have `match` in them, in order, with their keys, and since when this broker knows."""
        self.flush()
        return super().search(match, limit)

    def assign(self, name: str, key: bytes) -> bytes | None:
        """Bind `name` to `key`, whoever had it; whose it was. Raises ConfigurationError while the store is away."""
        return self._decree(name, key)

    def release(self, name: str) -> bytes | None:
        """Bind `name` to nobody; whose it was. Raises ConfigurationError while the store is away."""
        return self._decree(name, None)

    def _decree(self, name: str, key: bytes | None) -> bytes | None:
        before = self.get(name)
        if before is not None or key is not None:
            self.decree(name, key)
            self.apply([Change(0, name, None if key is None else NameRecord(name, key, None))])
        return None if before is None else before.key

    def apply(self, changes: Iterable[Change]) -> None:
        """Take them over, whatever stood here."""
        for change in changes:
            before = self.get(change.name)
            if before == change.record:
                continue
            self._learnt.pop(change.name, None)
            self._learnt[change.name] = change.record
            for record in (before, change.record):
                if record is not None:
                    self.changed(record.key)
            if len(self._learnt) >= MAX_UNWRITTEN:
                self.flush()

    def flush(self) -> None:
        """Write what was learnt. Beyond the bound of names, new ones are left out."""
        if not self._learnt:
            return
        changes = list(self._learnt.items())
        self._learnt.clear()
        count, lost = self._count, self.lost
        try:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                for name, record in changes:
                    self._write_one(name, record)
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise
        except sqlite3.Error:
            self._count, self.lost = count, lost
            self.unwritten += len(changes)

    def _write_one(self, name: str, record: NameRecord | None) -> None:
        ours = super().get(name)
        if ours == record:
            return
        if record is None:
            self._database.execute("DELETE FROM names WHERE name = ?", (name,))
            self._count -= 1
            return
        if ours is not None and ours.key != record.key:
            self.lost += 1
        if ours is None and self._count >= self._total:
            return
        self._database.execute(
            "INSERT INTO names (name, key, allow) VALUES (?, ?, ?) "
            "ON CONFLICT (name) DO UPDATE SET key = excluded.key, allow = excluded.allow",
            (name, record.key, record.allow),
        )
        self._count += ours is None

    def page(self, after: str, count: int) -> list[NameRecord]:
        """The next names in alphabetical order. Raises sqlite3.Error."""
        self.flush()
        rows = self._database.execute(
            "SELECT name, key, allow FROM names WHERE name > ? ORDER BY name LIMIT ?", (after, count)
        )
        return [NameRecord(*row) for row in rows]

    def close(self) -> None:
        """With what was learnt."""
        self.flush()
        super().close()


def _nothing(key: bytes) -> None:
    """Nobody keeps what he was told of names."""


def _nobody(name: str, key: bytes | None) -> None:
    raise ConfigurationError("names are decided in a store that is not there")
