"""The ports that our NAT has given us lately (pure).

A NAT keeps a mapping for minutes after its socket was closed. Who aims at one port of a block must know which of them
will not be drawn again for that reason: each look at a NAT, and each warm port that was used, has taken some.
"""

from __future__ import annotations

from collections.abc import Iterable

from ntcpsock._traversal.punch.message import Transport

#: Seconds for which a NAT may keep the mapping of a closed socket: RFC 5382 section 5 asks for four minutes, and RFC
#: 4787 REQ-5 for two at least.
KEPT_FOR = 240.0
#: Ports of each transport that are remembered, the newest.
MOST = 1024


class RecentMappings:
    """Of one node, in one network."""

    def __init__(self) -> None:
        self._seen: dict[Transport, dict[int, float]] = {"tcp": {}, "udp": {}}

    def note(self, transport: Transport, ports: Iterable[int], now: float) -> None:
        """The NAT was seen to hold these for us."""
        seen = self._seen[transport]
        for port in ports:
            seen.pop(port, None)
            seen[port] = now
        for port in list(seen)[: max(0, len(seen) - MOST)]:
            del seen[port]

    def ports(self, transport: Transport, now: float) -> list[int]:
        """What it may hold still."""
        return [port for port, when in self._seen[transport].items() if now - when < KEPT_FOR]

    def forget(self) -> None:
        """The network is another one."""
        for seen in self._seen.values():
            seen.clear()
