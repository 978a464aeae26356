"""The way to one node for datagrams: its roads, what waits while one is being dialled for, and who knows it how."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Final, NamedTuple

from ntcpsock._address import encode_node_id
from ntcpsock._report import PathInfo, Report
from ntcpsock._session.datagram_frames import encode_datagram
from ntcpsock._session.datagram_road import DatagramRoad
from ntcpsock._session.reassembly import Reassembly

#: What waits for a road: as the queue of an unresolved neighbour (RFC 1122 section 2.3.2.2), and for the same
#: reason. Full: the oldest goes.
MAX_QUEUED: Final = 64
MAX_QUEUED_BYTES: Final = 131072

# Roads of one pair of nodes at once: two, where both have dialled, and one more while they change.
_MAX_ROADS = 3

# Refusals told to one node, as Linux limits its own ICMP errors: so many at once, and so many a second.
_REFUSAL_BURST = 20
_REFUSALS_PER_SECOND = 20.0

# Ports of ours whose allow list was asked for a node.
_MAX_ADMISSIONS = 256
# Seconds for which the answer holds. A name on a list may not have been looked up just because the broker was away.
_ADMITTED_FOR = 300.0
_REFUSED_FOR = 15.0


@dataclass(frozen=True, slots=True)
class OpenRoad:
    """An authenticated road to a node. name: the label that it was dialled by, or by the broker's word, which is
    only a hint; None: it has none."""

    road: DatagramRoad
    key: bytes
    name: str | None
    path: PathInfo
    report: Report


class Queued(NamedTuple):
    source: int
    destination: int
    payload: bytes


class Way:
    """What leads to one node. Decides and remembers; `Datagrams` waits."""

    def __init__(self, label: str, now: float) -> None:
        #: What the node is called: the name or node id that was dialled, or a name that is certainly its own.
        self.label = label
        #: All labels under which it was addressed.
        self.labels: set[str] = {label}
        self.key: bytes | None = None
        self.used = now
        self.path: PathInfo | None = None
        self.report: Report | None = None
        self.error: OSError | None = None
        self.is_opening = False
        self.failures = 0
        self.retry_at = 0.0
        #: Newest last; that one is sent over.
        self.roads: list[DatagramRoad] = []
        self.queue: deque[Queued] = deque()
        self.queued_bytes = 0
        self.dropped = 0
        self.bad_frames = 0
        self.reassembly = Reassembly()
        self._admitted: OrderedDict[int, tuple[bool, float]] = OrderedDict()
        self._number = 0
        self._refusals = float(_REFUSAL_BURST)
        self._refusals_at = now

    @property
    def node_id(self) -> str:
        return encode_node_id(self.key) if self.key is not None else ""

    @property
    def road(self) -> DatagramRoad | None:
        return self.roads[-1] if self.roads else None

    def enqueue(self, datagram: Queued) -> None:
        self.queue.append(datagram)
        self.queued_bytes += len(datagram.payload)
        while len(self.queue) > MAX_QUEUED or self.queued_bytes > MAX_QUEUED_BYTES:
            self.dequeue()
            self.dropped += 1

    def dequeue(self) -> Queued:
        datagram = self.queue.popleft()
        self.queued_bytes -= len(datagram.payload)
        return datagram

    def take_port(self, port: int) -> list[Queued]:
        """What waits for a port that has refused; it waits no longer."""
        taken = [datagram for datagram in self.queue if datagram.destination == port]
        self.queue = deque(datagram for datagram in self.queue if datagram.destination != port)
        self.queued_bytes -= sum(len(datagram.payload) for datagram in taken)
        return taken

    def transmit(self, datagram: Queued) -> bool:
        """Send over the newest road; False where it has no room. Raises OSError where it is broken."""
        road = self.roads[-1]
        limit = road.max_datagram_payload
        self._number += 1
        frames = encode_datagram(datagram.source, datagram.destination, datagram.payload, limit, self._number)
        return all(road.try_send_datagram(frame) for frame in frames)

    def adopt(self, opened: OpenRoad) -> list[DatagramRoad]:
        """Use a new road from now on. Those that have become too many, for the caller to close."""
        self.roads.append(opened.road)
        self.path, self.report, self.error = opened.path, opened.report, None
        self.failures = 0
        return self.roads[:-_MAX_ROADS]

    def admit(self, port: int, verdict: bool, now: float) -> None:
        """Remember whether this node may send to a port of ours."""
        self._admitted[port] = verdict, now + (_ADMITTED_FOR if verdict else _REFUSED_FOR)
        while len(self._admitted) > _MAX_ADMISSIONS:
            self._admitted.popitem(last=False)

    def is_admitted(self, port: int, now: float) -> bool | None:
        """What was remembered; None: to be asked."""
        verdict, until = self._admitted.get(port, (False, now))
        return verdict if now < until else None

    def forget_port(self, port: int) -> None:
        """The socket of that port is another one from now on."""
        self._admitted.pop(port, None)

    def may_refuse(self, now: float) -> bool:
        """Whether one more refusal may be told."""
        earned = (now - self._refusals_at) * _REFUSALS_PER_SECOND
        self._refusals = min(_REFUSAL_BURST, self._refusals + earned)
        self._refusals_at = now
        if self._refusals < 1:
            return False
        self._refusals -= 1
        return True
