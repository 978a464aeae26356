"""Datagrams that a broker answers when it comes to it: strangers', and whatever else is not frequent.

While more come than can be answered, whoever waits says it again and again, and each copy would be answered: most of
the work would be for nothing. So one datagram of a stranger's address waits, and of a node's as many as are its share
of what is answered before anybody repeats himself: a node alone may ask for a thousand things at once, each of a
thousand nodes for one. And whoever has begun goes first: he has cost a Diffie-Hellman, and would cost another one if
his cookie became too old before he is heard.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Final

from ntcpsock._traversal.broker.frame import KEY_LENGTH

#: Of each turn, for strangers at least.
_FOR_STRANGERS: Final = 4
#: Of the room, what nodes share: a thousand of four are answered in some 0.2 s, before the first retransmission.
_SHARED: Final = 0.25


class WaitingRoom:
    """knows: whether a key has been heard before. most: of each of the two kinds. at_once: in one turn."""

    def __init__(self, knows: Callable[[bytes], bool], *, most: int, at_once: int) -> None:
        self._knows = knows
        self._most = most
        self._shared = int(most * _SHARED)
        self._at_once = at_once
        self._begun: deque[tuple[bytes, bytes]] = deque()
        self._strangers: deque[tuple[bytes, bytes]] = deque()
        #: How many of each packed source wait.
        self._waiting: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._begun) + len(self._strangers)

    def put(self, datagrams: Iterable[tuple[bytes, bytes]]) -> int:
        """Frames and their packed sources; how many found no room."""
        lost = 0
        for datagram in datagrams:
            frame, origin = datagram
            waiting = self._waiting.get(origin, 0)
            has_begun = self._knows(frame[1 : 1 + KEY_LENGTH])
            # What can be answered in this turn need not wait.
            if waiting >= (self._share() if has_begun else 1) and len(self) >= self._at_once:
                continue
            line = self._begun if has_begun else self._strangers
            if len(line) >= self._most:
                lost += 1
                continue
            self._waiting[origin] = waiting + 1
            line.append(datagram)
        return lost

    def take(self) -> list[tuple[bytes, bytes]]:
        """Whose turn it is."""
        strangers = min(len(self._strangers), max(_FOR_STRANGERS, self._at_once - len(self._begun)))
        begun = min(len(self._begun), self._at_once - strangers)
        taken = [self._begun.popleft() for _ in range(begun)]
        taken += [self._strangers.popleft() for _ in range(strangers)]
        for _, origin in taken:
            self._waiting[origin] -= 1
            if not self._waiting[origin]:
                del self._waiting[origin]
        return taken

    def _share(self) -> int:
        """How many datagrams of each node may wait."""
        return max(1, self._shared // max(1, len(self._waiting)))
