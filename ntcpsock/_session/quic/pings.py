"""The PINGs of one connection, and which of them are answered."""

from __future__ import annotations


class Pings:
    """last: the number of the newest; waits: whether it is to be sent as soon as there is a core."""

    __slots__ = ("_expected", "last", "waits")

    def __init__(self) -> None:
        self.last = 0
        self.waits = False
        self._expected: dict[int, bool] = {}

    def new(self, *, expect: bool) -> int:
        """The number of another one. expect: whether `take_answer` will be asked for it."""
        self.last += 1
        if expect:
            self._expected[self.last] = False
        return self.last

    @property
    def are_expected(self) -> bool:
        """Whether an answer is waited for."""
        return bool(self._expected)

    def forget(self) -> None:
        """Expect no answers any more."""
        self._expected.clear()

    def acknowledged(self, ping: int) -> None:
        """The packet with this one has arrived at the peer."""
        if ping in self._expected:
            self._expected[ping] = True

    def take_answer(self, ping: int) -> bool:
        """Whether this one was answered. True only once."""
        if not self._expected.get(ping):
            return False
        del self._expected[ping]
        return True
