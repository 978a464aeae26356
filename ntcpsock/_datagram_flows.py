"""Which loopback address the engine speaks with for which port of which node: what `_datagram_table` tells others."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from ntcpsock import _datagram_table, _names
from ntcpsock._datagram_table import Address

#: Ports of peers that are remembered; the one unused for longest makes room.
MOST_FLOWS: Final = 4096


class Flows:
    """A number for each (label, port) that was sent to or has sent. by_number: what a number stands for."""

    def __init__(self) -> None:
        self._numbers: OrderedDict[Address, str] = OrderedDict()
        self.by_number: dict[str, Address] = {}

    def number(self, label: str, port: int, engines_port: int) -> str:
        """That of a port of a node; a new one is entered in the table."""
        key = (label, port)
        number = self._numbers.get(key)
        if number is None:
            number = self._free_number(label)
            self._numbers[key] = number
            self.by_number[number] = key
            _datagram_table.enter(label, port, (number, engines_port))
            if len(self._numbers) > MOST_FLOWS:
                oldest, free = self._numbers.popitem(last=False)
                del self.by_number[free]
                _datagram_table.leave(*oldest)
        else:
            self._numbers.move_to_end(key)
        return number

    def used(self, key: Address) -> None:
        """It makes no room for others soon."""
        self._numbers.move_to_end(key)

    def _free_number(self, label: str) -> str:
        number = _names.number(label)
        which = 0
        while number in self.by_number:
            which += 1
            number = _names.table.another(label, which)
        return number
