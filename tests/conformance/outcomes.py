"""Running a test module in a process of its own, again where a test has ended or hung the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

RUNNER = Path(__file__).with_name("runner.py")

# Seconds for one test; CPython's longest takes 20 here, and a busy machine is slower.
TEST_LIMIT = float(os.environ.get("NTCP_CONFORMANCE_LIMIT", "180"))


@dataclass(frozen=True)
class Outcome:
    """kind: ok, fail, error, skip, ... or "died", when the process ended within the test."""

    kind: str
    detail: str = ""


@dataclass(frozen=True)
class Module:
    """A group of CPython's test modules that is run and reported together.

    patterns: which ids; excluded: which of these not; resources: of those that `regrtest -u` takes;
    quick: the modes in which the group runs in every test run, not in the slow ones only.
    """

    name: str
    modules: tuple[str, ...]
    patterns: tuple[str, ...] = ("*",)
    excluded: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    quick: Collection[str] = ()


def run(
    module: Module, mode: str, environment: Mapping[str, str], only: Collection[str] | None = None
) -> dict[str, Outcome]:
    """The outcome of each test. A test during which the process died is not run again; the others go on."""
    outcomes: dict[str, Outcome] = {}
    complete = False
    while not complete:
        with tempfile.TemporaryDirectory() as directory:
            complete = _run_once(module, mode, environment, only, outcomes, Path(directory))
    return outcomes


def _run_once(
    module: Module,
    mode: str,
    environment: Mapping[str, str],
    only: Collection[str] | None,
    outcomes: dict[str, Outcome],
    directory: Path,
) -> bool:
    """Run what has no outcome yet. Whether everything has been run."""
    task, records = directory / "task.json", directory / "outcomes.jsonl"
    task.write_text(
        json.dumps(
            {
                "modules": module.modules,
                "patterns": module.patterns,
                "excluded": module.excluded,
                "resources": module.resources,
                "done": sorted(outcomes),
                "only": None if only is None else sorted(only),
                "limit": TEST_LIMIT,
            }
        )
    )
    records.write_text("")
    with tempfile.TemporaryFile("w+", dir=directory, errors="replace") as log:
        process = subprocess.Popen(
            [sys.executable, "-W", "default", str(RUNNER), mode, str(task), str(records)],
            env={**environment, "TMPDIR": str(directory)},
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            process.wait()
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        text = log.read()
    begun = None
    for line in records.read_text().splitlines():
        record = json.loads(line)
        if "begin" in record:
            begun = record["begin"]
        elif "id" in record:
            begun = None
            outcomes[record["id"]] = Outcome(record["outcome"], record["detail"])
        else:
            return True
    if begun is None:
        # Between tests or after them: no test can be blamed, and there would be no end of trying.
        raise RuntimeError(f"{module.name} ({mode}): ended with {process.returncode}\n{text[-5000:]}")
    outcomes[begun] = Outcome("died", f"status {process.returncode}\n{text[-5000:]}")
    return False
