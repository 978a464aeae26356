"""The schedule of one greeting: which Hellos are out, when the next one is due, which cookie it carries."""

from __future__ import annotations

import random

#: Greeting never ends: this is the longest pause between two tries.
MAX_PAUSE = 5.0

# A Challenge is answered at once, but not for ever: a NAT with a new address for each packet, or an
# attacker on the path, would make us send at the speed of the link.
_MAX_PROMPT_HELLOS = 4
_REMEMBERED = 8


class Greeting:
    """From losing a session, or having none, to being welcomed. `nonce` is for KeyRequests beside it."""

    def __init__(self, nonce: bytes, *, cookie: bytes, pause: float, longest_pause: float) -> None:
        self.nonce = nonce
        #: Of the latest Challenge; empty before the first.
        self.cookie = cookie
        #: When to try again; None where somebody else has to do something first.
        self.due: float | None = None
        self.tries = 0
        self._pause = pause
        self._longest_pause = min(MAX_PAUSE, longest_pause)
        self._prompt_hellos = 0
        # Thousands may lose their broker in the same instant: those whom the next one cannot hear at once must not all
        # come again in the same instant, too.
        self._chance = random.Random(nonce)
        # Each Hello has a number of its own, so its answer measures the round trip, retransmitted or not.
        self._sent: dict[int, float] = {}

    def sent(self, number: int, now: float) -> None:
        """A Hello with that request number is out."""
        self._sent[number] = now
        if len(self._sent) > _REMEMBERED:
            del self._sent[next(iter(self._sent))]

    def answered(self, number: int) -> float | None:
        """When the Hello that this answers was sent; None for an answer to nothing, or a second one."""
        return self._sent.pop(number, None)

    def schedule(self, now: float) -> None:
        """A try was made: the pause before the next one doubles, and is somewhere in its second half from then on."""
        pause = self._pause
        if self.tries:
            self._pause = min(self._pause * 2, self._longest_pause)
            pause = self._pause * self._chance.uniform(0.5, 1.0)
        self.tries += 1
        self.due = now + pause

    def take_cookie(self, cookie: bytes, pause: float, now: float) -> bool:
        """A Challenge came. Whether to say hello at once; else it is done at the next try."""
        self.cookie = cookie
        if self._prompt_hellos >= _MAX_PROMPT_HELLOS:
            return False
        self._prompt_hellos += 1
        self._pause = pause
        self.due = now + pause
        return True
