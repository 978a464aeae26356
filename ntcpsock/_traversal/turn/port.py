"""A UDP port of which one more way out is an allocation at a TURN server: for checks, a relayed address is a base
like any other (RFC 8445 section 5.1.1.2)."""

from __future__ import annotations

import _socket
import errno
from collections.abc import Callable

import trio

from ntcpsock._address import Endpoint
from ntcpsock._traversal.checks.pairs import Outgoing, Way
from ntcpsock._traversal.checks.port import Taker, UdpPort
from ntcpsock._traversal.turn.allocation import TurnAllocation

# Seconds for which an allocation outlives the nomination of another pair.
UNUSED_DEADLINE = 5.0


class TurnPort(UdpPort):
    """Of one dial. It takes over the sockets of `udp`, and `allocation`; either may be None, and `close` closes both.

    relay_base: the number of the allocation's way out, or None. on_lost: called when the allocation is lost.
    """

    def __init__(self, allocation: TurnAllocation | None, udp: UdpPort | None) -> None:
        super().__init__(() if udp is None else udp.sockets)
        self._allocation = allocation
        self.relay_base: int | None = None
        self.on_lost: Callable[[OSError], None] | None = None
        if allocation is not None:
            self.relay_base = len(self.sockets)
            allocation.take_over(self._relayed, self._lost)

    def _relayed(self, data: bytes, source: Endpoint) -> None:
        if self.relay_base is not None and not self.closed:
            self._dispatch(data, self.relay_base, source, trio.current_time())

    def _lost(self, error: OSError) -> None:
        if self.on_lost is not None and not self.closed:
            self.on_lost(error)

    def claim(self, way: Way, taker: Taker) -> None:
        super().claim(way, taker)
        if self._allocation is not None and way[0] == self.relay_base:
            self._allocation.bind(way[1])

    def send(self, out: Outgoing) -> bool:
        if self._allocation is None or out.base != self.relay_base:
            return super().send(out)
        if self.closed:
            return True
        try:
            return self._allocation.try_send_to([out.data], out.remote) == 1
        except OSError as error:
            self.dropped[errno.errorcode.get(error.errno or 0, "error") + " when sending"] += 1
            return True

    def local_of(self, base: int) -> Endpoint | None:
        """The relayed address, where the way out is that."""
        return self._allocation.relayed if self._allocation and base == self.relay_base else None

    def open_connected(self, base: int, remote: Endpoint) -> _socket.socket:
        if base == self.relay_base:
            raise OSError(errno.EOPNOTSUPP, "a relayed address has no socket of its own")
        if self._allocation is not None:
            # The other side's allocation carries this path, and ours nothing, as soon as the other side knows it too.
            self.on_lost = None
            self._allocation.close_after(UNUSED_DEADLINE)
        return super().open_connected(base, remote)

    def close(self) -> None:
        if not self.closed and self._allocation is not None:
            self._allocation.close()
        super().close()
