"""What happened, as plain data: peers, paths, and the report of one connect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from ntcpsock._errors import NTCPError

PathKind = Literal["lan", "tcp", "udp", "ipv6", "port-mapped", "relay"]


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """Who is at the other end, proven by key.

    name: its label without `.ntcp`, or None where it has none; node_id: 52 base32 characters;
    port: the port dialled at the listener; source_port: at the listener, the port of the dialler's own socket, as
    the dialler says it, and 0 where it has none.
    """

    name: str | None
    node_id: str
    port: int
    source_port: int = 0


@dataclass(frozen=True, slots=True)
class PathInfo:
    """How the bytes travel. `rtt` is the path's round-trip time in seconds where it was measured."""

    kind: PathKind
    technique: str
    local: tuple[str, int]
    remote: tuple[str, int]
    rtt: float | None = None


@dataclass(slots=True)
class Stage:
    """One step of a connect: its start and end in seconds after the call, and how it ended."""

    name: str
    started: float
    ended: float | None = None
    outcome: str = "running"


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that an attempt may use: sockets held at once, SYNs a second, entries in the NATs on the way."""

    sockets: int = 0
    packets_per_second: float = 0.0
    nat_entries: int = 0

    def __add__(self, other: Budget) -> Budget:
        return Budget(
            self.sockets + other.sockets,
            self.packets_per_second + other.packets_per_second,
            self.nat_entries + other.nat_entries,
        )

    def __str__(self) -> str:
        return (
            f"{self.sockets} sockets, {self.packets_per_second:.0f} packets/s, {self.nat_entries} NAT entries"
        )


@dataclass(slots=True)
class Attempt:
    """One try of one technique from one local port to one remote endpoint. Times as in Stage.

    tries: SYNs, or checks over UDP, sent, as far as they were ours to count; notes: what the technique saw and did, in
    words; budget: what it could have used.
    """

    technique: str
    local: tuple[str, int] | None
    remote: tuple[str, int] | None
    started: float
    ended: float | None = None
    outcome: str = "running"
    tries: int = 0
    notes: dict[str, str] = field(default_factory=dict)
    budget: Budget = Budget()


@dataclass(frozen=True, slots=True)
class Move:
    """A stream went on over another path. at: seconds after the call that made it; pause: seconds that it had no path
    before; reason: in words."""

    #: That a report keeps, the newest.
    MOST: ClassVar[int] = 64

    at: float
    path: PathInfo
    reason: str
    pause: float = 0.0


@dataclass(slots=True)
class Report:
    """Everything one connect did, stage by stage. Plain data; `to_dict()` is ready for JSON.

    profiles: what each side, "local" and "remote", knew of its NAT when the attempts began, in the words of RFC 4787
    (`translated`, `mapping`, `filtering`, `stray_syn`, `hairpin`), and its endpoints (`own`, and `seen` from outside);
    cause: why the connect failed, probably; advice: the one change that would help, where one is known.
    port_mapping: what this side's router said when the connect wanted a port mapped, or why it was not asked; None:
    none was wanted. path: by which the stream goes now; moves: to which other ones it has gone, the newest 64.
    """

    target: str
    role: Literal["dialer", "listener"]
    started: float = 0.0
    stages: list[Stage] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    seconds: float | None = None
    advice: str | None = None
    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    cause: str | None = None
    port_mapping: str | None = None
    path: PathInfo | None = None
    moves: list[Move] = field(default_factory=list)

    def begin(self, name: str, now: float) -> Stage:
        """Open a stage. `now` is the clock that `started` was read from."""
        stage = Stage(name, now - self.started)
        self.stages.append(stage)
        return stage

    @contextmanager
    def stage(self, name: str, clock: Callable[[], float]) -> Iterator[None]:
        """A stage as long as the block. An NTCPError that leaves it carries this report."""
        stage = self.begin(name, clock())
        outcome = "cancelled"
        try:
            yield
            outcome = "ok"
        except NTCPError as error:
            outcome = str(error)
            error.report = error.report or self
            raise
        finally:
            self.end(stage, clock(), outcome)

    def end(self, entry: Stage | Attempt, now: float, outcome: str) -> None:
        """Close a stage or an attempt, once: later calls change nothing."""
        if entry.ended is None:
            entry.ended = now - self.started
            entry.outcome = outcome

    def attempt(
        self, technique: str, local: tuple[str, int] | None, remote: tuple[str, int] | None, now: float
    ) -> Attempt:
        """Open an attempt, as `begin` opens a stage."""
        entry = Attempt(technique, local, remote, now - self.started)
        self.attempts.append(entry)
        return entry

    @property
    def budget(self) -> Budget:
        """What all attempts together could have used, as if they ran at the same time."""
        return sum((entry.budget for entry in self.attempts), Budget())

    @property
    def failed_stage(self) -> str | None:
        """The name of the last stage that did not end in "ok", or None."""
        return next((stage.name for stage in reversed(self.stages) if stage.outcome != "ok"), None)

    def to_dict(self) -> dict[str, Any]:
        """All of it as dicts, lists, strings and numbers."""
        return {**asdict(self), "budget": asdict(self.budget)}

    def __str__(self) -> str:
        lines = [f"{self.role} of {self.target}"]
        for stage in self.stages:
            lines.append(f"  {_span(stage.started, stage.ended)} {stage.name}: {stage.outcome}")
        for entry in self.attempts:
            where = f"{_place(entry.local)} -> {_place(entry.remote)}"
            tries = f", {entry.tries} SYN attempts" if entry.tries > 1 else ""
            notes = "".join(f"; {name}: {text}" for name, text in entry.notes.items())
            notes += f" (at most {entry.budget})" if entry.budget.sockets > 1 else ""
            lines.append(
                f"  {_span(entry.started, entry.ended)} {entry.technique} {where}: {entry.outcome}{tries}{notes}"
            )
        if self.attempts:
            lines.append(f"  budget of all attempts: {self.budget}")
        for move in self.moves:
            where = f"{move.path.technique} {_place(move.path.local)} -> {_place(move.path.remote)}"
            pause = f" after {move.pause:.2f} s without a path" if move.pause else ""
            lines.append(f"  {_span(move.at, None)} moved to {where}: {move.reason}{pause}")
        if self.port_mapping:
            lines.append(f"  port mapping: {self.port_mapping}")
        if self.cause:
            lines.append(f"  cause: {self.cause}")
        if self.advice:
            lines.append(f"  advice: {self.advice}")
        return "\n".join(lines)


def _span(started: float, ended: float | None) -> str:
    end = "     ..." if ended is None else f"{ended * 1000:8.1f}"
    return f"{started * 1000:8.1f} {end} ms"


def _place(endpoint: tuple[str, int] | None) -> str:
    if endpoint is None:
        return "?"
    host, port = endpoint
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
