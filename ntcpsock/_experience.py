"""Which techniques have worked on which network: `networks.json` in the state directory.

It makes what has never worked here start later, and forbids nothing. So nothing depends on it: a file that cannot be
read is as good as none, one that cannot be written is kept in memory, and entries expire.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

# A technique is late when it has failed towards so many nodes, one of which may be the reason each time.
FAILED_NODES = 3

# Networks change, and so do their routers.
EXPIRY = 7 * 86400.0
MAX_NETWORKS = 32
_MAX_TECHNIQUES = 32
_MAX_FILE = 256 * 1024

# They say nothing about a network: one fails wherever two nodes are in different ones, the other works in all.
_NOT_REMEMBERED = frozenset({"lan", "relay", "turn"})


class Record(msgspec.Struct):
    """worked: whether it ever has; failed: the nodes (hashes) towards which it failed; last: of either, Unix time."""

    worked: bool = False
    failed: list[str] = []
    last: float = 0.0


_Networks = dict[str, dict[str, Record]]
_decoder = msgspec.json.Decoder(_Networks)


class Experience:
    """One process's view of the file. `save` brings what was noted since into it."""

    def __init__(self, directory: Path | None, clock: Callable[[], float] = time.time) -> None:
        self._path = None if directory is None else directory / "networks.json"
        self._clock = clock
        self._networks = self._read()
        self._noted: list[tuple[str, str, str, bool, float]] = []

    def late(self, network: str) -> frozenset[str]:
        """The techniques that have failed on this network time and again, while others worked there."""
        records = self._current(self._networks.get(network, {}))
        if not any(record.worked for record in records.values()):
            return frozenset()
        return frozenset(
            technique
            for technique, record in records.items()
            if not record.worked and len(record.failed) >= FAILED_NODES
        )

    def note(self, network: str, technique: str, node_key: bytes, worked: bool) -> None:
        """A technique has connected us with a node, or failed to."""
        if technique not in _NOT_REMEMBERED:
            noted = (network, technique, hashed(node_key), worked, self._clock())
            if _apply(self._networks, noted):
                self._noted.append(noted)

    def save(self) -> None:
        """Write what is new, if anything is; other processes' entries stay."""
        noted, self._noted = self._noted, []
        if not noted or self._path is None:
            return
        networks = self._read()
        for entry in noted:
            _apply(networks, entry)
        self._networks = self._pruned(networks)
        with suppress(OSError):
            replace_file(self._path, msgspec.json.format(msgspec.json.encode(self._networks), indent=1))

    def _read(self) -> _Networks:
        if self._path is None:
            return {}
        try:
            with open(self._path, "rb") as file:
                return self._pruned(_decoder.decode(file.read(_MAX_FILE)))
        except (OSError, ValueError, RecursionError):  # msgspec's errors are ValueErrors
            return {}

    def _current(self, records: dict[str, Record]) -> dict[str, Record]:
        now = self._clock()
        return {name: record for name, record in records.items() if now - EXPIRY < record.last < now + EXPIRY}

    def _pruned(self, networks: _Networks) -> _Networks:
        kept = {name: self._current(records) for name, records in networks.items()}
        used = [name for name, records in kept.items() if records and len(records) <= _MAX_TECHNIQUES]
        used.sort(key=lambda name: max(record.last for record in kept[name].values()))
        return {name: kept[name] for name in used[-MAX_NETWORKS:]}


def _apply(networks: _Networks, noted: tuple[str, str, str, bool, float]) -> bool:
    """Enter a note. Whether that told anything new."""
    network, technique, node, worked, now = noted
    record = networks.setdefault(network, {}).setdefault(technique, Record())
    is_news = now - record.last > EXPIRY / 8
    if worked and not record.worked:
        is_news, record.worked, record.failed = True, True, []
    elif not worked and not record.worked and node not in record.failed:
        is_news, record.failed = True, [*record.failed, node][-FAILED_NODES:]
    if is_news:
        record.last = now
    return is_news


def network_id(observed: str) -> str:
    """A name for the network that this machine is in: a hash of its gateway, or, where the system does not tell all of
    that, of the address as which the broker sees us, `observed`."""
    gateway, hardware = _gateway()
    return hashed((f"{gateway} {hardware}" if hardware else f"{gateway} {observed}").encode())


def _gateway() -> tuple[str, str]:
    """Address and hardware address of the default gateway (Linux), each "" where unknown."""
    with suppress(OSError, ValueError, IndexError):
        routes = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
        gateway = next((fields[2] for fields in routes if fields[1] == "00000000"), "")
        if gateway:
            address = ".".join(str(byte) for byte in reversed(bytes.fromhex(gateway)))
            neighbours = [line.split() for line in Path("/proc/net/arp").read_text().splitlines()[1:]]
            return address, next((fields[3] for fields in neighbours if fields[0] == address), "")
    return "", ""


def hashed(data: bytes) -> str:
    """What a file may say of a network or a node: the same for the same one, and nothing else."""
    return hashlib.blake2b(data, digest_size=12, person=b"ntcp network").hexdigest()


def replace_file(path: Path, data: bytes) -> None:
    """Write the whole file, or leave the one before. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
