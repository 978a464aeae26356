"""Findings out of outcomes."""

from __future__ import annotations

from collections.abc import Sequence

from ntcpsock._diagnosis import Finding
from ntcpsock._traversal.discovery.evidence import Outcome

UNKNOWN = Finding()


def yes(why: str = "", evidence: Sequence[Outcome] = ()) -> Finding:
    return Finding("yes", (), why, texts(evidence))


def no(why: str = "", evidence: Sequence[Outcome] = ()) -> Finding:
    return Finding("no", (), why, texts(evidence))


def known(value: str, evidence: Sequence[Outcome] = ()) -> Finding:
    return Finding(value, (), "", texts(evidence))


def undecided(why: str, possible: Sequence[str] = (), evidence: Sequence[Outcome] = ()) -> Finding:
    return Finding("unknown", tuple(possible), why, texts(evidence))


def texts(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    return tuple(map(str, outcomes))
