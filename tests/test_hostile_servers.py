"""`benchmarks.hostile`, small: each server under garbage and floods, while a good client goes on.

How often and how fast that one is answered depends on the machine, and is for the benchmark to say; that it is answered
at all, that memory stays, and that nothing ends in the log that should not, is for this test.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import harness, hostile
from benchmarks.hostile import MOST_GROWTH, TARGETS
from ntcpsock._servers import mmsg

pytestmark = [
    pytest.mark.skipif(not mmsg.AVAILABLE, reason="no sendmmsg here"),
    pytest.mark.timeout(120),
]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hostile, "SLOW_CONNECTIONS", 100)
    monkeypatch.setattr(hostile, "QUIET", 0.5)
    monkeypatch.setattr(hostile, "PATIENCE", 10.0)
    monkeypatch.setattr(harness, "RESULTS", tmp_path)


@pytest.mark.parametrize("target", TARGETS)
def test_a_good_client_goes_on(target: str) -> None:
    for outcome in TARGETS[target](30_000, 300):
        assert outcome.tries.delays, outcome
        assert outcome.server == "coturn" or outcome.growth < MOST_GROWTH, outcome
        assert not outcome.complaints, outcome
