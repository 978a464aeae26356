"""Names and the keys that they are bound to, first come: in SQLite, or in memory.

The only state of a broker that outlives it. A name's policy is kept beside it, so that a private name
whose node is away looks to strangers as if nobody had it.
"""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ntcpsock._errors import ConfigurationError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS names (
    name TEXT PRIMARY KEY NOT NULL,
    key BLOB NOT NULL,
    allow BLOB,
    claimed INTEGER NOT NULL DEFAULT (CAST(strftime('%s', 'now') AS INTEGER))
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS names_by_key ON names (key, claimed, name);
"""


@dataclass(frozen=True, slots=True)
class NameRecord:
    """A name's owner, and the digests of those who may know it (None: everybody)."""

    name: str
    key: bytes
    allow: bytes | None


#: away: the store that decides does not answer. unwritten: the disk takes no more.
Claim = Literal["kept", "taken", "too many", "full", "away", "unwritten"]


class NameStore:
    """The registry of names. Raises `sqlite3.Error` where the disk fails; callers answer "busy"."""

    def __init__(self, path: Path | None, *, per_key: int = 16, total: int = 1_000_000) -> None:
        """`path` None keeps names in memory. Raises ConfigurationError where the file cannot be used."""
        self._per_key = per_key
        self._total = total
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                # SQLite would make it with the umask's mode; who knows whom is nobody else's business.
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._database = sqlite3.connect(":memory:" if path is None else path, isolation_level=None)
            # A commit need not wait for the disk: after a power cut the last names are claimed again.
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.executescript(_SCHEMA)
            self._count: int = self._database.execute("SELECT count(*) FROM names").fetchone()[0]
        except (sqlite3.Error, OSError) as error:
            raise ConfigurationError(f"{path}: {error}") from error

    @property
    def count(self) -> int:
        """How many names there are."""
        return self._count

    def get(self, name: str) -> NameRecord | None:
        """Who has `name`."""
        row = self._database.execute("SELECT name, key, allow FROM names WHERE name = ?", (name,)).fetchone()
        return None if row is None else NameRecord(*row)

    def names_of(self, key: bytes) -> tuple[str, ...]:
        """The names of `key`, oldest first."""
        rows = self._database.execute("SELECT name FROM names WHERE key = ? ORDER BY claimed, name", (key,))
        return tuple(row[0] for row in rows)

    def claim(self, names: tuple[str, ...], key: bytes, allow: bytes | None) -> tuple[Claim, str | None]:
        """Bind all of `names` to `key` with this policy, or none; and which name is in the way."""
        records = [self.get(name) for name in names]
        for record in records:
            if record is not None and record.key != key:
                return "taken", record.name
        new = [name for name, record in zip(names, records, strict=True) if record is None]
        if new and len(self.names_of(key)) + len(new) > self._per_key:
            return "too many", new[0]
        if self._count + len(new) > self._total:
            return "full", new[0]
        # A node says the same again and again; only a change costs a write.
        changed = [record.name for record in records if record is not None and record.allow != allow]
        if new or changed:
            self._write(new, changed, key, allow)
        return "kept", None

    def search(self, match: str, limit: int) -> list[tuple[str, bytes, int]]:
        """Names that have `match` in them, in order, with their keys, and since when (Unix time)."""
        escaped = match.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        return self._database.execute(
            "SELECT name, key, claimed FROM names WHERE name LIKE ? ESCAPE '\\' ORDER BY name LIMIT ?",
            (f"%{escaped}%", limit),
        ).fetchall()

    def assign(self, name: str, key: bytes) -> bytes | None:
        """Bind `name` to `key`, whoever had it; whose it was. The operator's word has no quota."""
        before = self.get(name)
        if before is None:
            self._write([name], [], key, None)
        elif before.key != key:
            self._database.execute("UPDATE names SET key = ?, allow = NULL WHERE name = ?", (key, name))
        return None if before is None else before.key

    def release(self, name: str) -> bytes | None:
        """Bind `name` to nobody; whose it was, None where it was nobody's."""
        before = self.get(name)
        if before is None:
            return None
        self._database.execute("DELETE FROM names WHERE name = ?", (name,))
        self._count -= 1
        return before.key

    def _write(self, new: list[str], changed: list[str], key: bytes, allow: bytes | None) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            self._database.executemany(
                "INSERT INTO names (name, key, allow) VALUES (?, ?, ?)", [(name, key, allow) for name in new]
            )
            self._database.executemany(
                "UPDATE names SET allow = ? WHERE name = ? AND key = ?",
                [(allow, name, key) for name in changed],
            )
            self._database.execute("COMMIT")
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._count += len(new)

    def close(self) -> None:
        self._database.close()
