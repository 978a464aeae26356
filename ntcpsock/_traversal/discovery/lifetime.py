"""How long an idle UDP mapping lives (RFC 5780 section 4.6), with RESPONSE-PORT. Pure.

One mapping for each step is made at the beginning, and never used again. When a step's time has come, another port
asks the server to answer to that mapping: what arrives shows that it lives. The RFC asks one mapping after the other by
bisection; all at once takes no longer than the lifetime itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ntcpsock._diagnosis import Lifetime

#: Seconds of idleness; 0 shows whether server and NAT take part at all.
STEPS = (0.0, 2.0, 4.0, 8.0, 12.0, 16.0, 20.0, 25.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 240.0, 300.0)


@dataclass(slots=True)
class Ladder:
    """The steps that have been taken, in order."""

    steps: tuple[float, ...] = STEPS
    _alive: list[float] = field(default_factory=list)
    _dead: float | None = None

    def next_step(self) -> float | None:
        """The idleness to look at next, in seconds since the mappings were made; None when it is over."""
        if self._dead is not None or len(self._alive) == len(self.steps):
            return None
        return self.steps[len(self._alive)]

    def handle(self, alive: bool) -> None:
        """Whether the mapping of the step was there."""
        step = self.next_step()
        if step is None:
            return
        if alive:
            self._alive.append(step)
        else:
            self._dead = step

    def finding(self) -> Lifetime:
        """What is known now."""
        if not self._alive:
            why = "no answer to RESPONSE-PORT (RFC 5780), even at once: the server does not take part, or "
            return Lifetime(why=f"{why}the NAT has several public addresses")
        longest = self._alive[-1]
        if self._dead is None:
            ended = len(self._alive) == len(self.steps)
            return Lifetime(
                f"at least {longest:g} s" if ended else "unknown",
                why="" if ended else f"alive after {longest:g} s, then it was stopped",
                longest_alive=longest,
            )
        return Lifetime(
            f"{longest:g} to {self._dead:g} s",
            evidence=(*(f"alive after {step:g} s" for step in self._alive), f"dead after {self._dead:g} s"),
            longest_alive=longest,
            shortest_dead=self._dead,
        )
