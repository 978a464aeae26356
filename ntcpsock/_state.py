"""The state directory: the node's private key, and the keys pinned at first use.

Files: `node.key` (mode 0600), `pins.json` (names and brokers with their keys). Several processes may
share one directory: each write replaces the whole file, after reading it anew, under a lock file.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from ntcpsock._address import decode_node_id, encode_node_id
from ntcpsock._errors import ConfigurationError, IdentityMismatch
from ntcpsock._identity import Identity

PinKind = Literal["names", "brokers"]


def load_identity(path: Path) -> Identity:
    """The key in `path`, made there at first use (mode 0600). Raises ConfigurationError."""
    try:
        return _read_identity(path)
    except FileNotFoundError:
        pass
    identity = Identity.generate()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".node.key.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(identity.seed.hex().encode() + b"\n")
        # link() fails where another process was faster: then its key is the node's key.
        os.link(temporary, path)
    except FileExistsError:
        return _read_identity(path)
    finally:
        os.unlink(temporary)
    return identity


def _read_identity(path: Path) -> Identity:
    text = path.read_text(encoding="ascii", errors="replace").strip()
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise ConfigurationError(f"{path}: others can read this private key; run: chmod 600 {path}")
    try:
        return Identity.from_seed(bytes.fromhex(text))
    except ValueError:
        raise ConfigurationError(f"{path}: not a node key (64 hexadecimal digits)") from None


class Pins:
    """Keys seen first for names and brokers; kept in `pins.json`, or in memory when `directory` is None."""

    def __init__(self, directory: Path | None) -> None:
        self._path = None if directory is None else directory / "pins.json"
        self._memory: dict[str, dict[str, str]] = {}

    def get(self, kind: PinKind, name: str) -> bytes | None:
        """The 32-byte key pinned for `name`, or None."""
        text = self._read().get(kind, {}).get(name)
        return None if text is None else decode_node_id(text)

    def check(self, kind: PinKind, name: str, key: bytes) -> None:
        """Pin `key` for `name` at first use. Raises IdentityMismatch where another one is pinned."""
        pinned = self.get(kind, name)
        if pinned is None:
            with self._locked():
                table = self._read()
                # Another process may have pinned it since.
                text = table.setdefault(kind, {}).setdefault(name, encode_node_id(key))
                self._write(table)
            pinned = decode_node_id(text)
        if pinned != key:
            known = encode_node_id(pinned) if pinned else "?"
            where = self._path or "memory"
            raise IdentityMismatch(
                f"{name} shows key {encode_node_id(key)}, but {known} is pinned for it. "
                f"If the change is meant, remove its line from {where}"
            )

    def forget(self, kind: PinKind, name: str) -> None:
        with self._locked():
            table = self._read()
            if table.get(kind, {}).pop(name, None) is not None:
                self._write(table)

    def _read(self) -> dict[str, dict[str, str]]:
        if self._path is None:
            return self._memory
        try:
            table = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (ValueError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{self._path}: {error}; repair or remove it") from error
        if not isinstance(table, dict) or not all(isinstance(part, dict) for part in table.values()):
            raise ConfigurationError(f"{self._path}: not a table of pins; repair or remove it")
        return table

    def _write(self, table: dict[str, dict[str, str]]) -> None:
        if self._path is None:
            self._memory = table
            return
        handle, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=".pins.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(table, file, indent=1, sort_keys=True)
        os.replace(temporary, self._path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._path is None:
            yield
            return
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(self._path.with_suffix(".lock"), "a") as file:
            if os.name == "posix":
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
            yield
