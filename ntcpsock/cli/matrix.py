"""What `ntcp lab matrix` finds, as data: pairs of routers with their tries, in a file that can be resumed (pure)."""

from __future__ import annotations

import json
import os
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

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
EVERY_KIND = (*DEFAULT_KINDS, "udp-blocked", "only-443")

#: Share of tries that must succeed where a direct path is expected, and where there is a relay.
EXPECTED_SHARE = 0.97
EXPECTED_SHARE_RELAYED = 1.0
#: Path round trips to connect where no port has to be foreseen: the median and the 95th percentile.
EXPECTED_MEDIAN, EXPECTED_P95 = 2.8, 5.0

_FORMAT = 1


class MatrixFileError(ValueError):
    """A file is no matrix, or one that was made with other settings."""


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
    """All tries of one ordered pair: host A, behind `nat_a`, dialled host B. everything: with all techniques, and a
    relay."""

    nat_a: str
    nat_b: str
    tries: tuple[Try, ...]
    everything: bool = False

    @property
    def expected(self) -> Way | None:
        """Why there must be a path, or None."""
        if self.everything:
            return Way.RELAYED
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
        wanted = EXPECTED_SHARE_RELAYED if self.everything else EXPECTED_SHARE
        return self.expected is not None and self.share < wanted


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
    """The pairs done so far. `kinds` gives the order of rows and columns."""

    settings: Settings
    kinds: tuple[str, ...]
    pairs: dict[tuple[str, str], PairResult] = field(default_factory=dict)

    def add(self, result: PairResult) -> None:
        self.pairs[result.nat_a, result.nat_b] = result

    @property
    def below_expectation(self) -> list[PairResult]:
        return [pair for pair in self.pairs.values() if pair.below_expectation]

    def summary(self) -> dict[str, Any]:
        """The figures that the matrix is judged by; shares are 0 to 1, None where nothing was counted."""
        expected = [pair for pair in self.pairs.values() if pair.expected is not None]
        without = [pair for pair in expected if pair.expected is not None and not pair.expected.predicts]
        rtts = sorted(entry.rtts for pair in without for entry in pair.connected if entry.rtts is not None)
        return {
            "pairs": len(self.pairs),
            "pairs_connected": sum(1 for pair in self.pairs.values() if pair.connected),
            "pairs_expected": len(expected),
            "pairs_below_expectation": len(self.below_expectation),
            "tries_expected": sum(len(pair.tries) for pair in expected),
            "share_expected": _share(entry.connected for pair in expected for entry in pair.tries),
            "share_unpredicted": _share(entry.connected for pair in without for entry in pair.tries),
            "share_direct": _share(
                entry.technique != "relay" for pair in expected for entry in pair.connected
            ),
            "first_attempt": _share(entry.first_attempt for pair in without for entry in pair.tries),
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
    lines = [json.dumps(_pair_to_dict(pair)) for pair in matrix.pairs.values()]
    parts = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    parts += [f'"summary": {json.dumps(matrix.summary())}', '"pairs": [\n' + ",\n".join(lines) + "\n]"]
    return "{" + ",\n".join(parts) + "}\n"


def from_json(text: str) -> Matrix:
    """What `to_json` wrote. Raises MatrixFileError."""
    try:
        data = json.loads(text)
        if data["format"] != _FORMAT:
            raise MatrixFileError(f"format {data['format']} is another than {_FORMAT}")
        matrix = Matrix(Settings(**data["settings"]), tuple(data["kinds"]))
        for pair in data["pairs"]:
            tries = tuple(Try(**entry) for entry in pair["tries"])
            matrix.add(PairResult(pair["nat_a"], pair["nat_b"], tries, matrix.settings.everything))
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
    return found


def _pair_to_dict(pair: PairResult) -> dict[str, Any]:
    return {
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
