"""The ways out of a broker: its UDP sockets, the WebSocket of each node that came over TCP, and raw packets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import trio

from ntcpsock._servers.broker_core import BrokerCore
from ntcpsock._servers.datagrams import socket_address
from ntcpsock._servers.sources import Connection, Datagram, Source, UdpSource
from ntcpsock._servers.spoofer import Spoofer


class Outlets:
    """Sends each frame where it belongs, without waiting. What cannot leave is lost as a datagram is, and counted."""

    def __init__(self, spoofer: Spoofer | None) -> None:
        self._spoofer = spoofer
        #: Queues a frame for one connection; False where that has no room.
        self.connections: dict[Connection, Callable[[bytes], bool]] = {}
        #: Frames that did not leave, by reason.
        self.unsent: Counter[str] = Counter()

    def answer(self, core: BrokerCore, frame: bytes, source: Source) -> None:
        """Give a frame to the core, and send what it answers."""
        self.send(core.receive(frame, source, trio.current_time()))
        if self._spoofer is not None:
            self._spoofer.put(core.syn_acks)

    def send(self, frames: Iterable[Datagram]) -> None:
        """Put them on their way."""
        for frame, destination in frames:
            if isinstance(destination, Connection):
                queue = self.connections.get(destination)
                if queue is None:
                    self.unsent["connection is gone"] += 1
                elif not queue(frame):
                    self.unsent["connection is full"] += 1
            else:
                # A node's address was given in by us with the way to it, whoever's datagram makes us send there.
                assert isinstance(destination, UdpSource)
                self._send_datagram(frame, destination)

    def _send_datagram(self, frame: bytes, destination: UdpSource) -> None:
        out, own_address = destination.way
        try:
            out.send(frame, socket_address(destination, out.ipv6), own_address)
        except OSError as error:
            # A full buffer or no route: lost like any datagram, and asked for again.
            self.unsent[str(error.strerror)] += 1
