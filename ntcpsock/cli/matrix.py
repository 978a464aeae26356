"""What `ntcp lab matrix` finds, as data: pairs of routers with their tries, in a file that can be resumed (pure)."""

from __future__ import annotations

import json
import os
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ntcpsock.cli.matrix_topologies import TOPOLOGIES, direct_way
from ntcpsock.testing.natlab import Way, expected_direct

#: Every word of RFC 4787 and 5382 for TCP, and the families of devices; the easiest first.
DEFAULT_KINDS = (
    "none",
    "firewall",
    "full-cone",
    "cgn",
    "rfc",
    "default",
    "openwrt",
    "mikrotik",
    "eim+preserving=1000+rst",
    "adm+adf+sequential=2",
    "symmetric",
    "apdm+preserving",
    "cgn-session",
    "cisco",
    "fully-random",
    "mobile",
)

#: Those of `--port-mapping`: routers that a real miniupnpd can serve, and exact ones that no punch gets through.
MAPPING_KINDS = (
    "full-cone",
    "cgn",
    "rfc",
    "default",
    "default-accept",
    "reject",
    "openwrt",
    "symmetric",
    "apdm+preserving",
    "cgn-session",
    "cisco",
    "fully-random",
    "mobile",
)

#: Those of `--everything`: also networks that let only some things out. With the relay every pair connects.
EVERY_KIND = (*DEFAULT_KINDS, "udp-blocked", "only-443", "proxy-only")

#: Share of tries that must succeed where a direct path is expected, and where there is a relay; and of those, where a
#: direct path is expected beside the relay, the share that must take it: on a busy machine it may come too late.
EXPECTED_SHARE = 0.97
EXPECTED_SHARE_RELAYED = 1.0
EXPECTED_SHARE_DIRECT = 0.8
#: Path round trips to connect where no port has to be foreseen: the median and the 95th percentile.
EXPECTED_MEDIAN, EXPECTED_P95 = 2.8, 5.0

#: Techniques that are no direct path.
RELAYED = ("relay", "turn")

_FORMAT = 1


class MatrixFileError(ValueError):
    """A file is no matrix, or one that was made with other settings."""


class Cell(NamedTuple):
    """What is tried: host A, behind `nat_a`, dials host B; with a topology both stand for its kind of router."""

    nat_a: str
    nat_b: str
    topology: str | None = None

    def __str__(self) -> str:
        if self.topology is None:
            return f"{self.nat_a} → {self.nat_b}"
        return f"{self.topology}, {self.nat_a}"


@dataclass(frozen=True, slots=True)
class Try:
    """One connect. `rtts`: its seconds in path round trips, None where the lab has no delay; `first_attempt`: the
    winner needed no second SYN, and nothing had failed before it; `message`: why it failed; `maps`: the host, "a" or
    "b", whose router mapped ports, None where none did."""

    connected: bool
    seconds: float
    rtts: float | None = None
    technique: str | None = None
    first_attempt: bool = False
    message: str | None = None
    maps: str | None = None


