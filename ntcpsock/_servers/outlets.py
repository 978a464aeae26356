"""The ways out of a broker: its UDP socket, and the WebSocket of each node that came over TCP."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterable

from ntcpsock._address import Endpoint
from ntcpsock._servers.sources import Connection, Datagram


class Outlets:
    """Sends each frame where it belongs, without waiting. What cannot leave is lost as a datagram is, and counted."""

    def __init__(self) -> None:
        self.datagrams: socket.socket | None = None
        #: Queues a frame for one connection; False where that has no room.
        self.connections: dict[Connection, Callable[[bytes], bool]] = {}
        #: Frames that did not leave, by reason.
        self.unsent: Counter[str] = Counter()

    def send(self, frames: Iterable[Datagram]) -> None:
        for frame, destination in frames:
            if isinstance(destination, Connection):
                queue = self.connections.get(destination)
                if queue is None:
                    self.unsent["connection is gone"] += 1
                elif not queue(frame):
                    self.unsent["connection is full"] += 1
            else:
                self._send_datagram(frame, destination)

    def _send_datagram(self, frame: bytes, destination: Endpoint) -> None:
        if self.datagrams is None:
            self.unsent["no UDP here"] += 1
            return
        try:
            self.datagrams.sendto(
                frame, socket_address(destination, self.datagrams.family == socket.AF_INET6)
            )
        except OSError as error:
            # A full buffer or no route: lost like any datagram, and asked for again.
            self.unsent[str(error.strerror)] += 1


def socket_address(endpoint: Endpoint, ipv6: bool) -> tuple[str, int] | tuple[str, int, int, int]:
    """What the kernel takes for an endpoint, on a socket of either family."""
    if not ipv6:
        return endpoint.host, endpoint.port
    host, _, scope = endpoint.host.partition("%")
    if ":" not in host:
        host = f"::ffff:{host}"
    return host, endpoint.port, 0, int(scope) if scope.isdecimal() else 0
