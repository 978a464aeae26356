"""Where the record of each key is: a hash table of four-octet numbers.

A dict of a million keys takes 156 bytes for each: the key once more, a number object, the entry. Here the keys are only
in the records; an entry has some bits of the hash beside the place, so that hardly ever a record is read in vain. There
are many small tables, so that none takes long to grow.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Final

from ntcpsock._servers.node_record import MOST_RECORDS, RECORD
from ntcpsock._traversal.broker.frame import KEY_LENGTH

_TABLE_BITS: Final = 10
_TABLES: Final = 1 << _TABLE_BITS
_TABLE_MASK: Final = _TABLES - 1
_SMALLEST: Final = 8
_SIZE: Final = RECORD.size
# An entry: eight bits of the hash, never all 0, above the place. The bits are not those that choose the table or the
# entry in it, which are the lowest.
_PLACE_BITS: Final = 24
_PLACE_MASK: Final = (1 << _PLACE_BITS) - 1
_MARK_AT: Final = 48
_MARK_MASK: Final = 0xFF
assert MOST_RECORDS <= 1 << _PLACE_BITS


class KeyIndex:
    """The place of a record by its key, which is read in `packed`. Linear probing; 0 is a free entry. Python's hash of
    bytes has a secret, so nobody can make keys that meet."""

    def __init__(self, packed: bytearray) -> None:
        self._packed = packed
        self._tables = [array("I", bytes(4 * _SMALLEST)) for _ in range(_TABLES)]
        self._counts = array("I", bytes(4 * _TABLES))

    def __len__(self) -> int:
        return sum(self._counts)

    def get(self, key: bytes) -> int | None:
        """Where its record is."""
        if len(key) != KEY_LENGTH:
            return None
        number = hash(key)
        table = self._tables[number & _TABLE_MASK]
        mask = len(table) - 1
        at = number >> _TABLE_BITS & mask
        mark = number >> _MARK_AT & _MARK_MASK or 1
        while entry := table[at]:
            if entry >> _PLACE_BITS == mark:
                place = entry & _PLACE_MASK
                if self._packed.startswith(key, place * _SIZE):
                    return place
            at = at + 1 & mask
        return None

    def __contains__(self, key: bytes) -> bool:
        return self.get(key) is not None

    def __getitem__(self, key: bytes) -> int:
        place = self.get(key)
        if place is None:
            raise KeyError(key)
        return place

    def __setitem__(self, key: bytes, place: int) -> None:
        """The record at `place` has this key already; another one may have it, too, which is no longer found."""
        number = hash(key)
        which = number & _TABLE_MASK
        table = self._tables[which]
        at = self._find(table, number, key)
        if not table[at]:
            self._counts[which] += 1
        table[at] = (number >> _MARK_AT & _MARK_MASK or 1) << _PLACE_BITS | place
        if 3 * self._counts[which] > 2 * len(table):
            self._grow(which)

    def __delitem__(self, key: bytes) -> None:
        number = hash(key)
        which = number & _TABLE_MASK
        table = self._tables[which]
        at = self._find(table, number, key)
        if not table[at]:
            raise KeyError(key)
        self._counts[which] -= 1
        # What follows moves up, as far as that brings it no further than to its own place: no gap is left in a row.
        mask = len(table) - 1
        gap, at = at, at + 1 & mask
        while entry := table[at]:
            home = hash(self._key(entry)) >> _TABLE_BITS & mask
            if at - home & mask >= at - gap & mask:
                table[gap] = entry
                gap = at
            at = at + 1 & mask
        table[gap] = 0

    def values(self) -> Iterator[int]:
        """All places."""
        for table in self._tables:
            for entry in table:
                if entry:
                    yield entry & _PLACE_MASK

    def _key(self, entry: int) -> bytes:
        start = (entry & _PLACE_MASK) * _SIZE
        return bytes(self._packed[start : start + KEY_LENGTH])

    def _find(self, table: array[int], number: int, key: bytes) -> int:
        """Where `key` is in its table, or the free entry where it would be."""
        mask = len(table) - 1
        at = number >> _TABLE_BITS & mask
        while (entry := table[at]) and self._key(entry) != key:
            at = at + 1 & mask
        return at

    def _grow(self, which: int) -> None:
        old = self._tables[which]
        new = array("I", bytes(8 * len(old)))
        mask = len(new) - 1
        for entry in old:
            if entry:
                at = hash(self._key(entry)) >> _TABLE_BITS & mask
                while new[at]:
                    at = at + 1 & mask
                new[at] = entry
        self._tables[which] = new
