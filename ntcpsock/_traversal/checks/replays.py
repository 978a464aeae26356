"""Which checks of the other side have been seen, and from where: one that is replayed from elsewhere is none.

A path lives for days, with a check every few seconds, so little is kept of each: four bytes of its transaction, and
four that stand for where it came from. One in ten million new ones counts as replayed, and the next one does not.
"""

from __future__ import annotations

from array import array
from typing import Final

from ntcpsock._traversal.checks.pairs import Way

# Transactions that are remembered, the newest.
REMEMBERED: Final = 512


class Replays:
    def __init__(self) -> None:
        self._transactions = array("I")
        self._ways = array("I")

    def is_replayed(self, transaction_id: bytes, way: Way) -> bool:
        """Whether this transaction was first seen by another way. From now on it is known by this one."""
        transaction = int.from_bytes(transaction_id[:4], "big")
        place = hash(way) & 0xFFFFFFFF  # that of a string is a secret of this process
        if transaction in self._transactions:
            return self._ways[self._transactions.index(transaction)] != place
        self._transactions.append(transaction)
        self._ways.append(place)
        if len(self._transactions) > REMEMBERED:
            del self._transactions[0], self._ways[0]
        return False
