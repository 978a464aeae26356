"""Comparing the outcomes of a mode with the baseline's, and with the list of known differences.

python -m tests.conformance.compare [--mode plain|named] [MODULE ...]    prints differences and counts
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from .catalogue import MODULES
from .outcomes import Module, Outcome, run

KNOWN = Path(__file__).with_name("known_differences.toml")
SERVE = [
    *(sys.executable, "-m", "ntcpsock", "serve", "--json", "--listen", "127.0.0.1"),
    *("--broker-port", "0", "--stun-port", "0", "--other-stun-port", "0"),
]


@dataclass(frozen=True)
class Known:
    """One entry of the list: tests whose outcome differs in `mode`, for one reason."""

    tests: tuple[str, ...]
    mode: str
    reason: str
    noticed: str
    racy: bool = False  # whether it may come out the same, by chance

    def covers(self, mode: str, test_id: str) -> bool:
        return mode == self.mode and any(fnmatchcase(test_id, pattern) for pattern in self.tests)


def load_known() -> tuple[Known, ...]:
    document = tomllib.loads(KNOWN.read_text())
    return tuple(
        Known(
            tuple(entry["tests"]),
            entry["mode"],
            entry["reason"],
            entry["noticed"],
            entry.get("racy", False),
        )
        for entry in document.get("difference", ())
    )


@dataclass
class Comparison:
    """run: how many tests; known, unknown: ids that differ; stale: ids that are listed and do not differ."""

    run: int
    known: list[str] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)

    @property
    def same(self) -> int:
        return self.run - len(self.known) - len(self.unknown)

    def describe(self) -> str:
        lines = [f"differs: {test_id}\n{text}" for test_id, text in self.unknown.items()]
        lines += [
            f"is listed as a known difference, but does not differ: {test_id}" for test_id in self.stale
        ]
        return "\n".join(lines)


def differing(baseline: Mapping[str, Outcome], outcomes: Mapping[str, Outcome]) -> dict[str, str]:
    """Ids with another kind of outcome, each with both outcomes in words."""
    differences = {}
    for test_id in sorted({*baseline, *outcomes}):
        before = baseline.get(test_id, Outcome("not run"))
        after = outcomes.get(test_id, Outcome("not run"))
        if before.kind != after.kind:
            differences[test_id] = f"{before.kind} {before.detail[-300:]} -> {after.kind}\n{after.detail}"
    return differences


def compare(
    mode: str,
    baseline: Mapping[str, Outcome],
    outcomes: Mapping[str, Outcome],
    known: Collection[Known],
) -> Comparison:
    differences = differing(baseline, outcomes)
    result = Comparison(len({*baseline, *outcomes}))
    for test_id in sorted({*baseline, *outcomes}):
        listed = [entry for entry in known if entry.covers(mode, test_id)]
        if test_id in differences and listed:
            result.known.append(test_id)
        elif test_id in differences:
            result.unknown[test_id] = differences[test_id]
        elif any(not entry.racy for entry in listed):
            result.stale.append(test_id)
    return result


@cache
def baseline_of(module: Module) -> dict[str, Outcome]:
    with environment_of("baseline") as environment:
        return run(module, "baseline", environment)


def compare_module(
    module: Module, mode: str, environment: Mapping[str, str], known: Collection[Known]
) -> Comparison:
    """Run `module` both ways. What differs is run once more, alone: timing differs too."""
    baseline = dict(baseline_of(module))
    outcomes = run(module, mode, environment)
    result = compare(mode, baseline, outcomes, known)
    again = {test_id for test_id in (*result.unknown, *result.stale) if test_id in baseline}
    if again:
        baseline |= run(module, "baseline", environment, again)
        outcomes |= run(module, mode, environment, again)
        result = compare(mode, baseline, outcomes, known)
    return result


@contextmanager
def environment_of(mode: str) -> Iterator[dict[str, str]]:
    """The environment for a mode; for "named" with a broker and a STUN server on loopback."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("NTCP_", "PYTEST_"))}
    with tempfile.TemporaryDirectory() as state:
        clean["NTCP_STATE"] = state
        if mode != "named":
            yield clean
            return
        with subprocess.Popen(
            [*SERVE, "--state-dir", f"{state}/servers"], env=clean, stdout=subprocess.PIPE, text=True
        ) as server:
            try:
                assert server.stdout is not None
                ready = json.loads(server.stdout.readline())
                yield {**clean, "NTCP_BROKER": ready["broker"], "NTCP_NAME": "conformance"}
            finally:
                server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=("plain", "named"), default="plain")
    parser.add_argument("modules", nargs="*")
    options = parser.parse_args()
    known = load_known()
    total = Comparison(0)
    with environment_of(options.mode) as environment:
        for module in MODULES:
            if options.modules and module.name not in options.modules:
                continue
            result = compare_module(module, options.mode, environment, known)
            print(result.describe(), flush=True)
            print(
                f"{module.name}: {result.run} tests, {result.same} same, {len(result.known)} known,"
                f" {len(result.unknown)} unknown differences, {len(result.stale)} stale entries",
                flush=True,
            )
            total.run += result.run
            total.known += result.known
            total.unknown |= result.unknown
    print(f"all: {total.run} tests, {total.same} same, {len(total.known) + len(total.unknown)} different")


if __name__ == "__main__":
    main()