@dataclass(frozen=True, slots=True)
class PairResult:
    """All tries of one cell. everything: with all techniques, and a relay."""

    nat_a: str
    nat_b: str
    tries: tuple[Try, ...]
    everything: bool = False
    topology: str | None = None

    @property
    def cell(self) -> Cell:
        return Cell(self.nat_a, self.nat_b, self.topology)

    @property
    def expected(self) -> Way | None:
        """Why there must be a path, or None; why a direct one, where there must be one beside the relay."""
        if self.topology is not None:
            return TOPOLOGIES[self.topology].direct(self.nat_a) or Way.RELAYED
        if self.everything:
            return direct_way(self.nat_a, self.nat_b) or Way.RELAYED
        if any(entry.maps is not None for entry in self.tries):
            return Way.MAPPED
        return expected_direct(self.nat_a, self.nat_b)

    @property
    def connected(self) -> list[Try]:
        return [entry for entry in self.tries if entry.connected]

    @property
    def share(self) -> float:
        return len(self.connected) / len(self.tries) if self.tries else 0.0

    @property
    def share_direct(self) -> float:
        """Of the tries that connected, those that needed no relay."""
        found = [entry.technique not in RELAYED for entry in self.connected]
        return sum(found) / len(found) if found else 0.0

    @property
    def technique(self) -> str | None:
        """The one that connected most often."""
        found = Counter(entry.technique for entry in self.connected)
        return found.most_common(1)[0][0] if found else None

    @property
    def median_rtts(self) -> float | None:
        found = [entry.rtts for entry in self.connected if entry.rtts is not None]
        return statistics.median(found) if found else None

    @property
    def below_expectation(self) -> bool:
        if self.expected is None:
            return False
        if not self.everything:
            return self.share < EXPECTED_SHARE
        # As every pair connects, what can be missed is a direct path.
        missed = self.expected is not Way.RELAYED and self.share_direct < EXPECTED_SHARE_DIRECT
        return missed or self.share < EXPECTED_SHARE_RELAYED


@dataclass(frozen=True, slots=True)
class Settings:
    """What all pairs of a matrix have in common. `technique`: only these, separated by commas; None: all over TCP.
    `port_mapping`: each pair is tried as often with host A's router mapping ports as with host B's. `everything`: over
    UDP too, and by way of the relay."""

    tries: int = 5
    delay_ms: float = 25.0
    technique: str | None = None
    port_mapping: bool = False
    everything: bool = False


