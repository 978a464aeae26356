"""Watching the network under trio: Linux's rtnetlink tells news; elsewhere the addresses are looked at now and then."""

from __future__ import annotations

import _socket
import errno
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import trio

from ntcpsock._address import is_dialable_host
from ntcpsock._errors import BadMessage
from ntcpsock._traversal.interfaces import further_uplinks, source_towards
from ntcpsock._traversal.network.clocks import WakeUp, read_clocks
from ntcpsock._traversal.network.machine import NetworkChange, NetworkMachine
from ntcpsock._traversal.network.message import (
    AF_INET,
    AF_INET6,
    AF_UNSPEC,
    GROUPS,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    Done,
    Failed,
    Message,
    Route,
    decode,
    encode_dump,
    encode_route_query,
)
from ntcpsock._traversal.network.snapshot import Relevance, Snapshot, make_relevance, make_snapshot

# Seconds between two looks where the system tells no news: at the addresses, and whether it has slept.
POLL_INTERVAL = 3.0
TICK_INTERVAL = 15.0

# Of a whole table so many messages are read: a router with the Internet's routes has a million, its default route
# among the first.
_MOST_OF_A_TABLE = 4096
_LARGEST_DATAGRAM = 65536
# Datagrams of news that are read before others have their turn.
_BATCH = 64
# Places whose way is looked at: brokers and STUN servers.
_MOST_DESTINATIONS = 8

# Somewhere on the Internet; nothing is sent there.
_ANYWHERE = ("192.88.99.1", "2001:db8::1")


class Source(Protocol):
    """Where snapshots come from."""

    #: Seconds between two looks; inf where `wait` tells when.
    poll_interval: float

    def read(self, destinations: Sequence[str]) -> Snapshot:
        """How things are now. Raises OSError."""
        ...

    async def wait(self) -> None:
        """Until there may be news."""
        ...

    def close(self) -> None: ...


class NetlinkSource:
    """Two sockets: one hears the news, one asks for tables. Neither takes privileges. Raises OSError where the system
    has none of them for us."""

    poll_interval = math.inf

    def __init__(self) -> None:
        if not sys.platform.startswith("linux"):
            raise OSError(errno.EAFNOSUPPORT, f"no netlink on {sys.platform}")
        self._relevance = Relevance()
        self._sequence = 0
        self._asking = _open_netlink(0)
        try:
            self._news = _open_netlink(GROUPS)
        except BaseException:
            self._asking.close()
            raise

    async def wait(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._news)
            for _ in range(_BATCH):
                try:
                    data = self._news.recv(_LARGEST_DATAGRAM)
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno == errno.ENOBUFS:
                        return  # so many that some are lost
                    raise
                if self._matters(data):
                    self._drain()
                    return

    def _matters(self, data: bytes) -> bool:
        try:
            return any(self._relevance.may_matter(message) for _, message in decode(data))
        except BadMessage:
            return True

    def _drain(self) -> None:
        """What else came with it: one look is enough for all."""
        with suppress(OSError):
            for _ in range(_BATCH):
                self._news.recv(_LARGEST_DATAGRAM)

    def read(self, destinations: Sequence[str]) -> Snapshot:
        table: list[Message] = []
        for what, family in (
            (RTM_GETLINK, AF_UNSPEC),
            (RTM_GETADDR, AF_UNSPEC),
            (RTM_GETROUTE, AF_INET),
            (RTM_GETROUTE, AF_INET6),
        ):
            table += self._ask(encode_dump(what, self._next(), family), is_dump=True)
        ways = []
        for destination in destinations:
            answer = self._ask(encode_route_query(destination, self._next()))
            ways += [(destination, message) for message in answer if isinstance(message, Route)]
        snapshot = make_snapshot(table, ways)
        self._relevance = make_relevance(table, snapshot)
        return snapshot

    def _next(self) -> int:
        self._sequence = self._sequence % 0xFFFFFFFF + 1
        return self._sequence

    def _ask(self, request: bytes, *, is_dump: bool = False) -> list[Message]:
        """The kernel answers at once: what is not there when we read is not to come."""
        found: list[Message] = []
        self._asking.send(request)
        while len(found) < _MOST_OF_A_TABLE:
            try:
                messages = decode(self._asking.recv(_LARGEST_DATAGRAM))
            except BadMessage as error:
                raise OSError(errno.EPROTO, str(error)) from error
            for sequence, message in messages:
                if sequence != self._sequence:
                    continue
                if isinstance(message, (Done, Failed)):
                    return found
                found.append(message)
            if not is_dump:
                return found
        # The rest of this dump would be in the way of the next one.
        self._asking.close()
        self._asking = _open_netlink(0)
        return found

    def close(self) -> None:
        self._asking.close()
        if self._news.fileno() >= 0:
            trio.lowlevel.notify_closing(self._news)
            self._news.close()


