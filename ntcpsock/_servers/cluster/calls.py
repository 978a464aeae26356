"""What a command is in Redis, and what its answer means. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ntcpsock._errors import BadMessage
from ntcpsock._servers.cluster.commands import Claim, Command, Decree, Fetch, Forward, Place
from ntcpsock._servers.cluster.machine import ClusterMachine
from ntcpsock._servers.cluster.rows import Change, decode_row_untrusted, encode_row
from ntcpsock._servers.names import NameRecord
from ntcpsock._servers.sources import Datagram


class StoreChangedError(Exception):
    """The store is not what it was: begin anew."""


def script_call(command: Command, machine: ClusterMachine, run: bytes) -> tuple[str, list[Any]] | None:
    """The script's name and its ARGV; None for a command that needs none. run: of the server, as we know it."""
    match command:
        case Claim(_, names, key, allow):
            return "claim", claim_arguments(machine, run, names, key, allow)
        case Decree(name, None):
            return "decree", [name, b""]
        case Decree(name, bytes() as key):
            return "decree", [name, encode_row(key, None)]
        case Forward(_, key, mark, exact, frame):
            return "forward", [machine.broker.hex().encode(), key, mark, b"1" if exact else b"0", frame]
        case _:
            return None


def claim_arguments(
    machine: ClusterMachine, run: bytes, names: Sequence[str], key: bytes, allow: bytes | None
) -> list[Any]:
    """ARGV of CLAIM."""
    return [run, key, encode_row(key, allow), machine.names.per_key, machine.names.total, *names]


def place_arguments(place: Place) -> tuple[bytes, bytes, bytes]:
    """Its part of PLACE's ARGV."""
    marks = b"" if place.marks is None else b",%s," % b",".join(place.marks)
    return place.key, marks, place.message


def settle(machine: ClusterMachine, command: Command, result: Any, now: float) -> list[Datagram]:
    """Give the machine the answer to a command. Raises StoreChangedError."""
    match command:
        case Claim(number):
            if result[0] == b"stale":
                raise StoreChangedError("restarted")
            name = result[1].decode() if len(result) > 1 else None
            record = None if name is None or len(result) < 3 else _record(machine, name, result[2])
            changes = [] if record is None else [Change(0, record.name, record)]
            return machine.claimed(number, result[0].decode(), name, changes, now)
        case Fetch(number, name):
            return machine.fetched(number, None if result is None else _record(machine, name, result), now)
        case Forward(number):
            return machine.forwarded(number, bool(result), now)
        case Decree():
            return []
        case _:
            if not result:
                machine.counters["nobody listens"] += 1
            return []


def _record(machine: ClusterMachine, name: str, row: bytes) -> NameRecord | None:
    """None, counted, where it is none of ours: nobody else writes there who should."""
    try:
        return decode_row_untrusted(name, row)
    except BadMessage as error:
        machine.counters[f"dropped: {error.args[0]}"] += 1
        return None
