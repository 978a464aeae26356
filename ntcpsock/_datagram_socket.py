"""A port of a node for datagrams, as the trio face has it."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from ntcpsock._address import check_port, full_name, normalize_name
from ntcpsock._report import PathInfo, PeerInfo, Report
from ntcpsock._session.datagram_frames import MAX_PAYLOAD

if TYPE_CHECKING:
    from ntcpsock._datagrams import Datagrams

#: What waits to be received: as much as Linux' default buffer of a UDP socket. Full: what comes is dropped.
MAX_WAITING_BYTES: Final = 212992
MAX_WAITING: Final = 1024

# Nodes that a port without a number of its own has sent to, and takes datagrams from.
_MAX_PARTNERS = 4096


class DatagramAddress(NamedTuple):
    """host: `NAME.ntcp`, or a node id with that suffix; port: the socket's own there. It may be sent to as it is."""

    host: str
    port: int


#: What has come for a port: (label, port) of the sender, and the payload. Whether there is somebody to take it.
Deliver = Callable[[str, int, bytes], bool]
#: What was sent to (label, port) did not arrive, and why.
Refuse = Callable[[str, int, OSError], None]


class NTCPDatagramSocket:
    """A port for datagrams to and from other nodes. Made by `Node.open_datagram_socket`.

    name: what its node is called; port: its number; dropped: datagrams that found the queue full; dont_fragment: set
    it, and what does not go in one packet raises EMSGSIZE (see `largest`), instead of going in several.
    """

    def __init__(
        self,
        hub: Datagrams,
        name: str,
        port: int,
        allow: tuple[str, ...] | None,
        *,
        is_bound: bool,
        deliver: Deliver | None = None,
        refuse: Refuse | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self.port = port
        self.allow = allow
        self.is_bound = is_bound
        self.dropped = 0
        self.dont_fragment = False
        self._hub = hub
        self._deliver = deliver
        self._refuse = refuse
        self._on_close = on_close
        self._waiting: deque[tuple[bytes, DatagramAddress]] = deque()
        self._waiting_bytes = 0
        self._arrived = trio.lowlevel.ParkingLot()
        self._partners: OrderedDict[str, None] = OrderedDict()
        self._error: OSError | None = None
        self._target: tuple[str, int] | None = None
        self.closed = False

    # Out.

    async def send_to(self, data: bytes | bytearray | memoryview, address: tuple[str, int]) -> None:
        """Send one datagram to (name, port); the name with or without `.ntcp`, or a node id.

        The first one to a node looks the name up, dials, and waits for that in the node's queue, which keeps the
        newest 64: it does not keep the caller. That it arrives is not promised, as with UDP. Waits where the path
        has no room for more; cancelled, the datagram was not sent.

        Raises OSError: EMSGSIZE above 65,507 bytes, with `dont_fragment` above `largest`; NameNotFound, where that is
        known already.
        """
        label, port = normalize_name(address[0]), check_port(address[1])
        await trio.lowlevel.checkpoint()
        self._check_open()
        while not self.try_send_to(data, (label, port)):
            await self._hub.wait_room(label, port)

    def try_send_to(
        self, data: bytes | bytearray | memoryview, address: tuple[str, int], *, more: bool = False
    ) -> bool:
        """As `send_to` for a normalized name, without waiting: False where the path has no room now. more: others
        follow at once, and `flush` after the last."""
        self._check_open()
        payload = bytes(data)
        if len(payload) > MAX_PAYLOAD:
            raise OSError(
                errno.EMSGSIZE, f"{os.strerror(errno.EMSGSIZE)}: UDP carries {MAX_PAYLOAD} bytes at most"
            )
        if self.dont_fragment:
            self.check_size(len(payload), address)
        if not address[1]:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return self._hub.send(self, *address, payload, more=more)

    def largest(self, host: str, port: int | None = None) -> int | None:
        """Bytes of the largest datagram that goes to a node, or a port of it, in one packet; None without a path.
        Every path takes 1,151. It grows when one turns out to carry more, and falls again where what is larger does not
        get through any more. Any thread may ask."""
        return self._hub.largest(normalize_name(host), port)

    def check_size(self, size: int, address: tuple[str, int]) -> None:
        """Raise OSError (EMSGSIZE) where so many bytes do not go to (label, port) in one packet. Any thread may ask."""
        largest = self._hub.largest(*address)
        if largest is not None and size > largest:
            raise OSError(
                errno.EMSGSIZE,
                f"{os.strerror(errno.EMSGSIZE)}: {size} bytes; {largest} go to {full_name(address[0])} in one packet. "
                "Send no more, or let datagrams be fragmented",
            )

    def flush(self) -> None:
        """Send what `try_send_to` was told that more follows."""
        self._hub.flush()

    @property
    def has_unsent(self) -> bool:
        """Whether something of it waits for a path that is being dialled for."""
        return self._hub.has_queued(self)

    # In.

    async def receive_from(self) -> tuple[bytes, DatagramAddress]:
        """The next datagram and who sent it, proven by key. Cancelling loses none.

        Raises ClosedResourceError when the socket is closed; on a connected socket the OSError that `send_to` could
        not tell yet: ECONNREFUSED where the peer has no such port, and what its dial came to.
        """
        await trio.lowlevel.checkpoint()
        while True:
            self._check_open()
            found = self.try_receive_from()
            if found is not None:
                return found
            await self._arrived.park()

    def try_receive_from(self) -> tuple[bytes, DatagramAddress] | None:
        """As `receive_from`, without waiting: None where there is nothing."""
        if self._waiting:
            datagram = self._waiting.popleft()
            self._waiting_bytes -= len(datagram[0])
            return datagram
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return None

    def peek(self) -> tuple[bytes, DatagramAddress] | None:
        """What `try_receive_from` would return."""
        return self._waiting[0] if self._waiting else None

    async def wait_readable(self) -> None:
        """Until `try_receive_from` has something to say. Several may wait."""
        await trio.lowlevel.checkpoint()
        while not self._waiting and self._error is None:
            self._check_open()
            await self._arrived.park()

    def connect(self, address: tuple[str, int] | None) -> None:
        """Take datagrams from (label, port) alone from now on, and hear of it where one could not be delivered there;
        None: from everybody, as before. Nothing is sent."""
        self._target = address
        self._error = None
        if address is not None:
            self._waiting = deque(
                datagram for datagram in self._waiting if self._is_target(*_plain(datagram[1]))
            )
            self._waiting_bytes = sum(len(data) for data, _ in self._waiting)

    def peer(self, host: str) -> PeerInfo | None:
        """Who is behind a name that was sent to or received from; None where that is not known yet."""
        way = self._hub.way_of(normalize_name(host))
        if way is None or way.key is None:
            return None
        name = way.label if way.label != way.node_id else None
        return PeerInfo(name, way.node_id, self.port)

    def path(self, host: str) -> PathInfo | None:
        """How datagrams travel to a node; None where there is no path now."""
        way = self._hub.way_of(normalize_name(host))
        return way.path if way is not None and way.roads else None

    def report(self, host: str) -> Report | None:
        """What the last dial of a node has tried; None where it was never dialled."""
        way = self._hub.way_of(normalize_name(host))
        return None if way is None else way.report

    # What the node brings.

    def deliver(self, labels: set[str], label: str, port: int, payload: bytes) -> bool:
        """In: whether there is somebody to take it."""
        if self._target is not None and not (port == self._target[1] and self._target[0] in labels):
            return False
        if self._deliver is not None:
            return self._deliver(label, port, payload)
        if len(self._waiting) >= MAX_WAITING or self._waiting_bytes + len(payload) > MAX_WAITING_BYTES:
            self.dropped += 1
            return True
        self._waiting.append((payload, DatagramAddress(full_name(label), port)))
        self._waiting_bytes += len(payload)
        self._arrived.unpark()
        return True

    def refused(self, labels: set[str], port: int, error: OSError) -> None:
        """What was sent to `port` of a node did not arrive."""
        if self._refuse is not None:
            for label in labels:
                self._refuse(label, port, error)
        elif self._target is not None and port == self._target[1] and self._target[0] in labels:
            self._error = error
            self._arrived.unpark_all()

    def knows(self, labels: set[str]) -> bool:
        """Whether it has sent to a node that is called so."""
        return any(label in self._partners for label in labels)

    def remember(self, label: str) -> None:
        """It has sent to `label`."""
        self._partners[label] = None
        self._partners.move_to_end(label)
        if len(self._partners) > _MAX_PARTNERS:
            self._partners.popitem(last=False)

    def _is_target(self, label: str, port: int) -> bool:
        way = self._hub.way_of(label)
        labels = {label} if way is None else way.labels
        return self._target is not None and port == self._target[1] and self._target[0] in labels

    # The end.

    def close(self) -> None:
        """Close at once; what nobody has received is gone."""
        if self.closed:
            return
        self.closed = True
        self._waiting.clear()
        self._arrived.unpark_all()
        self._hub.unbind(self)
        if self._on_close is not None:
            self._on_close()

    async def aclose(self) -> None:
        """`close`, with a checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()

    async def __aenter__(self) -> NTCPDatagramSocket:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _check_open(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError("this datagram socket is closed")


def _plain(address: DatagramAddress) -> tuple[str, int]:
    return normalize_name(address.host), address.port
