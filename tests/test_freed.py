"""When free memory is given back to the system."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest

from ntcpsock._freed import WORTH, Freed, _malloc_trim


def test_it_is_given_back_where_it_is_worth_it() -> None:
    calls: list[int] = []
    freed = Freed(lambda: calls.append(1))
    freed.add(WORTH - 1)
    freed.give_back(1.0)
    assert not calls
    freed.add(1)
    freed.give_back(2.0)
    assert calls == [1]
    freed.give_back(1000.0)
    assert calls == [1]


def test_it_takes_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    calls: list[float] = []

    def trim() -> None:
        calls.append(clock[0])
        clock[0] += 0.1

    freed = Freed(trim)
    for now in range(100):
        freed.add(WORTH)
        freed.give_back(float(now))
    assert len(calls) == 10


def resident() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("smaps_rollup tells no Private_Dirty")


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="needs glibc",
)
def test_what_lies_free_between_what_is_in_use_goes_back() -> None:
    pieces = [bytes(20_000) for _ in range(2000)]
    del pieces[::2]
    before = resident()
    _malloc_trim()
    assert before - resident() > 5_000_000
    assert len(pieces) == 1000