@dataclass(slots=True)
class Matrix:
    """The cells done so far: pairs of kinds, and topologies with one kind. `kinds` gives the order of rows and
    columns."""

    settings: Settings
    kinds: tuple[str, ...]
    cells: dict[Cell, PairResult] = field(default_factory=dict)

    def add(self, result: PairResult) -> None:
        self.cells[result.cell] = result

    @property
    def pairs(self) -> list[PairResult]:
        """Those of the square."""
        return [result for result in self.cells.values() if result.topology is None]

    @property
    def topologies(self) -> list[PairResult]:
        """Those of the strip."""
        return [result for result in self.cells.values() if result.topology is not None]

    @property
    def below_expectation(self) -> list[PairResult]:
        return [result for result in self.cells.values() if result.below_expectation]

    def summary(self) -> dict[str, Any]:
        """The figures that the matrix is judged by; shares are 0 to 1, None where nothing was counted."""
        cells = list(self.cells.values())
        expected = [cell for cell in cells if cell.expected is not None]
        without = [cell for cell in expected if cell.expected is not None and not cell.expected.predicts]
        direct = [cell for cell in expected if cell.everything and cell.expected is not Way.RELAYED]
        rtts = sorted(entry.rtts for cell in without for entry in cell.connected if entry.rtts is not None)
        return {
            "pairs": len(cells),
            "pairs_connected": sum(1 for cell in cells if cell.connected),
            "pairs_expected": len(expected),
            "pairs_below_expectation": len(self.below_expectation),
            "tries_expected": sum(len(cell.tries) for cell in expected),
            "share_expected": _share(entry.connected for cell in expected for entry in cell.tries),
            "share_unpredicted": _share(entry.connected for cell in without for entry in cell.tries),
            "share_direct": _share(
                entry.technique not in RELAYED for cell in expected for entry in cell.connected
            ),
            "share_direct_expected": _share(
                entry.technique not in RELAYED for cell in direct for entry in cell.connected
            ),
            "first_attempt": _share(entry.first_attempt for cell in without for entry in cell.tries),
            "median_rtts": statistics.median(rtts) if rtts else None,
            "p95_rtts": percentile(rtts, 0.95) if rtts else None,
        }


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed."""
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]


def try_from_event(event: Mapping[str, Any], path_rtt: float, maps: str | None = None) -> Try:
    """A try out of an event line of `ntcp lab pair --json`. path_rtt: in seconds, 0 without delay; maps: whose router
    mapped ports."""
    seconds = float(event.get("seconds") or 0.0)
    rtts = round(seconds / path_rtt, 3) if path_rtt else None
    if event["event"] != "connected":
        return Try(False, round(seconds, 4), rtts, message=str(event["message"]), maps=maps)
    attempts = (event.get("report") or {}).get("attempts", [])
    won = next((entry for entry in attempts if entry["outcome"] == "ok"), None)
    clean = won is not None and won["tries"] <= 1 and not any(_failed(entry, won) for entry in attempts)
    return Try(True, round(seconds, 4), rtts, str(event["technique"]), clean, maps=maps)


def _failed(entry: Mapping[str, Any], won: Mapping[str, Any]) -> bool:
    """Whether an attempt had failed before the winner began."""
    return bool(
        entry["ended"] is not None
        and entry["ended"] <= won["started"]
        and entry["technique"] == won["technique"]
    )


def to_json(matrix: Matrix) -> str:
    """The whole matrix, with a line for each pair, so that two versions can be compared."""
    head = {"format": _FORMAT, "settings": asdict(matrix.settings), "kinds": list(matrix.kinds)}
    parts = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    parts.append(f'"summary": {json.dumps(matrix.summary())}')
    for name, results in (("pairs", matrix.pairs), ("topologies", matrix.topologies)):
        lines = [json.dumps(_pair_to_dict(result)) for result in results]
        parts.append(f'"{name}": [\n' + ",\n".join(lines) + "\n]")
    return "{" + ",\n".join(parts) + "}\n"


def from_json(text: str) -> Matrix:
    """What `to_json` wrote. Raises MatrixFileError."""
    try:
        data = json.loads(text)
        if data["format"] != _FORMAT:
            raise MatrixFileError(f"format {data['format']} is another than {_FORMAT}")
        matrix = Matrix(Settings(**data["settings"]), tuple(data["kinds"]))
        everything = matrix.settings.everything
        for pair in [*data["pairs"], *data.get("topologies", ())]:
            tries = tuple(Try(**entry) for entry in pair["tries"])
            topology = pair.get("topology")
            if topology is not None and topology not in TOPOLOGIES:
                raise MatrixFileError(f"unknown topology {topology!r}")
            matrix.add(PairResult(pair["nat_a"], pair["nat_b"], tries, everything, topology))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise MatrixFileError(f"this is no matrix: {error}") from error
    return matrix


def save(matrix: Matrix, path: Path) -> None:
    """Write the file anew; what interrupts us leaves the one before."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(to_json(matrix), encoding="utf-8")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def resume(path: Path, settings: Settings, kinds: Sequence[str]) -> Matrix:
    """The matrix that a file has already, with further kinds after its own; an empty one where there is no file yet.
    Raises MatrixFileError where it was made with other settings."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Matrix(settings, tuple(kinds))
    found = from_json(text)
    if found.settings != settings:
        raise MatrixFileError(f"{path} was made with {found.settings}, not with {settings}")
    found.kinds = tuple(dict.fromkeys([*found.kinds, *kinds]))
    if set(found.kinds) <= set(EVERY_KIND):
        found.kinds = tuple(kind for kind in EVERY_KIND if kind in found.kinds)
    return found


def _pair_to_dict(pair: PairResult) -> dict[str, Any]:
    topology = {} if pair.topology is None else {"topology": pair.topology}
    return topology | {
        "nat_a": pair.nat_a,
        "nat_b": pair.nat_b,
        "expected": None if pair.expected is None else pair.expected.value,
        "connected": len(pair.connected),
        "technique": pair.technique,
        "median_rtts": pair.median_rtts,
        "tries": [_try_to_dict(entry) for entry in pair.tries],
    }


def _try_to_dict(entry: Try) -> dict[str, Any]:
    fields = asdict(entry)
    if entry.maps is None:
        del fields["maps"]
    return fields


def _share(outcomes: Iterable[bool]) -> float | None:
    found = list(outcomes)
    return round(sum(found) / len(found), 4) if found else None
