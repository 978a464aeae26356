"""Why a dial found no path: the probable cause, and the one change that would help (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from ntcpsock._report import Attempt, Report
from ntcpsock._traversal.punch.message import Candidate, NATProfile

_SIDES = (("local", "this side"), ("remote", "the other side"))

_PREDICTING = ("tcp-predict", "udp-predict")

_OPEN_ONE_SIDE = (
    "Give either side a public address or a forwarded port, or switch PCP, NAT-PMP or UPnP on in its router"
)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Two sentences."""

    cause: str
    advice: str

    def __str__(self) -> str:
        return f"{self.cause} {self.advice}"


def note_sides(
    report: Report,
    local: tuple[NATProfile, Sequence[Candidate]],
    remote: tuple[NATProfile, Sequence[Candidate]],
) -> None:
    """Put into the report what each side knows of its NAT, and where it is seen."""
    for (name, _), (profile, candidates) in zip(_SIDES, (local, remote), strict=True):
        report.profiles[name] = {
            **msgspec.structs.asdict(profile),
            "own": [_place(candidate) for candidate in candidates if candidate.type == "host"],
            "seen": [_place(candidate) for candidate in candidates if candidate.type != "host"],
        }


def _place(candidate: Candidate) -> str:
    return f"{candidate.endpoint} (UDP)" if candidate.transport == "udp" else str(candidate.endpoint)


def explain(report: Report) -> Explanation:
    """What a report says of a dial whose attempts have failed, or had no time to succeed."""
    profiles = [report.profiles.get(name, {}) for name, _ in _SIDES]
    for (_, words), profile in zip(_SIDES, profiles, strict=True):
        if profile and not profile["seen"] and not profile["own"]:
            return Explanation(
                f"Nobody is told an address of {words}, so only a relay can reach it.",
                "Allow more than the relay there.",
            )
        if profile and not profile["seen"] and profile["translated"] is None:
            return Explanation(
                f"No STUN server answered {words} over TCP, so nobody knows where it can be reached.",
                "Check that its network lets TCP to the STUN port out.",
            )
    changing = [
        words
        for (_, words), profile in zip(_SIDES, profiles, strict=True)
        if profile.get("mapping", "unknown") not in ("unknown", "endpoint-independent")
    ]
    foreseen = _foreseen(report.attempts)
    says = "." if report.port_mapping is None else f"; this side's says: {report.port_mapping}."
    advice = _OPEN_ONE_SIDE + says
    if len(changing) == 2:
        return Explanation(f"Both NATs give every connection another port (symmetric){foreseen}.", advice)
    if changing:
        return Explanation(
            f"The NAT of {changing[0]} gives every connection another port (symmetric){foreseen}.",
            advice,
        )
    if any("refused" in entry.outcome.lower() for entry in report.attempts):
        return Explanation("What came from outside was refused, whatever had gone out before.", advice)
    return Explanation("Neither NAT let a connection through.", advice)


def _foreseen(attempts: Sequence[Attempt]) -> str:
    """What prediction made of it, as the end of a sentence."""
    predicting = [entry for entry in attempts if entry.technique in _PREDICTING]
    if not predicting:
        return ""
    if any("too many ports" in entry.outcome for entry in predicting):
        return ", out of too many for any to be foreseen"
    return ", and none of the foreseen ones was met"
