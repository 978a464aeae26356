"""Whole IPv4 packets out of a raw socket: the kernel adds nothing but the checksum of their headers."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

import trio

# Building the first packet imports scapy.
_threads = trio.CapacityLimiter(4)


class Injector:
    """An open raw socket. Raises PermissionError without CAP_NET_RAW; `close` it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)

    async def send(self, make: Callable[[], bytes], host: str) -> None:
        """Build a packet to `host` in a worker thread, and send it. Raises OSError. Cancelled, it was sent or not."""

        def work() -> None:
            try:
                packet = make()
            except Exception as error:  # what scapy says
                raise OSError(errno.EIO, f"building a packet failed: {error}") from error
            self._socket.sendto(packet, (host, 0))

        await trio.to_thread.run_sync(work, limiter=_threads)

    def close(self) -> None:
        self._socket.close()
