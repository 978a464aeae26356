"""The way to one node for datagrams: its roads, what waits while one is being dialled for, and who knows it how."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Final, NamedTuple

from ntcpsock._address import encode_node_id
from ntcpsock._report import PathInfo, Report
from ntcpsock._session.datagram_frames import HEADER_LENGTH, MAX_PAYLOAD, encode_datagram
from ntcpsock._session.datagram_road import DatagramRoad
from ntcpsock._session.reassembly import Reassembly

#: What waits for a road: as the queue of an unresolved neighbour (RFC 1122 section 2.3.2.2), and for the same
#: reason. Full: the oldest goes.
MAX_QUEUED: Final = 64
MAX_QUEUED_BYTES: Final = 131072

# Roads of one pair of nodes at once: two, where both have dialled, and as many more as the peer is several processes.
_MAX_ROADS = 8

# Ports of the peer of which is known over which road they are reached.
_MAX_HEARD = 1024
# Of the newest datagrams to ports that have not been heard yet so many are kept, up to this size each: where one is
# refused, another process of the peer may want it.
_MAX_UNHEARD = 16
_LARGEST_UNHEARD = 4096
# Seconds until the broker is asked again for another process, doubled each time that there was none.
_FIRST_LOOK_PAUSE = 1.0
_LONGEST_LOOK_PAUSE = 60.0

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
        self._road_of_port: OrderedDict[int, DatagramRoad] = OrderedDict()
        self._unheard: OrderedDict[int, Queued] = OrderedDict()
        self._look_pause = 0.0
        self._look_at = now
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

    def transmit(self, datagram: Queued, *, more: bool = False) -> bool:
        """Send over the road by which the port was heard, or else the newest; False where it has no room. Raises
        OSError where it is broken. more: as `DatagramRoad.try_send_datagram` has it."""
        road = self.road_to(datagram.destination)
        limit = road.max_datagram_payload
        self._number += 1
        frames = encode_datagram(datagram.source, datagram.destination, datagram.payload, limit, self._number)
        if len(frames) == 1:
            return road.try_send_datagram(frames[0], more=more)
        if not all(road.try_send_datagram(frame, more=True) for frame in frames):
            return False
        if not more:
            road.flush_datagrams()
        return True

    def road_to(self, port: int) -> DatagramRoad:
        """Over which road a port of the peer is reached. A node may be several processes, each with ports of its
        own and a road of its own."""
        road = self._road_of_port.get(port)
        return self.roads[-1] if road is None else road

    def largest(self, port: int | None) -> int | None:
        """Bytes of the largest datagram that goes to a port of the peer, or over the newest road, uncut; None without a
        road. Any thread may ask."""
        roads = tuple(self.roads)
        if not roads:
            return None
        road = self._road_of_port.get(port, roads[-1]) if port is not None else roads[-1]
        return min(MAX_PAYLOAD, road.max_datagram_payload - HEADER_LENGTH)

    def heard(self, port: int, road: DatagramRoad) -> None:
        """Something has come from a port of the peer."""
        if self._road_of_port.get(port) is not road:
            self.expect(port, road)
            self._unheard.pop(port, None)
            self._look_pause = 0.0

    def expect(self, port: int, road: DatagramRoad) -> None:
        """A road has been dialled for a port of the peer."""
        self._road_of_port[port] = road
        self._road_of_port.move_to_end(port)
        if len(self._road_of_port) > _MAX_HEARD:
            self._road_of_port.popitem(last=False)

    def keep_unheard(self, datagram: Queued) -> None:
        """Remember what is sent to a port that has not been heard yet."""
        if datagram.destination not in self._road_of_port and len(datagram.payload) <= _LARGEST_UNHEARD:
            self._unheard[datagram.destination] = datagram
            if len(self._unheard) > _MAX_UNHEARD:
                self._unheard.popitem(last=False)

    def take_unheard(self, port: int) -> Queued | None:
        """What was sent there last."""
        return self._unheard.pop(port, None)

    def lose(self, road: DatagramRoad) -> None:
        """A road is gone, and with it what was reached over it."""
        if road in self.roads:
            self.roads.remove(road)
        for port in [port for port, known in self._road_of_port.items() if known is road]:
            del self._road_of_port[port]

    def may_look_elsewhere(self, port: int, road: DatagramRoad, now: float) -> bool:
        """Whether, where a port was refused over a road, the broker is to be asked for another process that has it."""
        if self._road_of_port.get(port) is road:
            del self._road_of_port[port]  # it was there
        if now < self._look_at:
            return False
        self._look_pause = min(_LONGEST_LOOK_PAUSE, max(_FIRST_LOOK_PAUSE, 2 * self._look_pause))
        self._look_at = now + self._look_pause
        return True

    def adopt(self, opened: OpenRoad) -> list[DatagramRoad]:
        """Use a new road from now on. Those that have become too many, for the caller to close."""
        self.roads.append(opened.road)
        self.path, self.report, self.error = opened.path, opened.report, None
        self.failures = 0
        heard = list(self._road_of_port.values())
        unheard = [road for road in self.roads[:-1] if not any(road is known for known in heard)]
        return (unheard or self.roads)[: max(0, len(self.roads) - _MAX_ROADS)]

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
