"""What the broker hears of how a dial has ended: words and a time, and nothing that says who or where."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import trio

from ntcpsock._config import Config
from ntcpsock._errors import TraversalFailed, TraversalTimeout
from ntcpsock._report import PathKind, Report
from ntcpsock._traversal.broker.operation import LONGEST_DIAL_MS, NATKind, Outcome


class Listener(Protocol):
    """Who is told: a session with a broker."""

    def tell_outcome(self, outcome: Outcome) -> None: ...


class DialEnd:
    """How it has ended so far: nothing has connected."""

    def __init__(self) -> None:
        self.technique = ""
        self.kind: PathKind | None = None

    def connected(self, technique: str, kind: PathKind) -> None:
        """A path is up."""
        self.technique, self.kind = technique, kind


@contextmanager
def telling_outcome(config: Config, listener: Listener, report: Report) -> Iterator[DialEnd]:
    """Around a dial. What says nothing of NATs is not told: a name that nobody has, a peer that refuses, a dial that
    its user gives up."""
    end = DialEnd()
    try:
        yield end
    except (TraversalFailed, TraversalTimeout):
        _tell(config, listener, report, end)
        raise
    except trio.Cancelled:
        if trio.current_effective_deadline() <= trio.current_time():
            # The time of the whole dial is over; the error comes of it further out.
            _tell(config, listener, report, end)
        raise
    _tell(config, listener, report, end)


def _tell(config: Config, listener: Listener, report: Report, end: DialEnd) -> None:
    if config.outcomes == "off" or not report.profiles:
        return
    seconds = trio.current_time() - report.started
    listener.tell_outcome(
        Outcome(
            end.technique[:24],
            end.kind or "",
            nat_kind(report.profiles.get("local", {})),
            nat_kind(report.profiles.get("remote", {})),
            max(0, min(LONGEST_DIAL_MS, round(seconds * 1000))),
        )
    )


def nat_kind(profile: dict[str, Any]) -> NATKind:
    """The one word for what a report says of a side's NAT."""
    if profile.get("translated") is False:
        return "none"
    return cast(NATKind, profile.get("mapping", "unknown"))
