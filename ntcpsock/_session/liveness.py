"""Whether the carrier of a stream still lives. Pure: somebody looks every now and then, and does what is said.

A stream at work is watched: what comes from the peer is a sign of life, and so is that its kernel takes more of what
was sent. After a moment without one the peer is asked once (PING); who answers neither that nor anything else is gone.
When a third of the time for that is over the carrier counts as silent: another one may be looked for, just in case.
Once it has answered, and nothing of the stream has moved since it was asked, the stream is idle and is left alone: an
idle one learns of a dead path with its next byte, or by its kernel's keep-alive, and wakes no radio for that. Pings and
their answers are signs of life and no work: two idle ends would ask each other forever.
"""

from __future__ import annotations

from typing import Final, Literal

#: Seconds without a sign of life, of a stream at work, after which the peer is asked.
QUIET: Final = 0.75
#: Seconds that the answer may take, or so many round trips of the path where they are longer.
PATIENCE: Final = 1.5
ROUND_TRIPS: Final = 3.0
#: The share of it after which the carrier is silent.
SILENT: Final = 1 / 3
#: How often to look, in seconds.
INTERVAL: Final = 0.25

Verdict = Literal["idle", "watch", "ask", "dead"]


class Liveness:
    """Of one carrier. rtt: of its path, in seconds. silent: whether it seems to be lost, as of the last look."""

    def __init__(self, now: float, rtt: float = 0.0) -> None:
        self._patience = max(PATIENCE, ROUND_TRIPS * rtt)
        self.silent = False
        self._alive = now
        #: Seconds without a sign of life, at the last look.
        self.silence = 0.0
        self._asked: float | None = None
        self._heard = 0
        self._moved: tuple[int, int] = (0, 0)
        self._works_since_asked = False
        self._progress = 0
        self._answers = 0
        self._idle = True

    def look(
        self,
        now: float,
        heard: int,
        taken: int,
        unacknowledged: int | None,
        answers: int,
        aside: tuple[int, int],
    ) -> Verdict:
        """What to do now: nothing until something moves ("idle"), look again ("watch"), send a PING, or give up.

        heard: bytes that came by this carrier so far; taken: bytes that it has taken; unacknowledged: of them, those
        that its other end's kernel has not confirmed, where that can be known; answers: pongs so far; aside: how many
        bytes of heard and of taken were frames beside the stream.
        """
        # What was only handed to a kernel says nothing.
        progress = 0 if unacknowledged is None else taken - unacknowledged
        moved = (heard - aside[0], taken - aside[1])
        works = moved != self._moved
        # Less is none: QUIC counts what it sends again.
        if heard != self._heard or progress > self._progress:
            self._alive = now
        self.silence = now - self._alive
        if works:
            self._idle = False
            self._works_since_asked = True
        if answers != self._answers:
            self._asked = None
            # What went out behind the question is not confirmed by its answer.
            self._idle = not self._works_since_asked
        self._heard, self._moved, self._answers = heard, moved, answers
        self._progress = max(progress, self._progress)
        self.silent = False
        if self._idle:
            return "idle"
        if self._asked is None:
            if now - self._alive < QUIET:
                return "watch"
            self._asked = now
            self._works_since_asked = False
            return "ask"
        waited = now - max(self._asked, self._alive)
        self.silent = waited >= self._patience * SILENT
        return "dead" if waited >= self._patience else "watch"
