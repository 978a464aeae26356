"""The session machine on a simulated network: seeded schedules in virtual time, and machines broken on purpose."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from session_simulation.checker import Violation
from session_simulation.mutants import RESUMABLES, SESSIONS
from session_simulation.schedule import Schedule, run

from ntcpsock._session.machine import Session
from ntcpsock._session.resumption import Resumable

#: Seeds after which every broken machine has been caught.
ENOUGH = 1500


def run_all(seeds: range) -> None:
    kinds: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    moves = 0
    for seed in seeds:
        outcome = run(seed)
        kinds[outcome.kind] += 1
        refused.update(outcome.refused)
        moves += outcome.moves
    # The weather was bad enough to mean something.
    assert min(kinds["whole"], 5 * kinds["crash"], 5 * kinds["reset"]) > len(seeds) / 5
    assert moves > len(seeds)
    assert min(refused[reason] for reason in (" wrong proof", " another node's stream", " said before")) > 3


def test_schedules() -> None:
    run_all(range(500))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("first", range(0, 100_000, 2500))
def test_schedules_hundred_thousand(first: int) -> None:
    run_all(range(first, first + 2500))


def find_fault(session: type[Session] = Session, resumable: type[Resumable] = Resumable) -> Violation:
    for seed in range(ENOUGH):
        try:
            run(seed, session=session, resumable=resumable)
        except Violation as violation:
            return violation
    raise AssertionError(
        f"{ENOUGH} seeds do not tell {session.__name__}, {resumable.__name__} from the real ones"
    )


@pytest.mark.parametrize("mutant", SESSIONS, ids=lambda one: str(one.__name__))
def test_a_broken_machine_is_caught(mutant: type[Session]) -> None:
    find_fault(session=mutant)


@pytest.mark.parametrize("mutant", RESUMABLES, ids=lambda one: str(one.__name__))
def test_a_broken_guard_is_caught(mutant: type[Resumable]) -> None:
    find_fault(resumable=mutant)


def test_a_seed_replays() -> None:
    traces = []
    for _ in range(2):
        schedule = Schedule(14)
        schedule.world.trace = []
        traces.append((schedule.run(), schedule.world.trace))
    assert traces[0] == traces[1]
    assert traces[0][1]


def test_a_failing_seed_says_how_to_see_it_again() -> None:
    mutant = SESSIONS[0]
    text = str(find_fault(session=mutant))
    assert text.startswith("seed ")
    tests = Path(__file__).parent
    command, seed = text.rpartition("to see it again: ")[2].rsplit(" ", 1)
    assert command == "cd tests && ../.venv/bin/python -m session_simulation"
    again = subprocess.run(
        [sys.executable, "-m", "session_simulation", seed, mutant.__name__],
        cwd=tests,
        env=os.environ | {"PYTHONPATH": str(tests.parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert again.returncode == 1
    assert "Violation" in again.stderr
    assert "carrier" in again.stdout
