"""The road for the datagrams of all sockets of two nodes: a QUIC connection, or the punched path itself.

A road is authenticated before anybody has it. Over QUIC each datagram is encrypted, and proves its sender; on the
bare path (`encryption="off"` at both ends) only the token of the sealed offer, at the start, has proved anything: from
then on whoever can see or send the path's packets can read and forge them.
"""

from __future__ import annotations

from typing import Protocol

import trio

from ntcpsock._address import Endpoint
from ntcpsock._session.datagram_path import DatagramPath


class DatagramRoad(Protocol):
    """Frames of `datagram_frames` to and from one node. Errors of a broken road are OSErrors.

    After `close` every method but `close` raises trio.ClosedResourceError.
    """

    @property
    def local(self) -> Endpoint: ...

    @property
    def remote(self) -> Endpoint: ...

    @property
    def max_datagram_payload(self) -> int:
        """The largest frame in bytes; it may change as the path's MTU becomes known."""
        ...

    def try_send_datagram(self, data: bytes) -> bool:
        """Send one frame without blocking; False where there is no room for it now."""
        ...

    def try_receive_datagrams(self) -> list[bytes]:
        """The frames that are here now, a bounded batch of them, [] for none."""
        ...

    async def wait_datagram(self) -> None:
        """Until `try_receive_datagrams`, that returned [], may get on."""
        ...

    def close(self) -> None:
        """Close at once, and wake who waits."""
        ...


class BareRoad:
    """A DatagramRoad over a path as it is."""

    def __init__(self, path: DatagramPath) -> None:
        self.path = path

    @property
    def local(self) -> Endpoint:
        return self.path.local

    @property
    def remote(self) -> Endpoint:
        return self.path.remote

    @property
    def max_datagram_payload(self) -> int:
        return self.path.max_datagram_size

    def try_send_datagram(self, data: bytes) -> bool:
        return self.path.try_send((data,)) == 1

    def try_receive_datagrams(self) -> list[bytes]:
        return self.path.try_receive()

    async def wait_datagram(self) -> None:
        await self.path.wait_readable()

    def close(self) -> None:
        self.path.close()


async def drain(road: DatagramRoad) -> list[bytes]:
    """Wait for frames: at least one. Raises OSError for a broken road, ClosedResourceError for a closed one."""
    await trio.lowlevel.checkpoint()
    while not (frames := road.try_receive_datagrams()):
        await road.wait_datagram()
    return frames
