"""All datagrams of a node: its ports, and the ways to other nodes.

One authenticated road to each node, shared by all sockets, is dialled for by the first datagram and ends when nothing
has used it for a while. Who is at the other end of a road is proven; which port may be sent to is asked for each node
and port, as for streams.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol

import trio

from ntcpsock._address import encode_node_id
from ntcpsock._datagram_socket import Deliver, NTCPDatagramSocket, Refuse
from ntcpsock._datagram_way import OpenRoad, Queued, Way
from ntcpsock._datagram_ways import Ways
from ntcpsock._errors import BadMessage, NameNotFound, PeerRefused
from ntcpsock._session.datagram_frames import (
    MAX_PAYLOAD,
    Close,
    Datagram,
    Refused,
    decode_frame_untrusted,
    encode_refused,
)
from ntcpsock._session.datagram_road import DatagramRoad, drain

_REAP_INTERVAL: Final = 15.0
# After a failed dial the next one waits, so that a program that sends all the time does not dial all the time.
_FIRST_RETRY_PAUSE: Final = 1.0
_LONGEST_RETRY_PAUSE: Final = 30.0
# How long the name by which a node introduces itself may take to be looked up.
_NAME_DEADLINE: Final = 5.0

# RFC 6335 section 6, where port 0 is chosen from.
_DYNAMIC_PORTS = range(49152, 65536)
# Seconds between tries to send where a road has no room and cannot tell when it has; and of waiting for one that can.
_ROOM_PAUSE = 0.002
_ROOM_PATIENCE = 0.1


class DatagramContext(Protocol):
    """What datagrams need of their node."""

    @property
    def public_key(self) -> bytes: ...
    @property
    def own_labels(self) -> Sequence[str]: ...
    async def resolve(self, name: str) -> bytes: ...
    async def dial_road(self, label: str, key: bytes, port: int, source_port: int) -> OpenRoad: ...
    async def is_allowed(self, allow: tuple[str, ...] | None, key: bytes, name: str | None) -> bool: ...


class Datagrams:
    """The ports and the ways of one node. Its tasks run in the nursery of the node."""

    def __init__(self, node: DatagramContext, nursery: trio.Nursery) -> None:
        self._node = node
        self._nursery = nursery
        self.sockets: dict[int, NTCPDatagramSocket] = {}
        self._ways = Ways()
        self._corked: dict[int, tuple[Way, DatagramRoad]] = {}
        self._reaping = False
        self._closed = False
        #: How often something was dropped, by reason.
        self.dropped: dict[str, int] = {}

    # Ports.

    def bind(
        self,
        name: str,
        port: int,
        allow: tuple[str, ...] | None,
        *,
        is_bound: bool,
        deliver: Deliver | None = None,
        refuse: Refuse | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> NTCPDatagramSocket:
        """A socket at `port`; 0: at a free one. is_bound: whether whoever is allowed may send to it first; else only
        nodes that it has sent to. Raises OSError (EADDRINUSE)."""
        if not port:
            port = next(
                (number for number in random.sample(_DYNAMIC_PORTS, 256) if number not in self.sockets), 0
            )
        if not port or port in self.sockets:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        sock = NTCPDatagramSocket(
            self,
            name,
            port,
            allow,
            is_bound=is_bound,
            deliver=deliver,
            refuse=refuse,
            on_close=on_close,
        )
        self.sockets[port] = sock
        return sock

    @property
    def bound_ports(self) -> tuple[int, ...]:
        """Those to which others may send first."""
        return tuple(port for port, sock in self.sockets.items() if sock.is_bound)

    def unbind(self, sock: NTCPDatagramSocket) -> None:
        if self.sockets.get(sock.port) is sock:
            del self.sockets[sock.port]
        for way in self._ways.by_label.values():
            way.forget_port(sock.port)

    # Out.

    def send(
        self, sock: NTCPDatagramSocket, label: str, port: int, payload: bytes, *, more: bool = False
    ) -> bool:
        """Send, or keep until there is a road; False where a road has no room. Raises NameNotFound where that is known
        of the name; other failures come to the socket's `refused`. more: others follow, and then `flush`."""
        sock.remember(label)
        if label in self._node.own_labels:
            self._deliver_to_self(sock, port, payload)
            return True
        now = trio.current_time()
        way = self._ways.by_label.get(label)
        if way is None:
            way = Way(label, now)
            if not self._enter(way, now):
                return True  # lost, as where a neighbour table is full
        way.used = now
        datagram = Queued(sock.port, port, payload)
        if way.roads:
            road = way.road_to(port)
            try:
                way.keep_unheard(datagram)
                if more:
                    self._corked[id(road)] = way, road
                return way.transmit(datagram, more=more)
            except (OSError, trio.ClosedResourceError):
                self._lose(way, road)
                if way.roads:
                    return True
        if not way.is_opening and now < way.retry_at:
            assert way.error is not None
            if isinstance(way.error, NameNotFound):
                raise way.error
            self._count("no path")
            sock.refused(way.labels, port, way.error)
            return True
        way.enqueue(datagram)
        self.open(way)
        return True

    async def wait_room(self, label: str, port: int) -> None:
        """Until `send`, that returned False, may find room; not for long, for another road may have come up."""
        way = self._ways.by_label.get(label)
        road = way.road_to(port) if way is not None and way.roads else None
        wait = getattr(road, "wait_datagram_room", None)
        with (
            trio.move_on_after(_ROOM_PAUSE if wait is None else _ROOM_PATIENCE),
            suppress(trio.ClosedResourceError),
        ):
            if wait is None:
                await trio.sleep_forever()
            else:
                await wait()

    def flush(self) -> None:
        """Send what has waited for more."""
        corked, self._corked = self._corked, {}
        for way, road in corked.values():
            try:
                road.flush_datagrams()
            except (OSError, trio.ClosedResourceError):
                self._lose(way, road)

    def has_queued(self, sock: NTCPDatagramSocket) -> bool:
        return any(queued.source == sock.port for way in self._ways.by_label.values() for queued in way.queue)

    def largest(self, label: str, port: int | None) -> int | None:
        """As `Way.largest`, for a label."""
        if label in self._node.own_labels:
            return MAX_PAYLOAD
        way = self._ways.by_label.get(label)
        return None if way is None else way.largest(port)

    def way_of(self, label: str) -> Way | None:
        return self._ways.by_label.get(label)

    def _enter(self, way: Way, now: float) -> bool:
        """Remember a way; False where all places are taken by ways in use."""
        if not self._ways.enter(way, now):
            self._count("too many nodes")
            return False
        if not self._reaping:
            self._reaping = True
            self._nursery.start_soon(self._reap)
        return True

    def open(self, way: Way) -> None:
        if not way.is_opening:
            way.is_opening = True
            self._nursery.start_soon(self._open, way)

    async def _open(self, way: Way) -> None:
        """Dial, until a road is there or nothing waits for one any more."""
        try:
            key = way.key
            if key is None:
                key = await self._node.resolve(way.label)
                known = self._ways.by_key.get(key)
                if key == self._node.public_key:
                    self._forward_to_self(way)
                    return
                if known is not None:
                    self._join(way, known)
                    return
                self._ways.identify(way, key)
            while way.queue and not way.roads:
                first = way.queue[0]
                try:
                    opened = await self._node.dial_road(way.label, key, first.destination, first.source)
                except PeerRefused as error:
                    way.report = error.report
                    self._refuse_queued(way, way.take_port(first.destination), error)
                else:
                    self._adopt(way, opened)
        except OSError as error:
            way.error = error
            way.report = getattr(error, "report", None) or way.report
            way.failures += 1
            pause = min(_FIRST_RETRY_PAUSE * 2 ** (way.failures - 1), _LONGEST_RETRY_PAUSE)
            way.retry_at = trio.current_time() + pause
            self._refuse_queued(way, [way.dequeue() for _ in tuple(way.queue)], error)
        finally:
            way.is_opening = False

    def _join(self, way: Way, known: Way) -> None:
        """Two labels turn out to be one node."""
        self._ways.join(way, known)
        for datagram in tuple(way.queue):
            self._pass_on(known, datagram)

    def _forward_to_self(self, way: Way) -> None:
        """A label turns out to be this node's own."""
        self._ways.forget(way)
        for datagram in way.queue:
            sock = self.sockets.get(datagram.source)
            if sock is not None:
                self._deliver_to_self(sock, datagram.destination, datagram.payload)

    def _pass_on(self, way: Way, datagram: Queued) -> None:
        if way.roads:
            with suppress(OSError, trio.ClosedResourceError):
                way.transmit(datagram)
        else:
            way.enqueue(datagram)
            self.open(way)

    def _refuse_queued(self, way: Way, datagrams: Sequence[Queued], error: OSError) -> None:
        for source, destination in {(datagram.source, datagram.destination) for datagram in datagrams}:
            self._count("refused" if isinstance(error, PeerRefused) else "no path")
            sock = self.sockets.get(source)
            if sock is not None:
                sock.refused(way.labels, destination, error)

    # Roads.

    def arrived(self, opened: OpenRoad) -> None:
        """A node has dialled us, and was let in."""
        self._nursery.start_soon(self._welcome, opened)

    async def _welcome(self, opened: OpenRoad) -> None:
        """Find out what the node is called; then it is heard."""
        way = None
        try:
            way = self._ways.by_key.get(opened.key)
            label = encode_node_id(opened.key)
            if way is None:
                own = await self._is_name_of(opened)
                way = self._ways.by_key.get(opened.key) or self._arrived_way(own or label, opened.key)
            if way is not None:
                self._ways.call(way, label)
        finally:
            if way is None or self._closed:
                opened.road.close()
        if way is not None and not self._closed:
            self._adopt(way, opened)

    def _arrived_way(self, label: str, key: bytes) -> Way | None:
        now = trio.current_time()
        before = self._ways.by_label.get(label)
        way = Way(label, now)
        way.key = key
        if before is not None and before.key is None:
            # It is being looked up just now, for a dial of ours: that one finds us by the key, and joins.
            self._ways.identify(way, key)
            return way
        return way if self._enter(way, now) else None

    async def _is_name_of(self, opened: OpenRoad) -> str | None:
        """The name by which the broker knows it, if that is certainly its own: an answer is to go to the same key."""
        if opened.name is None:
            return None
        with trio.move_on_after(_NAME_DEADLINE), suppress(OSError):
            if await self._node.resolve(opened.name) == opened.key:
                return opened.name
        return None

    def _adopt(self, way: Way, opened: OpenRoad) -> None:
        if self._closed or not self._ways.holds(way):
            opened.road.close()  # forgotten meanwhile
            return
        way.used = trio.current_time()
        for old in way.adopt(opened):
            self._lose(way, old)
        self._nursery.start_soon(self._receive, way, opened.road)
        while way.queue and way.roads:
            try:
                way.transmit(way.dequeue())
            except (OSError, trio.ClosedResourceError):
                self._lose(way, opened.road)

    def _lose(self, way: Way, road: DatagramRoad) -> None:
        way.lose(road)
        road.close()

    async def _receive(self, way: Way, road: DatagramRoad) -> None:
        try:
            while True:
                for data in await drain(road):
                    try:
                        frame = decode_frame_untrusted(data)
                    except BadMessage:
                        way.bad_frames += 1
                        continue
                    if isinstance(frame, Close):
                        return
                    if isinstance(frame, Refused):
                        self._heard_refusal(way, road, frame)
                        continue
                    if not isinstance(frame, Datagram):
                        whole = way.reassembly.add_untrusted(frame, trio.current_time())
                        if whole is None:
                            continue
                        frame = whole
                    await self._received(way, road, frame)
        except (OSError, trio.ClosedResourceError, trio.BrokenResourceError):
            pass
        finally:
            self._lose(way, road)

    def _heard_refusal(self, way: Way, road: DatagramRoad, refused: Refused) -> None:
        """A node of several processes may have the port in another one, which the broker knows."""
        sock = self.sockets.get(refused.source)
        if sock is None or not sock.knows(way.labels):
            return
        if way.may_look_elsewhere(refused.destination, road, trio.current_time()):
            self._nursery.start_soon(self._look_elsewhere, way, refused)
        else:
            self._tell_refusal(way, refused)

    async def _look_elsewhere(self, way: Way, refused: Refused) -> None:
        assert way.key is not None
        try:
            opened = await self._node.dial_road(way.label, way.key, refused.destination, refused.source)
        except OSError:
            self._tell_refusal(way, refused)
            return
        self._adopt(way, opened)
        if opened.road in way.roads:
            waiting = way.take_unheard(refused.destination)
            way.expect(refused.destination, opened.road)
            if waiting is not None:
                self._pass_on(way, waiting)

    def _tell_refusal(self, way: Way, refused: Refused) -> None:
        sock = self.sockets.get(refused.source)
        if sock is not None and sock.knows(way.labels):
            error = PeerRefused(f"nothing is bound to port {refused.destination} of {way.label}.ntcp")
            sock.refused(way.labels, refused.destination, error)

    async def _received(self, way: Way, road: DatagramRoad, datagram: Datagram) -> None:
        way.used = trio.current_time()
        way.heard(datagram.source, road)
        sock = self.sockets.get(datagram.destination)
        taken = False
        if sock is not None and await self._admits(way, sock):
            taken = sock.deliver(way.labels, way.label, datagram.source, datagram.payload)
        if not taken:
            self._count("refused here")
            if way.may_refuse(way.used):
                refusal = encode_refused(Refused(datagram.source, datagram.destination))
                with suppress(OSError, trio.ClosedResourceError):
                    road.try_send_datagram(refusal)

    async def _admits(self, way: Way, sock: NTCPDatagramSocket) -> bool:
        """Whether a node may send to a port. Who may not hears the same as where nobody is."""
        if not sock.is_bound:
            return sock.knows(way.labels)
        if sock.allow is None:
            return True
        verdict = way.is_admitted(sock.port, trio.current_time())
        if verdict is None:
            assert way.key is not None
            name = way.label if way.label != way.node_id else None
            verdict = await self._node.is_allowed(sock.allow, way.key, name)
            way.admit(sock.port, verdict, trio.current_time())
        return verdict

    def _deliver_to_self(self, sock: NTCPDatagramSocket, port: int, payload: bytes) -> None:
        """From one port of this node to another: over no network. Allow lists speak of other nodes."""
        labels = set(self._node.own_labels)
        target = self.sockets.get(port)
        if target is None or not target.deliver(labels, sock.name, sock.port, payload):
            error = PeerRefused(f"nothing is bound to port {port} of {sock.name}.ntcp")
            sock.refused(labels, port, error)

    # The end.

    async def _reap(self) -> None:
        while True:
            await trio.sleep(_REAP_INTERVAL)
            self._ways.end_idle(trio.current_time())

    def close(self) -> None:
        """Close all ports and roads. Tasks end with the node's nursery."""
        self._closed = True
        for sock in tuple(self.sockets.values()):
            sock.close()
        self._ways.end_all()

    def _count(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
