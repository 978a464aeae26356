"""What QUIC, and datagrams without encryption, need of the road to one peer: a punched socket, a TURN allocation.

As with carriers, tries and waits are apart: a try never blocks, a cancelled wait loses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from ntcpsock._address import Endpoint

# UDP payload that every path of today carries: RFC 9000 section 14, RFC 8899 section 5.1.2.
SAFE_DATAGRAM_SIZE: Final = 1200


class DatagramPath(Protocol):
    """An unreliable, unordered road for datagrams to one peer. Errors of a broken one are OSErrors.

    After `close` every method but `close` raises trio.ClosedResourceError.
    """

    @property
    def local(self) -> Endpoint: ...

    @property
    def remote(self) -> Endpoint: ...

    @property
    def max_datagram_size(self) -> int:
        """Bytes of UDP payload that the path surely carries: 1200 unless it is known better."""
        ...

    def try_send(self, datagrams: Sequence[bytes | memoryview]) -> int:
        """Send the first of `datagrams` without blocking; how many were taken, 0 where there is no room.

        One that is larger than the path takes counts as taken and is lost, as one that a router drops.
        Raises OSError where the path is broken (ECONNREFUSED and the like of ICMP are the path's to judge).
        """
        ...

    def try_receive(self) -> list[bytes]:
        """The datagrams that are here now, a bounded batch of them, [] for none. Raises OSError where it is broken."""
        ...

    async def wait_readable(self) -> None:
        """Until `try_receive`, that returned [], may get on. One waiter at a time."""
        ...

    async def wait_writable(self) -> None:
        """Until `try_send`, that did not take all, may get on. One waiter at a time."""
        ...

    def interrupt(self) -> None:
        """Wake both waiters with trio.ClosedResourceError; the path stays open."""
        ...

    def close(self) -> None:
        """Close at once, and `interrupt`."""
        ...