class PollingSource:
    """Looks from which own address the system would send: to the destinations, and by the other ways out."""

    poll_interval = POLL_INTERVAL

    def read(self, destinations: Sequence[str]) -> Snapshot:
        sources = {destination: source_towards(destination) for destination in destinations}
        own = {
            source
            for source in (*sources.values(), *further_uplinks())
            if source and is_dialable_host(source)
        }
        return Snapshot(
            addresses=frozenset(own),
            ways=frozenset(
                (destination, "", "", source) for destination, source in sources.items() if source
            ),
        )

    async def wait(self) -> None:
        await trio.sleep_forever()

    def close(self) -> None:
        pass


def open_source() -> Source:
    """The better one that this system lets us have."""
    try:
        return NetlinkSource()
    except OSError:
        return PollingSource()


class NetworkWatcher:
    """Calls `changed`, from `run`, with each change of the network.

    destinations: numeric addresses to which the ways matter, asked for at each look. clocks: see `read_clocks`.
    """

    def __init__(
        self,
        changed: Callable[[NetworkChange], None],
        destinations: Callable[[], Sequence[str]],
        *,
        open_source: Callable[[], Source] = open_source,
        clocks: Callable[[], tuple[float, float]] = read_clocks,
    ) -> None:
        self._changed = changed
        self._destinations = destinations
        self._open_source = open_source
        self._clocks = clocks
        self._wake = trio.Event()
        self._machine: NetworkMachine | None = None

    def look(self) -> None:
        """Look at once: somebody has reason to believe that something has changed."""
        if self._machine is not None:
            self._machine.look_at_once(trio.current_time())
            self._wake.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Started when the first look has been taken."""
        self._source = self._open_source()
        try:
            try:
                snapshot = self._look()
            except OSError:
                self._source.close()
                self._source = PollingSource()
                snapshot = self._look()
            now = trio.current_time()
            machine = NetworkMachine(snapshot, now, poll_interval=self._source.poll_interval)
            machine.take_clocks(*self._clocks(), now)
            self._machine = machine
            task_status.started()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hear, machine)
                nursery.start_soon(self._watch_for_sleep)
                await self._serve(machine)
        finally:
            self._source.close()

    async def _serve(self, machine: NetworkMachine) -> None:
        while True:
            self._wake = trio.Event()
            with trio.move_on_at(machine.next_timer()):
                await self._wake.wait()
            now = trio.current_time()
            machine.take_clocks(*self._clocks(), now)
            if not machine.wants_snapshot(now):
                continue
            try:
                machine.take_snapshot(self._look(), now)
            except OSError:
                machine.look_failed(now)
            for change in machine.changes():
                self._changed(change)

    def _look(self) -> Snapshot:
        others = [host for host in self._destinations() if is_dialable_host(host)]
        return self._source.read([*_ANYWHERE, *dict.fromkeys(others)][:_MOST_DESTINATIONS])

    async def _hear(self, machine: NetworkMachine) -> None:
        while True:
            try:
                await self._source.wait()
            except OSError:
                # News are not to be had any more.
                self._source.close()
                self._source = PollingSource()
                machine.poll_every(self._source.poll_interval)
            machine.noticed(trio.current_time())
            self._wake.set()

    async def _watch_for_sleep(self) -> None:
        try:
            wake_up = WakeUp()
        except OSError:
            while True:
                await trio.sleep(TICK_INTERVAL)
                self._wake.set()
        try:
            while True:
                await wake_up.wait()
                self._wake.set()
        finally:
            wake_up.close()


def _open_netlink(groups: int) -> _socket.socket:
    sock = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, 0)
    try:
        sock.setblocking(False)
        sock.bind((0, groups))
    except BaseException:
        sock.close()
        raise
    return sock
