"""All streams of one node that may move: those it dialled, those it accepted, and who looks at their carriers."""

from __future__ import annotations

import errno

import trio

from ntcpsock._session.carrier import Carrier
from ntcpsock._session.liveness import INTERVAL
from ntcpsock._session.stream import NTCPStream
from ntcpsock._traversal.broker.driver import Delivery
from ntcpsock._traversal.dial import Dial
from ntcpsock._traversal.moving.dialler import DialledStreams
from ntcpsock._traversal.moving.listener import AcceptedStreams
from ntcpsock._traversal.moving.redial import DiallerContext
from ntcpsock._traversal.network.machine import NetworkChange
from ntcpsock._traversal.pending import PendingDial
from ntcpsock._traversal.punch.message import Signal
from ntcpsock._traversal.standing import StandingOffer

#: Seconds between two looks at the age of paths.
AGE_INTERVAL = 1.0


class MovingStreams:
    """dialled, accepted: the two books. `watch` and `mind_ages` run as tasks for the node's life."""

    def __init__(self, node: DiallerContext) -> None:
        self._node = node
        self.dialled_streams = DialledStreams(node)
        self.accepted_streams = AcceptedStreams(node)
        self._some = trio.Event()
        self._some_dialled = trio.Event()

    def dialled(self, stream: NTCPStream, dial: Dial) -> None:
        self.dialled_streams.dialled(stream, dial)
        self._some.set()
        self._some_dialled.set()

    def accepted(self, stream: NTCPStream, pending: PendingDial) -> None:
        self.accepted_streams.accepted(stream, pending)
        self._some.set()

    def heard(self, delivery: Delivery, signal: Signal) -> bool:
        """Take the word of a node at the other end of a stream; whether it was one."""
        return self.accepted_streams.heard(delivery, signal) or self.dialled_streams.heard(delivery, signal)

    def knows(self, session_id: bytes, key: bytes) -> bool:
        """Whether the node `key` has such an accepted stream here."""
        return self.accepted_streams.knows(session_id, key)

    def stands(self, session_id: bytes, standing: StandingOffer) -> None:
        """An offer of a stream's dialer, for when it has no path."""
        self.accepted_streams.stands(session_id, standing)

    def candidates_changed(self) -> None:
        """This node is to be reached elsewhere: whoever has our answer for later gets a new one."""
        for stream in self.accepted_streams:
            stream.answer_again()

    def arrived(self, carrier: Carrier, dial_id: bytes, key: bytes, technique: str) -> None:
        """A proven connection to which a stream shall move; it is worked on in the background."""
        self._node.nursery.start_soon(self.accepted_streams.arrived, carrier, dial_id, key, technique)

    async def watch(self) -> None:
        """Look at the carriers of streams that nobody else looks at: a pump's thread does so for its own."""
        while True:
            await self._some.wait()
            self._some = trio.Event()
            while books := (*self.dialled_streams, *self.accepted_streams):
                await trio.sleep(INTERVAL)
                now = trio.current_time()
                for kept in books:
                    if kept.stream.holder is None:
                        driver = kept.stream.driver
                        if not driver.receivers and not driver.closed:
                            driver.read_ahead()  # a question may lie behind what the application does not take
                        driver.look(now, kept.stream.path.rtt or 0.0)
                    kept.tend(now)  # last: what was just seen is acted upon now, not at the next look

    async def mind_ages(self) -> None:
        """Have paths that a NAT will drop at a known age replaced before. It runs as a task for the node's life."""
        while True:
            await self._some_dialled.wait()
            self._some_dialled = trio.Event()
            while dialled := tuple(self.dialled_streams):
                for kept in dialled:
                    kept.mind_age()
                await trio.sleep(AGE_INTERVAL)

    def network_changed(self, change: NetworkChange) -> None:
        """Streams from an address that is gone need another path at once."""
        for kept in (*self.dialled_streams, *self.accepted_streams):
            if kept.stream.path.local[0] in change.gone and not kept.stream.driver.suspended:
                kept.stream.lose(OSError(errno.EADDRNOTAVAIL, "this address of the machine is gone"))
        if change.moved:
            for accepted in self.accepted_streams:
                if accepted.stream.path.kind == "relay" and not accepted.stream.driver.suspended:
                    self._node.nursery.start_soon(accepted.tell_changed)

    def close(self) -> None:
        """The node ends."""
        self.dialled_streams.close()
        self.accepted_streams.close()
