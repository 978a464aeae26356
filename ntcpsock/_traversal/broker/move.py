"""Moving an open session to another way to its broker: a hello there, while the session goes on here.

    Hello -> Challenge -> Hello(cookie) -> Welcome        all on the other way

The broker knows the instance, so the session, with all that is registered in it, stays the same; from its Welcome on
it sends to the new place. Nothing is lost meanwhile, since what it has sent to the old place is read there.
"""

from __future__ import annotations

from msgspec import structs

from ntcpsock._traversal.broker.greeting import Greeting
from ntcpsock._traversal.broker.message import Hello
from ntcpsock._traversal.broker.outbox import Outbox

#: Hellos of one try, beside the one that answers a Challenge.
MAX_TRIES = 3


class Move:
    """One try after the other; `begin` starts each."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._greeting: Greeting | None = None
        self._frames: list[bytes] = []

    def begin(self, broker_key: bytes, hello: Hello, pause: float, now: float) -> None:
        """Say `hello`; `pause`: seconds before the first repetition."""
        self._greeting = Greeting(b"", cookie=b"", pause=pause, longest_pause=8 * pause)
        self._hello = hello
        self._try(self._greeting, broker_key, now)

    def end(self) -> None:
        """No more of it."""
        self._greeting = None
        self._frames = []

    @property
    def is_half_way(self) -> bool:
        """Whether the broker may have moved us without our knowing: its Welcome is all that is missing."""
        return self._greeting is not None and bool(self._greeting.cookie)

    def next_timer(self) -> float | None:
        """When `send_due` has something to do."""
        return None if self._greeting is None else self._greeting.due

    def send_due(self, broker_key: bytes, now: float) -> None:
        """Repeat what has had no answer, a few times."""
        greeting = self._greeting
        if greeting is None or greeting.due is None or now < greeting.due:
            return
        if greeting.tries >= MAX_TRIES:
            greeting.due = None
        else:
            self._try(greeting, broker_key, now)

    def challenged(self, number: int, cookie: bytes, broker_key: bytes, now: float) -> bool:
        """Whether a Challenge is to a hello of ours; it is answered then."""
        greeting = self._greeting
        if greeting is None:
            return False
        sent = greeting.answered(number)
        if sent is None:
            return False
        if greeting.take_cookie(cookie, max(now - sent, 0.1) * 2, now):
            self._hello_with_cookie(greeting, broker_key, now)
        return True

    def welcomed(self, number: int) -> float | None:
        """When the hello was sent that a Welcome answers, which ends the try; None where it answers none."""
        sent = None if self._greeting is None else self._greeting.answered(number)
        if sent is not None:
            self.end()
        return sent

    def take(self) -> list[bytes]:
        """Frames to be sent on the other way, once."""
        frames, self._frames = self._frames, []
        return frames

    def _try(self, greeting: Greeting, broker_key: bytes, now: float) -> None:
        self._hello_with_cookie(greeting, broker_key, now)
        greeting.schedule(now)

    def _hello_with_cookie(self, greeting: Greeting, broker_key: bytes, now: float) -> None:
        number = self._outbox.new_number()
        greeting.sent(number, now)
        hello = structs.replace(self._hello, cookie=greeting.cookie)
        self._frames.append(self._outbox.sealed(broker_key, number, hello))
